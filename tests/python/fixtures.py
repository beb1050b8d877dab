"""What the tests of these programs share: interpreters, certificates, started programs, HTTP over TLS."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import unittest
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

HERE = Path(__file__).resolve().parent
HOST = "localhost"
STORAGE_HOST = "acme-stage.s3.eu-west-1.amazonaws.com"
# The same bucket by the name without a region, which drivers use.
STORAGE_ALIAS = "acme-stage.s3.amazonaws.com"
AZURE_HOST = "acmestage.blob.core.windows.net"
GCS_HOST = "storage.googleapis.com"
CLOUD_HOSTS = (STORAGE_HOST, STORAGE_ALIAS, AZURE_HOST, GCS_HOST)
ALL_SECONDS = 60
PASSWORD = "correct horse"
ACCESS_TOKEN = "pat-6f1d"
KEY_USES = (
    "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
    "encipher_only decipher_only"
).split()
OAUTH_TOKEN = "oauth-93ab"


def interpreter(environment: str) -> str:
    """The Python of one of the environments in `requirements/`.

    It is named by a variable such as SNOWFENCE_PYTHON_CONNECTOR5, or lies where `cargo xtask setup` puts it.
    """
    variable = f"SNOWFENCE_PYTHON_{environment.upper()}"
    if named := os.environ.get(variable):
        return named
    default = "/var/cache/snowfence" if os.geteuid() == 0 else str(Path.home() / ".cache/snowfence")
    made = Path(os.environ.get("SNOWFENCE_CACHE", default), "python").glob(f"{environment}-*/bin/python")
    if newest := max(made, key=lambda path: path.lstat().st_mtime, default=None):
        return str(newest)
    raise RuntimeError(f"no Python environment {environment}: run `cargo xtask setup`, or set {variable}")


def clean_environment(**extra: str) -> dict[str, str]:
    """An environment without the certificate and proxy settings that the machine may have."""
    return {"PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1", **extra}


@dataclass
class Program:
    """A started program and what its ready line said."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def port(self) -> int:
        return int(self.ready["listen"][0].rpartition(":")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(ALL_SECONDS)
        if self.process.stdout:
            self.process.stdout.close()
        return status


def start(program: str, *arguments: str, python: str = sys.executable, log: Path) -> Program:
    """Starts a program of this folder and waits until it is ready; its stderr goes to `log`."""
    with log.open("a") as errors:
        process = subprocess.Popen(
            [python, str(HERE / program), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # What it keeps for a while goes with its log.
            env=clean_environment(TMPDIR=str(log.parent)),
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{program} ended with {process.wait()}: {log.read_text()}")
    return Program(process, json.loads(line))


def run(program: str, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Runs a program of this folder to its end."""
    command = [python, str(HERE / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=ALL_SECONDS, env=clean_environment())


def make_certificates(folder: Path) -> None:
    """Writes `ca.pem`, and `server.pem` with `server.key` for HOST."""
    now = datetime.datetime.now(datetime.timezone.utc)
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tests CA")])
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        certificate = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
        certificate = certificate.serial_number(x509.random_serial_number())
        # Python 3.13 accepts no certificate without these two, and no CA without its key usage.
        issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        certificate = certificate.add_extension(issued_by, critical=False)
        certificate = certificate.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        start = now - datetime.timedelta(days=1)
        return certificate.not_valid_before(start).not_valid_after(now + datetime.timedelta(days=5))

    ca = builder(issuer, ca_key.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signing = dict.fromkeys(KEY_USES, False) | {"key_cert_sign": True, "crl_sign": True}
    ca = ca.add_extension(x509.KeyUsage(**signing), critical=True)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    hosts: list[x509.GeneralName] = [x509.DNSName(host) for host in (HOST, *CLOUD_HOSTS)]
    hosts.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    names = x509.SubjectAlternativeName(hosts)
    leaf = builder(subject, key.public_key()).add_extension(names, critical=False)
    leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    root = ca.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)
    (folder / "ca.pem").write_bytes(root)
    (folder / "server.pem").write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM) + root)
    (folder / "server.key").write_bytes(private_pem(key))


def private_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """A private key as text."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Upstream:
    """The emulated Snowflake, started in `folder`, with one user of each kind of credential."""

    def __init__(self, folder: Path, *extra: str) -> None:
        self.folder = folder
        self.log_file = folder / "upstream.jsonl"
        self.user_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = self.user_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        users = {
            "SVC_AGENTS": {
                "password": PASSWORD,
                "programmatic_access_token": ACCESS_TOKEN,
                "oauth_token": OAUTH_TOKEN,
                "public_key": public.decode(),
            },
            "OTHER": {"password": "other"},
        }
        make_certificates(folder)
        (folder / "credentials.json").write_text(json.dumps(users))
        (folder / "user.key").write_bytes(private_pem(self.user_key))
        arguments = self.arguments("127.0.0.1:0", "[::1]:0")
        self.program = start("upstream.py", *arguments, *extra, log=folder / "upstream.err")
        self.port = self.program.port
        self.trust = ssl.create_default_context(cafile=str(folder / "ca.pem"))

    def arguments(self, *addresses: str) -> list[str]:
        """A whole command line for `addresses`."""
        folder = self.folder
        listen = [word for address in addresses for word in ("--listen", address)]
        files = ["--certificate", folder / "server.pem", "--key", folder / "server.key"]
        files += ["--credentials", folder / "credentials.json", "--log", self.log_file]
        names = ["--account", HOST, "--storage", STORAGE_HOST, "--azure", AZURE_HOST, "--gcs", GCS_HOST]
        names += ["--database", "sandbox", "--schema", "public", "--warehouse", "wh"]
        return [*listen, *map(str, files), *names]

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        return [json.loads(line) for line in self.log_file.read_bytes().splitlines()]

    def requests(self, path: str) -> list[dict[str, Any]]:
        """The logged requests for `path`."""
        return [line for line in self.lines() if line["event"] == "request" and line["path"] == path]

    def statements(self) -> list[str]:
        """The SQL that arrived."""
        return [line["sql"] for line in self.lines() if line["sql"] is not None]

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A bare HTTP client."""
        connection = http.client.HTTPSConnection(HOST, self.port, context=self.trust, timeout=ALL_SECONDS)
        try:
            yield Client(connection)
        finally:
            connection.close()


class Client:
    """Speaks Snowflake's protocol by hand, to try what no driver does."""

    def __init__(self, connection: http.client.HTTPSConnection) -> None:
        self.connection = connection
        self.token: str | None = None
        self.master: str | None = None

    def raw(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """One request; header names have underscores for hyphens."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token is not None and "authorization" not in sent:
            sent["authorization"] = f'Snowflake Token="{self.token}"'
        self.connection.request(method, path, body, sent)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        """One request and its envelope."""
        status, answer = self.raw(method, path, json.dumps(body).encode() if body is not None else b"", **headers)
        assert status == 200, (status, answer)
        envelope: dict[str, Any] = json.loads(answer)
        return envelope

    def login(self, user: str = "svc_agents", password: str = PASSWORD, **data: Any) -> dict[str, Any]:
        """Logs in and keeps the tokens."""
        login = {"LOGIN_NAME": user, "PASSWORD": password, **data}
        path = "/session/v1/login-request?databaseName=sandbox&schemaName=public&warehouse=wh2&roleName=analyst"
        answer = self.call("POST", path, {"data": login})
        if answer["success"]:
            self.token, self.master = answer["data"]["token"], answer["data"]["masterToken"]
        return answer

    def query(
        self, sql: str, request_id: str | None = None, agent: str = "tests", wait: bool = True, **body: Any
    ) -> dict[str, Any]:
        """Sends a statement; with `wait`, asks again until it is done, as drivers do."""
        path = f"/queries/v1/query-request?requestId={request_id or uuid.uuid4()}"
        wait = wait and not body.get("asyncExec")
        answer = self.call("POST", path, {"sqlText": sql, **body}, user_agent=agent)
        return self.finish(answer) if wait else answer

    def finish(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer that comes after all that only say that the statement is in progress."""
        while answer["code"] in ("333333", "333334"):
            answer = self.call("GET", answer["data"]["getResultUrl"])
        return answer

    def result(self, query_id: str) -> dict[str, Any]:
        """The final answer to a query."""
        return self.finish(self.call("GET", f"/queries/{query_id}/result"))

    def rows(self, sql: str, **body: Any) -> list[list[str | None]]:
        """The rows of a statement, in the JSON format."""
        answer = self.query(sql, agent="JavaScript/3.0", **body)
        assert answer["success"], answer
        rows: list[list[str | None]] = answer["data"]["rowset"]
        return rows


def drive(
    environment: str, upstream: Upstream, connect: dict[str, Any], steps: list[list[Any]], **variables: str
) -> dict[str, Any]:
    """What `driver.py` says of `steps`, run by a connector that trusts `upstream`."""
    bundle = str(upstream.folder / "ca.pem")
    clean = clean_environment(
        HOME=str(upstream.folder),
        SSL_CERT_FILE=bundle,
        REQUESTS_CA_BUNDLE=bundle,
        # It would ask the addresses of cloud providers' metadata services, outside of the loopback.
        SNOWFLAKE_DISABLE_PLATFORM_DETECTION="true",
        **variables,
    )
    done = subprocess.run(
        [interpreter(environment), str(HERE / "driver.py")],
        input=json.dumps({"connect": connect, "steps": steps}),
        capture_output=True,
        text=True,
        timeout=ALL_SECONDS,
        env=clean,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class UpstreamCase(unittest.TestCase):
    """One emulated Snowflake for the tests of a class."""

    # Seconds until a running statement is answered as one in progress.
    patience: ClassVar[float] = 45
    upstream: ClassVar[Upstream]
    folder: ClassVar[tempfile.TemporaryDirectory[str]]

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        cls.upstream = Upstream(Path(cls.folder.name), "--patience", str(cls.patience))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.upstream.program.stop()
        cls.folder.cleanup()

    @contextlib.contextmanager
    def session(self, user: str = "svc_agents", password: str = PASSWORD) -> Iterator[Client]:
        with self.upstream.client() as client:
            self.assertTrue(client.login(user, password)["success"])
            yield client

    def assert_refused(self, envelope: dict[str, object], code: str) -> None:
        self.assertEqual((envelope["success"], envelope["code"]), (False, code), envelope)

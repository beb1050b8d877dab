"""A small OpenID Connect identity provider: discovery, a key set that can be rotated, and tokens minted offline.

    python identity_provider.py serve --listen 10.77.1.2:8080 --issuer http://10.77.1.2:8080 --key idp.pem
    python identity_provider.py mint --key idp.pem --issuer http://10.77.1.2:8080 --audience snowfence \\
        --subject alice --group analysts

The key file holds one or several PEM private keys. The first signs; `POST /rotate` puts a new one before it, and all
of them stay in the key set, so that tokens from before a rotation still verify.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

import program
import web

PEM = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.+?-----END [A-Z ]*PRIVATE KEY-----\n?", re.S)
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass
class SigningKey:
    """A private key with the algorithm that it signs by."""

    private: PrivateKey

    @property
    def algorithm(self) -> str:
        return "RS256" if isinstance(self.private, rsa.RSAPrivateKey) else "ES256"

    @property
    def public_members(self) -> dict[str, str]:
        """The members of the public JWK that identify the key (RFC 7638)."""
        numbers: Any = self.private.public_key().public_numbers()
        if isinstance(self.private, rsa.RSAPrivateKey):
            return {"e": number(numbers.e), "kty": "RSA", "n": number(numbers.n)}
        return {"crv": "P-256", "kty": "EC", "x": number(numbers.x, 32), "y": number(numbers.y, 32)}

    @property
    def id(self) -> str:
        """The key's thumbprint, which is its `kid`."""
        members = json.dumps(self.public_members, sort_keys=True, separators=(",", ":")).encode()
        return encode(hashlib.sha256(members).digest())

    @property
    def jwk(self) -> dict[str, str]:
        return {**self.public_members, "kid": self.id, "use": "sig", "alg": self.algorithm}


class KeyFile:
    """The private keys on disk, the signing one first."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> list[SigningKey]:
        """Reads the keys."""
        try:
            blocks = PEM.findall(self._path.read_bytes())
            keys = [SigningKey(supported(load_pem_private_key(block, None))) for block in blocks]
        except OSError as error:
            raise program.StartError(f"cannot read the key {self._path}: {error.strerror}") from None
        except (ValueError, TypeError) as error:
            raise program.StartError(f"cannot use the key {self._path}: {error}") from None
        if not keys:
            raise program.StartError(f"cannot use the key {self._path}: it holds no PEM private key")
        return keys

    def create(self, algorithm: str) -> None:
        """Makes the file with one key, unless it exists."""
        if not self._path.exists():
            self._write([new_key(algorithm)])

    def rotate(self) -> SigningKey:
        """Makes a new key of the same kind the signing one."""
        keys = self.load()
        fresh = new_key(keys[0].algorithm)
        self._write([fresh, *keys])
        return fresh

    def _write(self, keys: list[SigningKey]) -> None:
        text = b"".join(key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in keys)
        # Renamed into place, so that `mint` never reads half a file.
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
            temporary.replace(self._path)
        except OSError as error:
            raise program.StartError(f"cannot write the key {self._path}: {error.strerror}") from None


class Provider:
    """The HTTP side, as an ASGI application."""

    def __init__(self, issuer: str, keys: KeyFile) -> None:
        self._issuer = issuer.rstrip("/")
        self._prefix = urlsplit(self._issuer).path
        self._keys = keys

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        try:
            answer = self._answer(scope["method"], scope["path"].removeprefix(self._prefix))
        except program.StartError as error:
            answer = web.Answer(500, f"{error}\n".encode())
        print(f"identity_provider: {scope['method']} {scope['path']} {answer.status}", file=sys.stderr)
        await answer.send(send)

    def _answer(self, method: str, path: str) -> web.Answer:
        if method in ("GET", "HEAD") and path == "/.well-known/openid-configuration":
            return json_answer(self._discovery())
        if method in ("GET", "HEAD") and path == "/jwks":
            return json_answer({"keys": [key.jwk for key in self._keys.load()]})
        if method == "POST" and path == "/rotate":
            return json_answer({"kid": self._keys.rotate().id})
        return web.Answer(404, b"not found\n")

    def _discovery(self) -> dict[str, Any]:
        return {
            "issuer": self._issuer,
            "jwks_uri": f"{self._issuer}/jwks",
            "authorization_endpoint": f"{self._issuer}/authorize",
            "token_endpoint": f"{self._issuer}/token",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": sorted({key.algorithm for key in self._keys.load()}),
        }


def mint(options: argparse.Namespace) -> str:
    """A signed token for the command line's subject."""
    key = KeyFile(options.key).load()[0]
    if options.algorithm not in (None, key.algorithm):
        raise program.StartError(f"the key {options.key} signs by {key.algorithm}, not by {options.algorithm}")
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": options.issuer.rstrip("/"),
        "aud": options.audience,
        "sub": options.subject,
        "iat": now,
        "nbf": now,
        "exp": now + options.lifetime,
        "jti": str(uuid.uuid4()),
        "groups": options.group,
    }
    for text in options.claim:
        name, separator, value = text.partition("=")
        if not separator:
            raise program.StartError(f"{text!r} is no claim: expected NAME=VALUE")
        claims[name] = json_or_text(value)
    claims = {name: value for name, value in claims.items() if value is not None}
    # PyJWT refuses to sign some wrong claims by itself; a test may want exactly these.
    payload = json.dumps(claims, separators=(",", ":")).encode()
    return jwt.api_jws.encode(payload, key.private, key.algorithm, headers={"kid": key.id})


def new_key(algorithm: str) -> SigningKey:
    """A fresh key for `algorithm`."""
    if algorithm == "ES256":
        return SigningKey(ec.generate_private_key(ec.SECP256R1()))
    return SigningKey(rsa.generate_private_key(public_exponent=65537, key_size=2048))


def supported(key: object) -> PrivateKey:
    """The key, if it is of a kind that this program signs by."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    if isinstance(key, rsa.RSAPrivateKey):
        return key
    raise ValueError("only RSA and P-256 keys are supported")


def encode(data: bytes) -> str:
    """Base64 for URLs, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, length: int | None = None) -> str:
    """An integer as JWKs write it."""
    return encode(value.to_bytes(length or (value.bit_length() + 7) // 8, "big"))


def json_or_text(value: str) -> Any:
    """`value` as JSON where it is JSON, so that claims can be numbers, lists or, to leave one out, null."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def json_answer(value: Any) -> web.Answer:
    """A JSON document as an HTTP answer."""
    return web.Answer(200, json.dumps(value).encode(), "application/json")


async def serve(options: argparse.Namespace) -> None:
    """Serves until a signal comes."""
    stop = program.stop_on_signal()
    listeners = [program.bind(address) for address in options.listen]
    keys = KeyFile(options.key)
    keys.create(options.algorithm or "RS256")
    key = keys.load()[0]
    provider = Provider(options.issuer, keys)
    await web.serve(provider, listeners, stop, issuer=options.issuer, kid=key.id)


async def print_token(options: argparse.Namespace) -> None:
    """Prints one token."""
    print(mint(options))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    server = commands.add_parser("serve", help="answer discovery and key set requests")
    server.set_defaults(command=serve)
    server.add_argument("--listen", action="append", required=True, metavar="ADDR:PORT", help="repeat for several")
    minter = commands.add_parser("mint", help="print a signed token")
    minter.set_defaults(command=print_token)
    minter.add_argument("--audience", required=True)
    minter.add_argument("--subject", required=True)
    minter.add_argument("--group", action="append", default=[], help="repeat for several")
    minter.add_argument("--lifetime", type=int, default=3600, metavar="SECONDS", help="negative: already expired")
    minter.add_argument(
        "--claim", action="append", default=[], metavar="NAME=VALUE", help="JSON or text; null: leave out"
    )
    for command in (server, minter):
        command.add_argument("--issuer", required=True, metavar="URL")
        command.add_argument("--key", type=Path, required=True, metavar="FILE", help="PEM private keys")
        command.add_argument("--algorithm", choices=("RS256", "ES256"), help="kind of a new key; default RS256")
    return parser.parse_args()


if __name__ == "__main__":
    command_line = arguments()
    program.run(command_line.command(command_line))

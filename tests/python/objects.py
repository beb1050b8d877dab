"""An S3 over TLS (moto's), with one bucket, which looks at signatures as strictly as Amazon's SDK makes them.

    objects.py ADDRESS PORT FOLDER

FOLDER holds `server.pem` and `server.key`. While there is a file `down` in it, each request is answered with what the file says, such
as `503 SlowDown`. What is asked is in `requests`, a line each: method, path, status.
"""

from __future__ import annotations

import os
import ssl
import sys
from urllib.parse import urlsplit

import boto3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto import mock_aws
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "trail"
REGION = "eu-west-1"
ACCESS_KEY, SECRET_KEY = "AKIDSNOWFENCE", "secret-of-the-bucket"


class Strict:
    """Refuses what is not signed with the bucket's key."""

    def __init__(self, application, folder: str) -> None:
        self.application, self.folder = application, folder

    def __call__(self, environ, start):
        method, path = environ["REQUEST_METHOD"], environ["RAW_URI"]

        def noted(status, headers, *rest):
            with open(f"{self.folder}/requests", "a") as file:
                file.write(f"{method} {path} {status.split()[0]}\n")
            return start(status, headers, *rest)

        try:
            status, code = open(f"{self.folder}/down").read().split()
        except FileNotFoundError:
            status, code = ("200", "") if self.is_signed(environ) else ("403", "SignatureDoesNotMatch")
        if code:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            noted(f"{status} {code}", [("content-type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]
        # Amazon's answer to a lock without it names "Content-MD5 OR x-amz-checksum-"; moto knows the checksum by another header.
        if "HTTP_X_AMZ_CHECKSUM_SHA256" in environ:
            environ["HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM"] = "SHA256"
        return self.application(environ, noted)

    @staticmethod
    def is_signed(environ) -> bool:
        headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
        for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            headers[name.replace("_", "-").lower()] = environ.get(name, "")
        given = headers.get("authorization", "")
        if f"Credential={ACCESS_KEY}/" not in given or "SignedHeaders=" not in given:
            return False
        signed = given.split("SignedHeaders=")[1].split(",")[0].split(";")
        needed = {"host", *(name for name in headers if name.startswith("x-amz-"))}
        if not needed <= set(signed):
            return False
        url = f"https://{headers['host']}{urlsplit(environ['RAW_URI']).path}?{environ['QUERY_STRING']}"
        request = AWSRequest(environ["REQUEST_METHOD"], url, {name: headers[name] for name in signed})
        request.context["timestamp"] = headers["x-amz-date"]
        auth = S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", REGION)
        expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
        return given.endswith(f"Signature={expected}")


def main() -> None:
    address, port, folder = sys.argv[1:]
    os.environ["S3_IGNORE_SUBDOMAIN_BUCKETNAME"] = "1"
    with mock_aws():
        client = boto3.client("s3", REGION, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY)
        client.create_bucket(
            Bucket=BUCKET, ObjectLockEnabledForBucket=True, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
        client.put_object_lock_configuration(
            Bucket=BUCKET, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{folder}/server.pem", f"{folder}/server.key")
        application = Strict(DomainDispatcherApplication(create_backend_app), folder)
        server = make_server(address, int(port), application, threaded=True, ssl_context=context)
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

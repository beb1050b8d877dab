"""Amazon's signature version 4 in the `Authorization` header, as strictly as S3 reads it."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
from urllib.parse import quote, unquote

from emulator.objects import Denied, Grant, Objects
from emulator.request import Request

AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=(?P<identity>[^/,\s]+)/(?P<date>\d{8})/(?P<region>[^/,\s]+)/(?P<service>[^/,\s]+)"
    r"/aws4_request,\s*SignedHeaders=(?P<headers>[^,\s]+),\s*Signature=(?P<signature>[0-9a-f]{64})"
)
UNSIGNED = "UNSIGNED-PAYLOAD"
# What an SDK says when it sends chunks with a checksum after them.
TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
LARGEST_SKEW = datetime.timedelta(minutes=15)


def verify(request: Request, objects: Objects, region: str) -> Grant:
    """The grant that signed the request; raises what S3 says to any other request."""
    headers = request.headers
    given = headers.get("authorization")
    if given is None:
        raise Denied(403, "AccessDenied", "Access Denied")
    match = AUTHORIZATION.fullmatch(given.strip())
    if match is None:
        raise Denied(400, "AuthorizationHeaderMalformed", "The authorization header is malformed.")
    if (match["region"], match["service"]) != (region, "s3"):
        message = f"The authorization header is malformed; the region '{match['region']}' is wrong; expecting '{region}'"
        raise Denied(400, "AuthorizationHeaderMalformed", message)
    grant = objects.grant_of("S3", match["identity"])
    if grant is None:
        raise Denied(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    check_date(headers.get("x-amz-date", ""), match["date"])
    names = match["headers"].split(";")
    needed = {"host", *(name for name in headers if name.startswith("x-amz-"))}
    if names != sorted(names) or not needed <= set(names) or not set(names) <= set(headers):
        raise Denied(403, "AccessDenied", "There were headers present in the request which were not signed")
    if not hmac.compare_digest(expected(request, names, grant, match["date"], region), match["signature"]):
        message = "The request signature we calculated does not match the signature you provided."
        raise Denied(403, "SignatureDoesNotMatch", message)
    if headers.get("x-amz-security-token") != grant.token:
        raise Denied(400, "InvalidToken", "The provided token is malformed or otherwise invalid.")
    if grant.expired:
        raise Denied(400, "ExpiredToken", "The provided token has expired.")
    check_body(request)
    return grant


def check_date(text: str, day: str) -> None:
    """The time of the signature has to be now."""
    try:
        signed = datetime.datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        raise Denied(403, "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header") from None
    if abs(datetime.datetime.now(datetime.timezone.utc) - signed) > LARGEST_SKEW:
        message = "The difference between the request time and the current time is too large."
        raise Denied(403, "RequestTimeTooSkewed", message)
    if not text.startswith(day):
        raise Denied(400, "AuthorizationHeaderMalformed", "The date of the credential is not that of the request.")


def check_body(request: Request) -> None:
    """The body has to be what was signed."""
    said = request.headers.get("x-amz-content-sha256")
    assert request.payload is not None
    if said is None:
        raise Denied(400, "InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    if said in (UNSIGNED, TRAILER):
        return
    if said.startswith("STREAMING-"):
        raise Denied(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
    if said != request.payload.sha256:
        message = "The provided 'x-amz-content-sha256' header does not match what was computed."
        raise Denied(400, "XAmzContentSHA256Mismatch", message)


def expected(request: Request, names: list[str], grant: Grant, day: str, region: str) -> str:
    """The signature that the request should have."""
    headers = request.headers
    lines = [f"{name}:{' '.join(headers[name].split())}" for name in names]
    canonical = "\n".join(
        [
            request.method,
            quote(request.path, safe="/-_.~"),
            canonical_query(request.query),
            *lines,
            "",
            ";".join(names),
            headers.get("x-amz-content-sha256", ""),
        ]
    )
    scope = f"{day}/{region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers.get("x-amz-date", ""), scope, digest])
    key = f"AWS4{grant.secret}".encode()
    for word in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def canonical_query(query: str) -> str:
    """The query in the one form that is signed."""
    pairs = (part.partition("=") for part in query.split("&") if part)
    encoded = ((quote(unquote(name), safe="-_.~"), quote(unquote(value), safe="-_.~")) for name, _, value in pairs)
    return "&".join(f"{name}={value}" for name, value in sorted(encoded))

"""Google's XML interface to objects, with a bearer token or a signed address, as far as drivers and the agent use it."""

from __future__ import annotations

import base64
import secrets
from xml.sax.saxutils import escape

from emulator.delivery import Delivery, deliver
from emulator.objects import Denied, Grant, Object, Objects, Upload
from emulator.request import Request
from emulator.s3 import kept, listing, metadata, named_parts, refusal, xml_answer
from web import Answer

METADATA = "x-goog-meta-"
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
QUOTE = {'"': "&quot;"}


class Gcs:
    """A bucket."""

    def __init__(self, objects: Objects, host: str, bucket: str) -> None:
        self._objects = objects
        self._bucket = bucket
        self.host = host

    async def handle(self, request: Request) -> Answer | Delivery:
        """Answers a request."""
        headers = {"x-guploader-uploadid": secrets.token_urlsafe(24), "server": "UploadServer"}
        try:
            answer = self._route(request)
        except Denied as denied:
            return refusal(denied, request, headers)
        answer.headers = headers | answer.headers
        return answer

    def _route(self, request: Request) -> Answer | Delivery:
        query, method = request.parameters, request.method
        bucket, _, key = request.path.removeprefix("/").partition("/")
        grant = self._authenticate(request, key)
        if bucket != self._bucket:
            raise Denied(404, "NoSuchBucket", "The specified bucket does not exist.")
        if not key and method == "GET" and query.get("list-type") == "2" and grant.allows(query.get("prefix", ""), False):
            prefix = query.get("prefix", "")
            return xml_answer(listing("ListBucketResult", bucket, prefix, self._objects.under(prefix, "GCS")))
        if not key or not grant.allows(key, method in ("PUT", "POST", "DELETE")):
            raise Denied(403, "AccessDenied", "Access denied.")
        if method in ("GET", "HEAD"):
            return self._get(request, key)
        if method == "POST" and "uploads" in query:
            upload_id = self._objects.begin(Upload(key, metadata(request, METADATA), kept(request), grant))
            return xml_answer(
                f'<InitiateMultipartUploadResult xmlns="{NAMESPACE}"><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>'
                f"<UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
            )
        if method == "POST" and "uploadId" in query:
            return self._complete(request, key, query["uploadId"])
        if method == "PUT" and "uploadId" in query:
            return self._part(request, key, query)
        if method == "PUT":
            return self._put(request, key, grant)
        if method == "DELETE" and "uploadId" in query:
            self._find_upload(key, query["uploadId"])
            self._objects.abandon(query["uploadId"])
            return Answer(204)
        if method == "DELETE":
            if not self._objects.remove("GCS", key):
                raise not_found()
            return Answer(204)
        raise Denied(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")

    def _authenticate(self, request: Request, key: str) -> Grant:
        """The grant of the token, or of the signature in the address, which is for one object and one method."""
        given, signature = request.headers.get("authorization"), request.parameters.get("X-Goog-Signature")
        if signature is not None:
            grant = self._objects.grant_of("GCS", signature)
            writes = request.method == "PUT"
            if given is not None or grant is None or grant.prefix != key or grant.writes != writes:
                raise Denied(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.")
            if grant.expired:
                raise Denied(400, "ExpiredToken", "Invalid argument. The provided token has expired.")
            return grant
        if given is None:
            message = "Anonymous caller does not have storage.objects access to the Google Cloud Storage object."
            raise Denied(401, "AccessDenied", message, {"www-authenticate": 'Bearer realm="https://accounts.google.com/"'})
        kind, _, token = given.partition(" ")
        grant = self._objects.grant_of("GCS", token.strip())
        if kind.lower() != "bearer" or grant is None or grant.expired:
            message = "Authentication required."
            challenge = 'Bearer realm="https://accounts.google.com/", error=invalid_token'
            raise Denied(401, "AuthenticationRequired", message, {"www-authenticate": challenge})
        return grant

    def _get(self, request: Request, key: str) -> Delivery:
        item = self._objects.find("GCS", key)
        if item is None:
            raise not_found()
        headers = {METADATA + name: value for name, value in item.metadata.items()}
        return deliver(request, item, headers | facts(item) | {"x-goog-stored-content-length": str(item.payload.size)})

    def _put(self, request: Request, key: str, grant: Grant) -> Answer:
        self._check_condition(request, key)
        payload = request.payload
        assert payload is not None
        if request.headers.get("content-md5", payload.content_md5) != payload.content_md5:
            raise Denied(400, "BadDigest", "The MD5 you specified did not match what we computed.")
        item = self._objects.store(grant, key, payload, metadata(request, METADATA), kept(request))
        return Answer(200, headers={"etag": item.etag} | facts(item))

    def _part(self, request: Request, key: str, query: dict[str, str]) -> Answer:
        upload = self._find_upload(key, query["uploadId"])
        number = query.get("partNumber", "")
        if not number.isdecimal() or not 1 <= int(number) <= 10_000:
            raise Denied(400, "InvalidArgument", "Invalid argument.")
        assert request.payload is not None
        self._objects.add_part(upload, number, request.payload)
        return Answer(200, headers={"etag": f'"{request.payload.md5.hex()}"'})

    def _complete(self, request: Request, key: str, upload_id: str) -> Answer:
        upload = self._find_upload(key, upload_id)
        assert request.payload is not None
        names = named_parts(request.payload, upload)
        item = self._objects.complete(upload_id, names, f'"{secrets.token_hex(16)}-{len(names)}"')
        answer = xml_answer(
            f'<CompleteMultipartUploadResult xmlns="{NAMESPACE}"><Location>https://{self.host}/{self._bucket}/'
            f"{escape(key)}</Location><Bucket>{self._bucket}</Bucket><Key>{escape(key)}</Key>"
            f"<ETag>{escape(item.etag, QUOTE)}</ETag></CompleteMultipartUploadResult>"
        )
        answer.headers = facts(item)
        return answer

    def _find_upload(self, key: str, upload_id: str) -> Upload:
        upload = self._objects.upload("GCS", key, upload_id)
        if upload is None:
            raise Denied(404, "NoSuchUpload", "The requested upload was not found.")
        return upload

    def _check_condition(self, request: Request, key: str) -> None:
        wanted = request.headers.get("x-goog-if-generation-match")
        item = self._objects.find("GCS", key)
        if wanted is not None and wanted != str(item.generation if item else 0):
            raise Denied(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")


def facts(item: Object) -> dict[str, str]:
    """What Google says of every object."""
    digest = base64.b64encode(item.payload.md5).decode()
    return {
        "x-goog-generation": str(item.generation),
        "x-goog-metageneration": "1",
        "x-goog-storage-class": "STANDARD",
        "x-goog-hash": f"md5={digest}",
    }


def not_found() -> Denied:
    """There is no such object."""
    return Denied(404, "NoSuchKey", "The specified key does not exist.")

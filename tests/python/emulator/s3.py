"""S3's REST interface, as far as drivers and the agent use it."""

from __future__ import annotations

import secrets
import time
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

from emulator import signature
from emulator.delivery import Delivery, deliver
from emulator.objects import Denied, Grant, Object, Objects, Upload
from emulator.payload import Damaged, Payload, unchunked
from emulator.request import Request
from web import Answer

METADATA = "x-amz-meta-"
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
KEPT_HEADERS = ("content-type", "content-encoding", "content-disposition", "content-language", "cache-control")
# Smaller ones may only come last.
SMALLEST_PART = 5 * 1024 * 1024


class S3:
    """A bucket."""

    def __init__(self, objects: Objects, host: str) -> None:
        """`host` is the bucket's name in its region: `bucket.s3.region.amazonaws.com`."""
        self._objects = objects
        self.bucket, _, rest = host.partition(".s3.")
        self.region = rest.removesuffix(".amazonaws.com")
        # Drivers also ask the name without a region.
        self.hosts = (host, f"{self.bucket}.s3.amazonaws.com")

    async def handle(self, request: Request) -> Answer | Delivery:
        """Answers a request."""
        headers = {"x-amz-request-id": secrets.token_hex(8).upper(), "server": "AmazonS3"}
        try:
            grant = signature.verify(request, self._objects, self.region)
            answer = self._route(request, grant)
        except Denied as denied:
            return refusal(denied, request, headers)
        answer.headers = headers | answer.headers
        return answer

    def _route(self, request: Request, grant: Grant) -> Answer | Delivery:
        key, query, method = request.path.removeprefix("/"), request.parameters, request.method
        if not key:
            return self._bucket(request, grant)
        if not grant.allows(key, method in ("PUT", "POST", "DELETE")):
            raise Denied(403, "AccessDenied", "Access Denied")
        if method in ("GET", "HEAD"):
            return self._get(request, key)
        if method == "POST" and "uploads" in query:
            return self._begin(request, key, grant)
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
            self._objects.remove("S3", key)
            return Answer(204)
        raise Denied(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")

    def _bucket(self, request: Request, grant: Grant) -> Answer:
        query = request.parameters
        prefix = query.get("prefix", "")
        if request.method != "GET" or query.get("list-type") != "2" or not grant.allows(prefix, writes=False):
            # Also what drivers ask of the bucket itself: whether there is an accelerated way to it.
            raise Denied(403, "AccessDenied", "Access Denied")
        return xml_answer(listing("ListBucketResult", self.bucket, prefix, self._objects.under(prefix, "S3")))

    def _get(self, request: Request, key: str) -> Delivery:
        item = self._objects.find("S3", key)
        if item is None:
            raise Denied(404, "NoSuchKey", "The specified key does not exist.")
        return deliver(request, item, {METADATA + name: value for name, value in item.metadata.items()})

    def _put(self, request: Request, key: str, grant: Grant) -> Answer:
        self._check_condition(request, key)
        payload = self._body(request)
        item = self._objects.store(grant, key, payload, metadata(request), kept(request))
        return Answer(200, headers={"etag": item.etag} | echoed(request))

    def _begin(self, request: Request, key: str, grant: Grant) -> Answer:
        self._check_condition(request, key)
        upload_id = self._objects.begin(Upload(key, metadata(request), kept(request), grant))
        return xml_answer(
            f'<InitiateMultipartUploadResult xmlns="{NAMESPACE}"><Bucket>{self.bucket}</Bucket>'
            f"<Key>{escape(key)}</Key><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"
        )

    def _part(self, request: Request, key: str, query: dict[str, str]) -> Answer:
        upload = self._find_upload(key, query["uploadId"])
        number = query.get("partNumber", "")
        if not number.isdecimal() or not 1 <= int(number) <= 10_000:
            raise Denied(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
        payload = self._body(request)
        self._objects.add_part(upload, number, payload)
        return Answer(200, headers={"etag": f'"{payload.md5.hex()}"'} | echoed(request))

    def _complete(self, request: Request, key: str, upload_id: str) -> Answer:
        upload = self._find_upload(key, upload_id)
        self._check_condition(request, key)
        assert request.payload is not None
        names = named_parts(request.payload, upload)
        etag = f'"{secrets.token_hex(16)}-{len(names)}"'
        item = self._objects.complete(upload_id, names, etag)
        return xml_answer(
            f'<CompleteMultipartUploadResult xmlns="{NAMESPACE}"><Location>https://{self.hosts[0]}/{escape(key)}'
            f"</Location><Bucket>{self.bucket}</Bucket><Key>{escape(key)}</Key>"
            f"<ETag>{escape(item.etag, {chr(34): '&quot;'})}</ETag></CompleteMultipartUploadResult>"
        )

    def _find_upload(self, key: str, upload_id: str) -> Upload:
        upload = self._objects.upload("S3", key, upload_id)
        if upload is None:
            raise Denied(404, "NoSuchUpload", "The specified multipart upload does not exist.")
        return upload

    def _check_condition(self, request: Request, key: str) -> None:
        item = self._objects.find("S3", key)
        wanted = request.headers.get("if-match")
        if (request.headers.get("if-none-match") == "*" and item) or (wanted and (not item or item.etag != wanted)):
            message = "At least one of the pre-conditions you specified did not hold"
            raise Denied(412, "PreconditionFailed", message)

    def _body(self, request: Request) -> Payload:
        """The body without its framing, checked against every checksum that came with it."""
        payload, headers = request.payload, request.headers
        assert payload is not None
        if headers.get("x-amz-content-sha256") == signature.TRAILER:
            framed = payload
            try:
                payload, trailers = unchunked(framed, self._objects.folder)
            except Damaged:
                raise Denied(400, "IncompleteBody", "The request body is not framed as its headers say.") from None
            framed.discard()
            if headers.get("x-amz-decoded-content-length") != str(payload.size):
                raise Denied(400, "IncompleteBody", "You did not provide the number of bytes that you said.")
            headers = headers | trailers
        if headers.get("x-amz-checksum-crc32", payload.checksum) != payload.checksum:
            raise Denied(400, "BadDigest", "The CRC32 you specified did not match the calculated checksum.")
        if headers.get("content-md5", payload.content_md5) != payload.content_md5:
            raise Denied(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
        return payload


def named_parts(payload: Payload, upload: Upload) -> list[str]:
    """The parts that a completing request lists, in its order."""
    try:
        root = ET.fromstring(payload.read())
    except ET.ParseError:
        raise Denied(400, "MalformedXML", "The XML you provided was not well-formed") from None
    names: list[str] = []
    for part in root.iterfind("{*}Part"):
        number, etag = part.findtext("{*}PartNumber", ""), part.findtext("{*}ETag", "")
        found = upload.parts.get(number)
        if found is None or etag.strip('"') != found.md5.hex():
            raise Denied(400, "InvalidPart", "One or more of the specified parts could not be found.")
        names.append(number)
    if not names or [int(name) for name in names] != sorted({int(name) for name in names}):
        raise Denied(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
    if any(upload.parts[name].size < SMALLEST_PART for name in names[:-1]):
        raise Denied(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
    return names


def metadata(request: Request, prefix: str = METADATA) -> dict[str, str]:
    """What the writer says of the object."""
    return {name.removeprefix(prefix): value for name, value in request.headers.items() if name.startswith(prefix)}


def kept(request: Request) -> dict[str, str]:
    """The headers that come back with the object."""
    headers = {name: request.headers[name] for name in KEPT_HEADERS if request.headers.get(name)}
    codings = [word.strip() for word in headers.pop("content-encoding", "").split(",")]
    left = ",".join(word for word in codings if word and word != "aws-chunked")
    return headers | ({"content-encoding": left} if left else {})


def echoed(request: Request) -> dict[str, str]:
    """Checksums come back to who sent them."""
    return {name: value for name, value in request.headers.items() if name.startswith("x-amz-checksum-")}


def listing(root: str, bucket: str, prefix: str, items: list[Object]) -> str:
    """A list of objects."""
    entries = "".join(
        f"<Contents><Key>{escape(item.key)}</Key><LastModified>{iso(item.modified)}</LastModified>"
        f"<ETag>{escape(item.etag, {chr(34): '&quot;'})}</ETag><Size>{item.payload.size}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for item in items
    )
    return (
        f'<{root} xmlns="{NAMESPACE}"><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>'
        f"<KeyCount>{len(items)}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{entries}</{root}>"
    )


def iso(moment: float) -> str:
    """A time as XML has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(moment))


def xml_answer(body: str, status: int = 200) -> Answer:
    """An answer in XML."""
    return Answer(status, f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'.encode(), "application/xml")


def refusal(denied: Denied, request: Request, headers: dict[str, str]) -> Answer:
    """A refusal as S3 and Google's XML interface write it."""
    answer = xml_answer(
        f"<Error><Code>{denied.code}</Code><Message>{escape(denied.message)}</Message>"
        f"<Resource>{escape(request.path)}</Resource><RequestId>{secrets.token_hex(8).upper()}</RequestId></Error>",
        denied.status,
    )
    if request.method == "HEAD":
        answer.body = b""
    answer.headers = headers | denied.headers
    return answer

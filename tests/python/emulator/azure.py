"""Azure's REST interface to blobs, with a shared access signature in the query, as far as drivers and the agent use it."""

from __future__ import annotations

import hmac
import secrets
import xml.etree.ElementTree as ET
from email.utils import formatdate
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from emulator.delivery import Delivery, deliver
from emulator.objects import Denied, Grant, Object, Objects, Upload
from emulator.request import Request
from emulator.s3 import kept, metadata, xml_answer
from emulator.transport import REASON
from web import Answer

METADATA = "x-ms-meta-"
VERSION = "2024-11-04"
UNAUTHENTICATED = (
    "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly "
    "including the signature."
)
# The headers that a writer gives for the blob, and what they are called when it is read.
BLOB_HEADERS = ("content-type", "content-encoding", "content-language", "content-disposition", "cache-control")


class Azure:
    """A storage account with one container."""

    def __init__(self, objects: Objects, host: str, container: str) -> None:
        self._objects = objects
        self._container = container
        self.host = host

    async def handle(self, request: Request) -> Answer | Delivery:
        """Answers a request."""
        headers = {
            "x-ms-request-id": secrets.token_hex(16),
            "x-ms-version": request.headers.get("x-ms-version", VERSION),
            "server": "Windows-Azure-Blob/1.0 Microsoft-HTTPAPI/2.0",
        }
        try:
            answer = self._route(request)
        except Denied as denied:
            # The reason goes into the status line, where drivers look for it.
            REASON.set(denied.message)
            text = f"<Error><Code>{denied.code}</Code><Message>{escape(denied.message)}</Message></Error>"
            answer = xml_answer(text, denied.status)
            answer.headers = {"x-ms-error-code": denied.code}
            if request.method == "HEAD":
                answer.body = b""
        answer.headers = headers | answer.headers
        return answer

    def _route(self, request: Request) -> Answer | Delivery:
        query, method = request.parameters, request.method
        container, _, key = request.path.removeprefix("/").partition("/")
        grant = self._authenticate(request)
        if container != self._container:
            raise Denied(404, "ContainerNotFound", "The specified container does not exist.")
        if not key and method == "GET" and query.get("comp") == "list":
            return self._list(query, grant)
        if not key or not grant.allows(key, method in ("PUT", "DELETE")):
            message = "This request is not authorized to perform this operation using this permission."
            raise Denied(403, "AuthorizationPermissionMismatch", message)
        if method in ("GET", "HEAD"):
            return self._get(request, key)
        if method == "PUT" and query.get("comp") == "block":
            return self._block(request, key, query, grant)
        if method == "PUT" and query.get("comp") == "blocklist":
            return self._block_list(request, key, grant)
        if method == "PUT" and "comp" not in query:
            return self._put(request, key, grant)
        if method == "DELETE":
            if not self._objects.remove("AZURE", key):
                raise not_found()
            return Answer(202)
        raise Denied(405, "UnsupportedHttpVerb", "The resource doesn't support the specified HTTP verb.")

    def _authenticate(self, request: Request) -> Grant:
        """The grant whose signature, with all that it signs, is in the query."""
        if "authorization" in request.headers:
            raise Denied(400, "InvalidAuthenticationInfo", "Authentication information is not given in the correct format.")
        given = request.parameters
        grant = self._objects.grant_of("AZURE", given.get("sig", ""))
        if grant is None:
            raise Denied(403, "AuthenticationFailed", UNAUTHENTICATED)
        signed = dict(parse_qsl(grant.signed_query))
        if any(not hmac.compare_digest(given.get(name, ""), value) for name, value in signed.items()):
            raise Denied(403, "AuthenticationFailed", UNAUTHENTICATED)
        if grant.expired:
            message = f"{UNAUTHENTICATED} Signature not valid in the specified time frame"
            raise Denied(403, "AuthenticationFailed", message)
        return grant

    def _get(self, request: Request, key: str) -> Delivery:
        item = self._objects.find("AZURE", key)
        if item is None:
            raise not_found()
        headers = {METADATA + name: value for name, value in item.metadata.items()}
        return deliver(request, item, headers | {"x-ms-blob-type": "BlockBlob"})

    def _put(self, request: Request, key: str, grant: Grant) -> Answer:
        payload, headers = request.payload, request.headers
        assert payload is not None
        if headers.get("x-ms-blob-type") != "BlockBlob":
            message = "An HTTP header that's mandatory for this request is not specified."
            raise Denied(400, "MissingRequiredHeader", message)
        self._check_condition(request, key)
        check_md5(headers.get("content-md5"), payload.content_md5)
        said = blob_headers(request) | {"content-md5": payload.content_md5}
        return created(self._objects.store(grant, key, payload, metadata(request, METADATA), said, new_etag()))

    def _block(self, request: Request, key: str, query: dict[str, str], grant: Grant) -> Answer:
        assert request.payload is not None
        check_md5(request.headers.get("content-md5"), request.payload.content_md5)
        upload_id = self._objects.begin(Upload(key, {}, {}, grant), f"AZURE {key}")
        upload = self._objects.upload("AZURE", key, upload_id)
        name = query.get("blockid", "")
        if upload is None or not name or any(len(other) != len(name) for other in upload.parts):
            raise Denied(400, "InvalidBlobOrBlock", "The specified blob or block content is invalid.")
        self._objects.add_part(upload, name, request.payload)
        return Answer(201, headers={"content-md5": request.payload.content_md5})

    def _block_list(self, request: Request, key: str, grant: Grant) -> Answer:
        upload_id = f"AZURE {key}"
        upload = self._objects.upload("AZURE", key, upload_id)
        self._check_condition(request, key)
        assert request.payload is not None
        try:
            root = ET.fromstring(request.payload.read())
        except ET.ParseError:
            raise Denied(400, "InvalidXmlDocument", "The specified XML is not syntactically valid.") from None
        names = [(block.text or "").strip() for block in root]
        if root.tag != "BlockList" or upload is None or not set(names) <= set(upload.parts):
            raise Denied(400, "InvalidBlockList", "The specified block list is invalid.")
        upload.metadata, upload.headers, upload.grant = metadata(request, METADATA), blob_headers(request), grant
        return created(self._objects.complete(upload_id, names, new_etag()))

    def _list(self, query: dict[str, str], grant: Grant) -> Answer:
        prefix = query.get("prefix", "")
        if not grant.allows(prefix, writes=False):
            message = "This request is not authorized to perform this operation using this permission."
            raise Denied(403, "AuthorizationPermissionMismatch", message)
        blobs = "".join(
            f"<Blob><Name>{escape(item.key)}</Name><Properties><Content-Length>{item.payload.size}</Content-Length>"
            f"<Last-Modified>{formatdate(item.modified, usegmt=True)}</Last-Modified>"
            f"<Etag>{escape(item.etag)}</Etag><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for item in self._objects.under(prefix, "AZURE")
        )
        return xml_answer(f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker /></EnumerationResults>")

    def _check_condition(self, request: Request, key: str) -> None:
        item = self._objects.find("AZURE", key)
        if request.headers.get("if-none-match") == "*" and item is not None:
            raise Denied(409, "BlobAlreadyExists", "The specified blob already exists.")
        if (wanted := request.headers.get("if-match")) and (item is None or item.etag != wanted):
            raise Denied(412, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")


def blob_headers(request: Request) -> dict[str, str]:
    """The headers that come back with the blob: the request's own, or those that are said to be the blob's."""
    said = {name: request.headers.get(f"x-ms-blob-{name}", "") for name in (*BLOB_HEADERS, "content-md5")}
    listed = request.parameters.get("comp") == "blocklist"
    return ({} if listed else kept(request)) | {name: value for name, value in said.items() if value}


def created(item: Object) -> Answer:
    """The answer to whoever made a blob."""
    return Answer(201, headers={"etag": item.etag, "x-ms-request-server-encrypted": "true"})


def check_md5(said: str | None, computed: str) -> None:
    """A body has to have the digest that came with it."""
    if said is not None and said != computed:
        raise Denied(400, "Md5Mismatch", "The MD5 value specified in the request did not match the computed value.")


def not_found() -> Denied:
    """There is no such blob."""
    return Denied(404, "BlobNotFound", "The specified blob does not exist.")


def new_etag() -> str:
    """Azure's tags say nothing of the content."""
    return f'"0x8D{secrets.token_hex(7).upper()}"'

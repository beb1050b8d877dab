"""Parts of results under presigned addresses, as strict as S3 with a customer's key.

What is refused here is refused there: an address without its signature or past its time, a missing or wrong key, a second
means of authentication. A test can have the first request for a part broken off in the middle.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import re
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from emulator.delivery import BrokenOff
from emulator.request import Request
from web import Send

LIFETIME_SECONDS = 6 * 3600
KEPT_OBJECTS = 2000
PIECE = 64 * 1024
RANGE = re.compile(r"bytes=(\d+)-")
PREFIX = "x-amz-server-side-encryption-customer"


@dataclass
class Part:
    """A part."""

    body: bytes
    key: str
    expires: float
    signature: str = field(default_factory=lambda: secrets.token_hex(32))
    # Break off the next request after half of it.
    breaks: bool = False

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.body).hexdigest()}"'


class Results:
    """The parts of all results."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._objects: OrderedDict[str, Part] = OrderedDict()

    def put(self, path: str, body: bytes, key: str, breaks: bool = False) -> str:
        """Stores something, compressed; returns its presigned address."""
        return self.put_as_it_is(path, gzip.compress(body, compresslevel=1), key, breaks)

    def put_as_it_is(self, path: str, body: bytes, key: str, breaks: bool = False) -> str:
        """The same without compression."""
        item = Part(body, key, time.time() + LIFETIME_SECONDS, breaks=breaks)
        self._objects[path] = item
        if len(self._objects) > KEPT_OBJECTS:
            self._objects.popitem(last=False)
        return f"https://{self.host}{path}?X-Amz-Expires={LIFETIME_SECONDS}&X-Amz-Signature={item.signature}"

    async def serve(self, request: Request, send: Send) -> int:
        """Answers a request; returns the status."""
        status, reason, item = self._find(request)
        if item is None:
            body = f"<Error><Code>{reason}</Code><Resource>{request.path}</Resource></Error>".encode()
            await start(send, status, len(body), {"content-type": "application/xml"})
            await send({"type": "http.response.body", "body": body})
            return status
        begin = 0
        headers = {"content-type": "binary/octet-stream", "etag": item.etag, "accept-ranges": "bytes"}
        if match := RANGE.fullmatch(request.headers.get("range", "")):
            begin, status = int(match[1]), 206
            headers["content-range"] = f"bytes {begin}-{len(item.body) - 1}/{len(item.body)}"
        end = len(item.body)
        breaks, item.breaks = item.breaks, False
        await start(send, status, end - begin, headers)
        half = (begin + end) // 2
        for position in range(begin, end, PIECE):
            if breaks and position + PIECE > half:
                await send({"type": "http.response.body", "body": item.body[position:half], "more_body": True})
                await asyncio.sleep(0.05)
                # Ends the connection in the middle.
                raise BrokenOff
            piece = item.body[position : position + PIECE]
            await send({"type": "http.response.body", "body": piece, "more_body": position + PIECE < end})
        return status

    def _find(self, request: Request) -> tuple[int, str, Part | None]:
        item = self._objects.get(request.path)
        given = dict(parse_qsl(request.query))
        headers = request.headers
        if "authorization" in headers or "cookie" in headers:
            return 400, "InvalidArgument", None
        if item is None or not secrets.compare_digest(given.get("X-Amz-Signature", ""), item.signature):
            return 403, "SignatureDoesNotMatch", None
        if time.time() > item.expires:
            return 403, "AccessDenied", None
        if request.method != "GET":
            return 405, "MethodNotAllowed", None
        if headers.get(f"{PREFIX}-algorithm") != "AES256" or headers.get(f"{PREFIX}-key") != item.key:
            return 400, "InvalidRequest", None
        if headers.get("if-match", item.etag) != item.etag:
            return 412, "PreconditionFailed", None
        return 200, "", item


def new_key() -> str:
    """A customer's key, as the storage wants to be told it."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def key_headers(key: str) -> dict[str, str]:
    """What a client has to send with each request."""
    return {f"{PREFIX}-algorithm": "AES256", f"{PREFIX}-key": key}


async def start(send: Send, status: int, length: int, headers: dict[str, Any]) -> None:
    """Sends the head of an answer."""
    fields = [(name.encode(), str(value).encode()) for name, value in headers.items()]
    fields.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": fields})

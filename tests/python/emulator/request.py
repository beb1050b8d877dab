"""One HTTP request, read whole: bounded, unpacked, and kept also when it is malformed, for the log.

The bodies of requests to the storage are files: they go to the disk as they are.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import program
from emulator.payload import Payload, receive_payload
from web import BodyTooLarge, Receive, Scope, read_body

LARGEST_BODY = 64 * 1024 * 1024
TOKEN = re.compile(r'\s*Snowflake\s+Token="([^"]*)"\s*', re.I)
GZIP_MAGIC = b"\x1f\x8b"


class BadRequest(Exception):
    """A request that no driver sends; answered with an HTTP status instead of an envelope."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class Request:
    """One request: what arrived, and whether it is in the log yet."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    peer: str
    local: str
    sni: str | None
    token: str | None
    problem: BadRequest | None = None
    logged: bool = False
    # The body, where it is on disk.
    payload: Payload | None = None

    @property
    def parameters(self) -> dict[str, str]:
        return dict(parse_qsl(self.query, keep_blank_values=True))

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            raise BadRequest(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise BadRequest(400, "the body is not a JSON object")
        return value


async def read_request(scope: Scope, receive: Receive) -> Request:
    """Reads a whole request. What is wrong with it goes into `problem`, so that it can still be logged."""
    problem: BadRequest | None = None
    body = b""
    try:
        body, whole = await read_body(receive, LARGEST_BODY)
        if not whole:
            problem = BadRequest(400, "the body ended early")
        # Decided by the bytes: drivers do not always say that they compress.
        elif body.startswith(GZIP_MAGIC):
            body = inflate(body)
    except BodyTooLarge:
        problem = BadRequest(413, "the body is too large")
    except zlib.error:
        problem = BadRequest(400, "the body's gzip is damaged")
    return request(scope, body, problem)


async def read_storage_request(scope: Scope, receive: Receive, folder: Path) -> Request:
    """Reads a request to the storage; its body becomes a file in `folder`."""
    payload, whole = await receive_payload(receive, folder)
    made = request(scope, b"", None if whole else BadRequest(400, "the body ended early"))
    made.payload = payload
    return made


def request(scope: Scope, body: bytes, problem: BadRequest | None) -> Request:
    """A request of which all has been read."""
    headers = headers_of(scope)
    authorization = TOKEN.fullmatch(headers.get("authorization", ""))
    return Request(
        scope["method"],
        scope["path"],
        scope["query_string"].decode("latin-1"),
        headers,
        body,
        program.format_address(scope.get("client")),
        program.format_address(scope.get("server")),
        scope.get("extensions", {}).get("snowfence.tls", {}).get("sni"),
        authorization[1] if authorization else None,
        problem,
    )


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers by lower-case name; repeated ones are one."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def inflate(data: bytes) -> bytes:
    """Unpacks gzip up to the size that a body may have."""
    inflater = zlib.decompressobj(wbits=31)
    plain = inflater.decompress(data, LARGEST_BODY)
    if inflater.unconsumed_tail:
        raise BodyTooLarge
    if not inflater.eof:
        raise zlib.error("incomplete")
    return plain

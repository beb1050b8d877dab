"""Sends objects, as all three clouds do: whole, a range of them, or nothing because of a condition."""

from __future__ import annotations

import asyncio
import email.utils
import re
from dataclasses import dataclass

from emulator.objects import Denied, Object
from emulator.payload import PIECE
from emulator.request import Request
from web import Send

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class BrokenOff(Exception):
    """The connection is to end here."""


@dataclass
class Delivery:
    """An object on its way: which bytes of it, with which head."""

    item: Object
    status: int
    headers: dict[str, str]
    begin: int
    end: int
    head: bool

    async def send(self, send: Send) -> None:
        """Sends it, in pieces. The first request for an object may have to break off."""
        headers = self.headers | {"content-length": str(self.end - self.begin)}
        fields = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": fields})
        if self.head:
            await send({"type": "http.response.body", "body": b""})
            return
        breaks, self.item.breaks = self.item.breaks, False
        half = (self.begin + self.end) // 2
        with self.item.payload.path.open("rb") as source:
            source.seek(self.begin)
            position = self.begin
            while position < self.end or position == self.begin:
                if breaks and position + PIECE > half:
                    piece = source.read(half - position)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    await asyncio.sleep(0.05)
                    raise BrokenOff
                piece = source.read(min(PIECE, self.end - position))
                position += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": position < self.end})
                if not piece:
                    return


def deliver(request: Request, item: Object, headers: dict[str, str]) -> Delivery:
    """The answer to a GET or a HEAD. A missing object is the cloud's own matter."""
    size = item.payload.size
    if (wanted := request.headers.get("if-match")) and wanted not in ("*", item.etag):
        raise Denied(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
    headers = {
        "content-type": "application/octet-stream",
        "accept-ranges": "bytes",
        "etag": item.etag,
        "last-modified": email.utils.formatdate(item.modified, usegmt=True),
        **item.headers,
        **headers,
    }
    if request.headers.get("if-none-match") in ("*", item.etag):
        return Delivery(item, 304, headers, 0, 0, True)
    begin, end, status = 0, size, 200
    match = RANGE.fullmatch(request.headers.get("x-ms-range") or request.headers.get("range", ""))
    if match and match[0] != "bytes=-":
        status = 206
        if match[1]:
            begin, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
        else:
            begin = max(size - int(match[2]), 0)
        if begin >= end:
            raise Denied(416, "InvalidRange", "The requested range is not satisfiable")
        headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
    return Delivery(item, status, headers, begin, end, request.method == "HEAD")

"""The bodies of storage requests: written to disk as they come, with their checksums, so that files may be large."""

from __future__ import annotations

import base64
import hashlib
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    # The server behind it is not where there is no more than Python.
    from web import Receive

PIECE = 64 * 1024
# Bodies up to this size are in the request log as they are.
LOGGED_BYTES = 4096


class Damaged(Exception):
    """A body that is not framed the way its headers say."""


@dataclass
class Payload:
    """A body on disk, and what identifies it."""

    path: Path
    size: int
    sha256: str
    md5: bytes
    crc32: int
    # It is part of something that is stored, and stays.
    kept: bool = False

    @property
    def content_md5(self) -> str:
        return base64.b64encode(self.md5).decode()

    @property
    def checksum(self) -> str:
        """The CRC-32 as clouds write it."""
        return base64.b64encode(self.crc32.to_bytes(4, "big")).decode()

    def read(self) -> bytes:
        """All of it: for bodies that are known to be small."""
        return self.path.read_bytes()

    def discard(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)


class Writer:
    """A new payload in the making."""

    def __init__(self, folder: Path) -> None:
        self._file: BinaryIO = tempfile.NamedTemporaryFile(dir=folder, delete=False)  # noqa: SIM115 - it outlives this
        self._path = Path(self._file.name)
        self._size, self._crc32 = 0, 0
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5()

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        self._file.write(data)
        self._size += len(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._sha256.update(data)
        self._md5.update(data)

    def finish(self) -> Payload:
        """The payload."""
        self._file.close()
        return Payload(self._path, self._size, self._sha256.hexdigest(), self._md5.digest(), self._crc32)


async def receive_payload(receive: Receive, folder: Path) -> tuple[Payload, bool]:
    """A request's body, and whether all of it came before the peer hung up."""
    writer = Writer(folder)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return writer.finish(), False
        writer.write(message.get("body", b""))
        if not message.get("more_body", False):
            return writer.finish(), True


def joined(payloads: list[Payload], folder: Path) -> Payload:
    """One payload of several."""
    writer = Writer(folder)
    for payload in payloads:
        with payload.path.open("rb") as source:
            while piece := source.read(PIECE):
                writer.write(piece)
    return writer.finish()


def unchunked(payload: Payload, folder: Path) -> tuple[Payload, dict[str, str]]:
    """What is inside the chunks that Amazon's SDKs send (`aws-chunked`), and the trailing headers."""
    writer = Writer(folder)
    trailers: dict[str, str] = {}
    with payload.path.open("rb") as source:
        while True:
            head = source.readline(1024)
            try:
                left = int(head.partition(b";")[0].strip(), 16)
            except ValueError:
                raise Damaged from None
            if left == 0:
                break
            while left:
                piece = source.read(min(PIECE, left))
                if not piece:
                    raise Damaged
                writer.write(piece)
                left -= len(piece)
            if source.read(2) != b"\r\n":
                raise Damaged
        for line in source.read(4096).decode("latin-1").splitlines():
            name, separator, value = line.partition(":")
            if separator:
                trailers[name.strip().lower()] = value.strip()
    return writer.finish(), trailers

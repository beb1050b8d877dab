"""Reads payloads by their documented format alone: nothing here comes from the agent.

`payloads.py keys` prints a new identity and its public key. `payloads.py read JOURNAL SPOOL IDENTITY` prints each payload
as a line of JSON, after checking every digest on the way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pyrage
import zstandard

HEAD = struct.Struct("<4sI16s16s16sIIq32s")
FRAME = struct.Struct("<BQI")
KINDS = ("request", "request_body", "answer", "answer_body", "end")


def keys() -> None:
    identity = pyrage.x25519.Identity.generate()
    print(json.dumps({"identity": str(identity), "recipient": str(identity.to_public())}))


def entry(spool: Path, row: sqlite3.Row, place: dict[str, int]) -> tuple[bytes, bytes]:
    """What is sealed in an entry, and its digest. It may be an earlier payload's, with the same content."""
    with (spool / row["run"] / f"{place['segment']:08}.segment").open("rb") as segment:
        segment.seek(place["offset"])
        head = segment.read(HEAD.size)
        sealed = segment.read(place["length"])
    magic, version, payload, session, statement, _piece, length, _time, digest = HEAD.unpack(head)
    assert (magic, version, length) == (b"SNFP", 1, place["length"]), head
    if str(UUID(bytes=payload)) == row["id"]:
        for name, found in (("session", session), ("statement", statement)):
            assert str(UUID(bytes=found)) == row[name], name
    assert hashlib.sha256(head[:-32] + sealed).digest() == digest
    return sealed, digest


def frames(plain: bytes) -> Iterator[tuple[str, int, bytes]]:
    position = 0
    while position < len(plain):
        kind, micros, length = FRAME.unpack_from(plain, position)
        position += FRAME.size
        content = plain[position : position + length]
        assert len(content) == length
        position += length
        yield KINDS[kind], micros, content


def read(journal: str, spool: Path, identity: str) -> None:
    identities = [pyrage.x25519.Identity.from_str(identity)]
    connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    for row in connection.execute("SELECT * FROM payloads ORDER BY time, seq"):
        facts = ("id", "session", "statement", "query_id", "operation", "ending", "run")
        said: dict[str, Any] = {key: row[key] for key in facts}
        content = {kind: b"" for kind in KINDS}
        pieces, digests = [], hashlib.sha256()
        for place in json.loads(row["places"]):
            sealed, digest = entry(spool, row, place)
            digests.update(digest)
            plain = zstandard.ZstdDecompressor().decompressobj().decompress(pyrage.decrypt(sealed, identities))
            for kind, micros, piece in frames(plain):
                content[kind] += piece
                if kind == "answer_body":
                    pieces.append([micros or place.get("micros", 0), len(piece)])
        assert digests.hexdigest() == row["digest"]
        if row["ending"] not in ("lost", "truncated"):
            assert len(content["request_body"]) == row["request_bytes"]
        for kind in ("request", "answer", "end"):
            said[kind] = json.loads(content[kind]) if content[kind] else None
        for kind in ("request_body", "answer_body"):
            said[kind] = base64.b64encode(content[kind]).decode()
        print(json.dumps({**said, "pieces": pieces}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keys"]:
            keys()
        case ["read", journal, spool, identity]:
            read(journal, Path(spool), identity)
        case _:
            sys.exit(__doc__)

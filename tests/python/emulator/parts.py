"""Cuts large results: the first rows stay in the answer, the others go to the storage."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import re
from typing import Any

import pyarrow

from emulator.results import Results, key_headers, new_key

# Rows in the answer itself, and in each part.
INLINE_ROWS = 500
PART_ROWS = 20_000
# In a statement's text: the first request for each part breaks off; the key is told without the headers.
BREAKS = re.compile(r"/\* parts break off \*/")
ONLY_KEY = re.compile(r"/\* parts by key \*/")
# One more part, of so many mebibytes, which are nothing that a driver could read.
LARGE = re.compile(r"/\* a part of (\d{1,4}) MiB \*/")
MEBIBYTE = 1024 * 1024


def cut(data: dict[str, Any], query_id: str, sql: str, results: Results) -> dict[str, Any]:
    """The result, with what is beyond the first rows in parts."""
    if data.get("rowsetBase64"):
        first, parts = cut_arrow(data["rowsetBase64"])
    elif isinstance(data.get("rowset"), list):
        first, parts = cut_json(data["rowset"])
    else:
        return data
    large = LARGE.search(sql)
    if not parts and not large:
        return data
    key, breaks = new_key(), bool(BREAKS.search(sql))
    chunks = []
    for number, (rows, body) in enumerate(parts):
        url = results.put(f"/results/{query_id}_{number}/main/data_{number}", body, key, breaks)
        size = {"rowCount": rows, "uncompressedSize": len(body), "compressedSize": len(body) // 2}
        chunks.append({"url": url, **size})
    if large:
        body = noise(int(large[1]))
        url = results.put_as_it_is(f"/results/{query_id}_large/main/data", body, key)
        chunks.append({"url": url, "rowCount": 1, "uncompressedSize": len(body), "compressedSize": len(body)})
    headers = {} if ONLY_KEY.search(sql) else {"chunkHeaders": key_headers(key)}
    return {**data, **first, "chunks": chunks, "qrmk": key, **headers, "returned": data.get("total")}


@functools.cache
def noise(mebibytes: int) -> bytes:
    """Bytes without order."""
    return os.urandom(mebibytes * MEBIBYTE)


def cut_json(rows: list[Any]) -> tuple[dict[str, Any], list[tuple[int, bytes]]]:
    """Rows as JSON: in a part they stand without the outer brackets."""
    parts = []
    for begin in range(INLINE_ROWS, len(rows), PART_ROWS):
        part = rows[begin : begin + PART_ROWS]
        parts.append((len(part), json.dumps(part, separators=(",", ":"))[1:-1].encode()))
    return {"rowset": rows[:INLINE_ROWS]}, parts


def cut_arrow(encoded: str) -> tuple[dict[str, Any], list[tuple[int, bytes]]]:
    """Rows as a stream of Arrow's: each part is one of its own."""
    table = pyarrow.ipc.open_stream(base64.b64decode(encoded)).read_all()
    parts = []
    for begin in range(INLINE_ROWS, table.num_rows, PART_ROWS):
        part = table.slice(begin, PART_ROWS)
        parts.append((part.num_rows, stream(part)))
    if not parts:
        return {}, []
    return {"rowsetBase64": base64.b64encode(stream(table.slice(0, INLINE_ROWS))).decode()}, parts


def stream(table: pyarrow.Table) -> bytes:
    """A table as a stream of Arrow's."""
    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()

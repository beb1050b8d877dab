"""ClickHouse's HTTP interface over the ClickHouse engine in this process (chdb): the audit store of the tests.

    python clickhouse.py --listen 10.77.1.2:8123 --data /tmp/sandbox/clickhouse
    curl 'http://10.77.1.2:8123/?query=SELECT+1'

One session, one query at a time. It has no users: any user and password is taken. Data stays in --data.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import tempfile
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from urllib.parse import parse_qsl

import lz4.block
from chdb.session import Session
from clickhouse_cityhash.cityhash import CityHash128

import program
import web

LOGGER = logging.getLogger("clickhouse")
LARGEST_BODY = 512 * 1024 * 1024
BLOCK = 1024 * 1024
# Parameters of the HTTP interface itself; every other one is a setting of the query.
RESERVED = frozenset(
    "query database default_format compress decompress query_id user password quota_key role stacktrace buffer_size "
    "wait_end_of_query session_id session_timeout session_check close_session enable_http_compression "
    "client_protocol_version add_http_cors_header".split()
)
SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
COMMENT = re.compile(r"\A(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.S)
INSERT = re.compile(r"(insert\s.+?)(\ssettings\s.+?)?\sformat\s+(\w+)\s*;?\s*\Z", re.I | re.S)
FORM = re.compile(r'multipart/form-data\s*;.*boundary=(?:"([^"]+)"|([^\s;]+))', re.I)
FIELD_NAME = re.compile(rb'content-disposition:[^\r\n]*\bname="([^"]*)"', re.I)
READING = ("select", "with", "show", "describe", "desc", "exists", "explain", "(")
ERROR = re.compile(r"Code: (\d+)")
STATUS_OF_ERROR = {
    # As ClickHouse's own server maps them: unknown things, wrong text, missing rights, limits.
    **dict.fromkeys((16, 46, 47, 50, 56, 60, 63, 73, 81, 115, 511), 404),
    **dict.fromkeys((6, 26, 27, 36, 38, 41, 42, 43, 44, 53, 62, 69, 70, 72, 117, 130, 158, 456, 457), 400),
    **dict.fromkeys((193, 194, 516), 403),
    **dict.fromkeys((159,), 408),
    **dict.fromkeys((381,), 411),
    **dict.fromkeys((48,), 501),
    **dict.fromkeys((202, 209, 210), 503),
}


class QueryError(Exception):
    """An error of ClickHouse: its code and its text."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass
class Result:
    """What a query gave back."""

    data: bytes
    format: str
    summary: dict[str, str]


class Engine:
    """The one chdb session. Not thread-safe: all calls come from one thread."""

    def __init__(self, data: Path, config: Path | None = None) -> None:
        self._data = data
        self._session = Session(f"{data}?config-file={config}" if config else str(data))

    def close(self) -> None:
        """Closes the session; its data stays."""
        self._session.close()

    def run(self, query: str, data: bytes, parameters: dict[str, str], default_format: str) -> Result:
        """Runs one query with the HTTP interface's parameters; `data` are the rows of an INSERT."""
        settings = {
            name: value for name, value in parameters.items() if name not in RESERVED and not name.startswith("param_")
        }
        values = {name[6:]: value for name, value in parameters.items() if name.startswith("param_")}
        changed: list[str] = []
        try:
            self._query(f"USE {quoted(parameters.get('database') or 'default', '`')}")
            for name, value in settings.items():
                if not SETTING.fullmatch(name):
                    raise QueryError(115, f"Code: 115. DB::Exception: Unknown setting '{name}'. (UNKNOWN_SETTING)")
                self._query(f"SET {name} = {quoted(value)}")
                changed.append(name)
            if data:
                return self._insert(query, data, values)
            return self._query(query, default_format, values)
        finally:
            for name in changed:
                self._query(f"SET {name} = DEFAULT")

    def _insert(self, query: str, data: bytes, values: dict[str, str]) -> Result:
        match = INSERT.fullmatch(query)
        if match is None:
            return self._query(query + "\n" + data.decode("utf-8", "surrogateescape"), "TabSeparated", values)
        with tempfile.NamedTemporaryFile(prefix="insert-", suffix=".rows") as file:
            file.write(data)
            file.flush()
            statement = f"{match[1]} FROM INFILE {quoted(file.name)}{match[2] or ''} FORMAT {match[3]}"
            return self._query(statement, "TabSeparated", values)

    def _query(self, query: str, format_: str = "TabSeparated", values: dict[str, str] | None = None) -> Result:
        try:
            result = self._session.query(query, format_, params=values or None)
        except Exception as error:  # chdb raises ChdbError and RuntimeError for errors of the query
            text = str(error)
            found = ERROR.search(text)
            raise QueryError(int(found[1]) if found else 1002, text) from None
        counts = {
            "read_rows": str(result.storage_rows_read()),
            "read_bytes": str(result.storage_bytes_read()),
            "written_rows": str(result.rows_written()),
            "written_bytes": str(result.bytes_written()),
        }
        return Result(result.bytes() or b"", format_, counts)


class Front:
    """The HTTP interface as an ASGI application."""

    def __init__(self, engine: Engine, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        try:
            answer = await self._answer(scope, receive)
        except QueryError as error:
            answer = error_answer(error)
        except web.BodyTooLarge:
            answer = web.Answer(413, b"the body is too large\n")
        except Exception as error:
            LOGGER.exception("a request failed inside the front")
            answer = error_answer(QueryError(1002, f"Code: 1002. DB::Exception: {error}. (UNKNOWN_EXCEPTION)"))
        await answer.send(send)

    async def _answer(self, scope: web.Scope, receive: web.Receive) -> web.Answer:
        if scope["path"] == "/ping":
            return web.Answer(200, b"Ok.\n")
        if scope["path"] not in ("/", "/query"):
            return web.Answer(404, f"There is no handle {scope['path']}\n".encode())
        method = scope["method"]
        if method not in ("GET", "POST"):
            return web.Answer(405, b"use GET or POST\n", headers={"allow": "GET, POST"})
        parameters = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body, whole = await web.read_body(receive, LARGEST_BODY)
        if not whole:
            raise QueryError(210, "Code: 210. DB::Exception: The client hung up. (NETWORK_ERROR)")
        body = unpack(body, headers.get("content-encoding", ""))
        if parameters.get("decompress") == "1":
            body = decompress(body)
        if form := FORM.match(headers.get("content-type", "")):
            parameters |= form_fields(body, (form[1] or form[2]).encode())
            body = b""
        query, data = statement(parameters.get("query", ""), body)
        if method == "GET":
            require_reading(query)
        format_ = parameters.get("default_format") or headers.get("x-clickhouse-format") or "TabSeparated"
        if "database" not in parameters and "x-clickhouse-database" in headers:
            parameters["database"] = headers["x-clickhouse-database"]
        if not query.strip():
            if method == "GET" and scope["path"] == "/":
                return web.Answer(200, b"Ok.\n")
            raise QueryError(62, "Code: 62. DB::Exception: Syntax error: empty query. (SYNTAX_ERROR)")
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._thread, self._engine.run, query, data, parameters, format_)
        output = compress(result.data) if parameters.get("compress") == "1" else result.data
        return web.Answer(
            200,
            output,
            headers={
                "x-clickhouse-query-id": parameters.get("query_id") or str(uuid.uuid4()),
                "x-clickhouse-format": result.format,
                "x-clickhouse-summary": dumps(result.summary),
            },
        )


def form_fields(body: bytes, boundary: bytes) -> dict[str, str]:
    """The fields of a multipart form, by which clients send a query with parameters."""
    fields: dict[str, str] = {}
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:]:
        head, separator, value = part.partition(b"\r\n\r\n")
        if separator and (name := FIELD_NAME.search(head)):
            fields[name[1].decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    return fields


def statement(query: str, body: bytes) -> tuple[str, bytes]:
    """The statement, and the rows that come with it: the query is a parameter, the body, or one after the other."""
    if not query.strip():
        return body.decode("utf-8", "surrogateescape"), b""
    if without_comment(query).lower().startswith("insert"):
        return without_comment(query), body
    return (f"{query}\n{body.decode('utf-8', 'surrogateescape')}" if body else query), b""


def without_comment(query: str) -> str:
    """The query from its first word on."""
    return COMMENT.sub("", query, count=1)


def require_reading(query: str) -> None:
    """GET only reads, as in ClickHouse."""
    if query.strip() and not without_comment(query).lower().startswith(READING):
        message = "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly"
        raise QueryError(164, f"Code: 164. DB::Exception: {message}. (READONLY)")


def quoted(text: str, mark: str = "'") -> str:
    """A text as a literal of ClickHouse's SQL, or with backticks as an identifier."""
    return mark + text.replace("\\", "\\\\").replace(mark, "\\" + mark) + mark


def unpack(body: bytes, encoding: str) -> bytes:
    """Undoes HTTP's own compression."""
    if encoding not in ("gzip", "deflate"):
        return body
    try:
        # 47: gzip or zlib, whichever the header says.
        inflater = zlib.decompressobj(wbits=47)
        plain = inflater.decompress(body, LARGEST_BODY)
    except zlib.error as error:
        raise QueryError(354, f"Code: 354. DB::Exception: {error}. (ZLIB_INFLATE_FAILED)") from None
    if inflater.unconsumed_tail:
        raise web.BodyTooLarge
    return plain


def decompress(body: bytes) -> bytes:
    """Undoes ClickHouse's native compression: checksum, method, sizes and data of each block."""
    blocks: list[bytes] = []
    position = 0
    total = 0
    while position < len(body):
        header = body[position + 16 : position + 25]
        if len(header) < 9:
            raise damaged("a block's header is cut off")
        packed_size, plain_size = int.from_bytes(header[1:5], "little"), int.from_bytes(header[5:9], "little")
        block = body[position + 16 : position + 16 + packed_size]
        total += plain_size
        if packed_size < 9 or len(block) != packed_size or total > LARGEST_BODY:
            raise damaged("a block's size is wrong")
        if checksum(block) != body[position : position + 16]:
            raise QueryError(40, "Code: 40. DB::Exception: Checksum doesn't match. (CHECKSUM_DOESNT_MATCH)")
        try:
            blocks.append(block[9:] if header[0] == 0x02 else lz4_block(header[0], block[9:], plain_size))
        except lz4.block.LZ4BlockError as error:
            raise damaged(str(error)) from None
        position += 16 + packed_size
    return b"".join(blocks)


def lz4_block(method: int, data: bytes, plain_size: int) -> bytes:
    """Unpacks one LZ4 block."""
    if method != 0x82:
        raise QueryError(89, f"Code: 89. DB::Exception: Unknown method {method:#x}. (UNKNOWN_COMPRESSION_METHOD)")
    return bytes(lz4.block.decompress(data, uncompressed_size=plain_size))


def compress(data: bytes) -> bytes:
    """ClickHouse's native compression with LZ4."""
    blocks: list[bytes] = []
    for start in range(0, len(data), BLOCK):
        plain = data[start : start + BLOCK]
        packed = lz4.block.compress(plain, store_size=False)
        block = b"\x82" + (len(packed) + 9).to_bytes(4, "little") + len(plain).to_bytes(4, "little") + packed
        blocks.append(checksum(block) + block)
    return b"".join(blocks)


def checksum(block: bytes) -> bytes:
    """CityHash128 in the version that ClickHouse froze."""
    value: int = CityHash128(block)
    # The library holds the first half of the digest in the number's high bits; each half goes out low byte first.
    return (value >> 64).to_bytes(8, "little") + (value & (2**64 - 1)).to_bytes(8, "little")


def damaged(reason: str) -> QueryError:
    """A body whose compression makes no sense."""
    return QueryError(271, f"Code: 271. DB::Exception: Cannot decompress: {reason}. (CANNOT_DECOMPRESS)")


def error_answer(error: QueryError) -> web.Answer:
    """An error the way ClickHouse's server sends it."""
    status = STATUS_OF_ERROR.get(error.code, 500)
    headers = {"x-clickhouse-exception-code": str(error.code)}
    return web.Answer(status, error.message.rstrip().encode("utf-8", "replace") + b"\n", headers=headers)


async def main(options: argparse.Namespace) -> None:
    """Serves until a signal comes."""
    listeners = [program.bind(address) for address in options.listen]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="chdb") as thread:
        try:
            options.data.mkdir(parents=True, exist_ok=True)
            engine = await loop.run_in_executor(thread, Engine, options.data, options.config)
        except Exception as error:  # whatever it is, the data directory cannot be used
            raise program.StartError(f"cannot open the data in {options.data}: {error}") from None
        # After the engine has started: it installs handlers of its own.
        stop = program.stop_on_signal()
        await web.serve(Front(engine, thread), listeners, stop, data=str(options.data))
        await loop.run_in_executor(thread, engine.close)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s clickhouse %(levelname)s %(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listen", action="append", required=True, metavar="ADDR:PORT", help="repeat for several")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where the tables are kept")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration of ClickHouse, in XML")
    program.run(main(parser.parse_args()))

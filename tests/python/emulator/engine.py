"""fakesnow as the engine: connections, execution of one statement, and results in both wire formats."""

from __future__ import annotations

import datetime
import decimal
import json
import logging
import math
import re
import secrets
from typing import Any

import fakesnow.server as fakesnow_server
import pyarrow
from fakesnow.fakes import FakeSnowflakeConnection
from starlette.requests import Request

from emulator.protocol import Refusal

LOGGER = logging.getLogger("upstream.engine")
EPOCH_DATE = datetime.date(1970, 1, 1)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
# What fakesnow, or rather the exception that it raises, puts before each message.
ENGINE_PREFIX = re.compile(r"\A\d{6} \(\w+\): (?:None: )?")
# What fakesnow can describe; anything else it would execute, which a describe request must not do.
DESCRIBABLE = (
    "select",
    "with",
    "show",
    "describe",
    "insert",
    "update",
    "delete",
    "merge",
    "create",
    "drop",
    "alter",
)


class Engine:
    """fakesnow's in-memory database, shared by all sessions."""

    def __init__(self) -> None:
        self._database = fakesnow_server.shared_fs

    def connect(
        self, database: str | None, schema: str | None, autocommit: bool
    ) -> tuple[str, FakeSnowflakeConnection]:
        """A new connection, and the token under which `execute` finds it."""
        token = secrets.token_urlsafe(16)
        connection = self._database.connect(database, schema, autocommit=autocommit)
        fakesnow_server.sessions[token] = connection
        return token, connection

    def refuse_unknown_names(self) -> None:
        """From now on a login that names an unknown database or schema gets none; fakesnow would create it."""
        self._database.create_database_on_connect = False
        self._database.create_schema_on_connect = False

    def disconnect(self, token: str) -> None:
        """Closes a connection; an open transaction is rolled back."""
        connection = fakesnow_server.sessions.pop(token, None)
        if connection is not None:
            connection.close()

    async def execute(self, token: str, request: dict[str, Any], host: str, wants_json: bool) -> dict[str, Any]:
        """Runs one statement and returns the reply's `data`; raises `Refusal` with the engine's error.

        `request` is the body of a query request. With `wants_json`, rows come as JSON instead of Arrow.
        """
        sql = str(request["sqlText"])
        if request.get("describeOnly") and not sql.lstrip(" \t\r\n(").lower().startswith(DESCRIBABLE):
            return status_result("Statement executed successfully.", 0)
        try:
            response = await fakesnow_server.query_request(internal_request(token, request, host))
            envelope = json.loads(bytes(response.body))
        except Exception as error:  # whatever a statement does to the engine is that statement's error
            LOGGER.warning("the engine failed on %.200r: %s: %s", sql, type(error).__name__, error)
            raise Refusal("000603", f"SQL execution internal error: {type(error).__name__}.", "XX000") from None
        if not envelope["success"]:
            if response.status_code != 200:
                raise Refusal("000603", "SQL execution internal error: the engine cannot run this statement.", "XX000")
            state = (envelope.get("data") or {}).get("sqlState") or "42000"
            raise Refusal(envelope["code"], ENGINE_PREFIX.sub("", envelope["message"]), state)
        data: dict[str, Any] = envelope["data"]
        # fakesnow keeps every result for ever; here the query that it belongs to keeps it.
        kept = self._database.results_cache.pop(str(data.get("queryId")), None)
        if data.get("queryResultFormat") == "arrow" and wants_json:
            encoded = data.pop("rowsetBase64")
            data["rowset"] = json_rows(kept[0], data["rowtype"]) if encoded and kept else []
            data["queryResultFormat"] = "json"
        return data


def internal_request(token: str, body: dict[str, Any], host: str) -> Request:
    """The request that fakesnow's handler expects, without a detour over its router."""
    payload = json.dumps(body).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": payload, "more_body": False}

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "server": (host, 443),
        "path": "/queries/v1/query-request",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", host.encode()), (b"authorization", f'Snowflake Token="{token}"'.encode())],
    }
    return Request(scope, receive)


def status_result(text: str, type_id: int, name: str = "status") -> dict[str, Any]:
    """A result of one row that says `text`, as DDL and session statements have it."""
    return text_result([name], [[text]], type_id)


def text_result(names: list[str], rows: list[list[str | None]], type_id: int) -> dict[str, Any]:
    """A result whose columns are texts, or numbers if their name begins with `#`."""
    return {
        "parameters": [],
        "rowtype": [column(name) for name in names],
        "rowset": rows,
        "total": len(rows),
        "statementTypeId": type_id,
        "queryResultFormat": "json",
    }


def column(name: str) -> dict[str, Any]:
    """The description of a column."""
    described = {"database": "", "schema": "", "table": "", "nullable": True, "collation": None}
    if name.startswith("#"):
        number = {"type": "fixed", "byteLength": None, "length": None, "scale": 0, "precision": 38}
        return {"name": name[1:], **described, **number}
    text = {"type": "text", "byteLength": 16777216, "length": 16777216, "scale": None, "precision": None}
    return {"name": name, **described, **text}


def json_rows(table: pyarrow.Table, rowtype: list[dict[str, Any]]) -> list[list[str | None]]:
    """A result in the JSON format, in which every value is a text."""
    columns = [
        [json_value(value, kind["type"]) for value in column.to_pylist()]
        for column, kind in zip(table.columns, rowtype)
    ]
    return [list(row) for row in zip(*columns)]


def json_value(value: Any, kind: str) -> str | None:
    """One value of a result as Snowflake's JSON format writes it for the column type `kind`."""
    if value is None:
        return None
    if kind == "boolean":
        return "1" if value else "0"
    if isinstance(value, float):
        return str(value).replace("inf", "Infinity") if math.isinf(value) else repr(value)
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex().upper()
    if isinstance(value, datetime.datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
        microseconds = (moment - EPOCH) // datetime.timedelta(microseconds=1)
        sign, magnitude = ("-", -microseconds) if microseconds < 0 else ("", microseconds)
        text = f"{sign}{magnitude // 1_000_000}.{magnitude % 1_000_000:06d}000"
        # 1440 is UTC: Snowflake counts the offset in minutes, 1440 ahead.
        return f"{text} 1440" if kind == "timestamp_tz" else text
    if isinstance(value, datetime.date):
        return str((value - EPOCH_DATE).days)
    if isinstance(value, datetime.time):
        return f"{value.hour * 3600 + value.minute * 60 + value.second}.{value.microsecond:06d}000"
    return str(value)

"""What the account remembers of statements and logins, asked for as a real one is: `QUERY_HISTORY` and `LOGIN_HISTORY`.

The table functions of `SNOWFLAKE.INFORMATION_SCHEMA` reach back seven days and are at once up to date; the views of
`SNOWFLAKE.ACCOUNT_USAGE` want a role that was granted the database. Other users' rows are for such a role alone. The
rest of a statement (columns, conditions, joins, limits) is the engine's.
"""

from __future__ import annotations

import datetime
import re
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow
import sqlglot
from sqlglot import exp

from emulator.engine import EPOCH, column, json_value, text_result
from emulator.protocol import Refusal
from emulator.request import Request
from emulator.sessions import Session

if TYPE_CHECKING:
    from emulator.queries import Query

KEPT = 50_000
DAYS = 7
USUAL_ROWS, MOST_ROWS = 100, 10_000
# The roles that were granted the database SNOWFLAKE, and MONITOR on what others do.
AUDITORS = ("ACCOUNTADMIN", "SNOWFENCE_AUDITOR")
MENTIONED = re.compile(r"\bsnowflake\s*\.\s*(information_schema|account_usage)\s*\.", re.I)
# As drivers are called in LOGIN_HISTORY.
CLIENTS = {"PythonConnector": "PYTHON_DRIVER", "JavaScript": "JAVASCRIPT_DRIVER", "Go": "GO_DRIVER", "JDBC": "JDBC_DRIVER"}
FACTORS = {"SNOWFLAKE_JWT": "RSA_KEYPAIR", "OAUTH": "OAUTH_ACCESS_TOKEN"}

QUERY_COLUMNS = {
    "QUERY_ID": "VARCHAR",
    "QUERY_TEXT": "VARCHAR",
    "DATABASE_NAME": "VARCHAR",
    "SCHEMA_NAME": "VARCHAR",
    "SESSION_ID": "BIGINT",
    "USER_NAME": "VARCHAR",
    "ROLE_NAME": "VARCHAR",
    "WAREHOUSE_NAME": "VARCHAR",
    "QUERY_TAG": "VARCHAR",
    "EXECUTION_STATUS": "VARCHAR",
    "ERROR_CODE": "VARCHAR",
    "ERROR_MESSAGE": "VARCHAR",
    "START_TIME": "TIMESTAMPTZ",
    "END_TIME": "TIMESTAMPTZ",
    "TOTAL_ELAPSED_TIME": "BIGINT",
    "IS_CLIENT_GENERATED_STATEMENT": "BOOLEAN",
}
LOGIN_COLUMNS = {
    "EVENT_TIMESTAMP": "TIMESTAMPTZ",
    "EVENT_ID": "BIGINT",
    "EVENT_TYPE": "VARCHAR",
    "USER_NAME": "VARCHAR",
    "CLIENT_IP": "VARCHAR",
    "REPORTED_CLIENT_TYPE": "VARCHAR",
    "REPORTED_CLIENT_VERSION": "VARCHAR",
    "FIRST_AUTHENTICATION_FACTOR": "VARCHAR",
    "SECOND_AUTHENTICATION_FACTOR": "VARCHAR",
    "IS_SUCCESS": "VARCHAR",
    "ERROR_CODE": "BIGINT",
    "ERROR_MESSAGE": "VARCHAR",
}
SESSION_COLUMNS = {
    "SESSION_ID": "BIGINT",
    "CREATED_ON": "TIMESTAMPTZ",
    "USER_NAME": "VARCHAR",
    "AUTHENTICATION_METHOD": "VARCHAR",
    "LOGIN_EVENT_ID": "BIGINT",
    "CLIENT_APPLICATION_ID": "VARCHAR",
    "CLIENT_APPLICATION_VERSION": "VARCHAR",
}
TYPES = {
    "VARCHAR": pyarrow.string(),
    "BIGINT": pyarrow.int64(),
    "BOOLEAN": pyarrow.bool_(),
    "TIMESTAMPTZ": pyarrow.timestamp("us", tz="UTC"),
}
ARGUMENTS = {
    "QUERY_HISTORY": {"END_TIME_RANGE_START", "END_TIME_RANGE_END", "RESULT_LIMIT", "INCLUDE_CLIENT_GENERATED_STATEMENT"},
    "LOGIN_HISTORY": {"TIME_RANGE_START", "TIME_RANGE_END", "RESULT_LIMIT"},
}


@dataclass
class Event:
    """A login."""

    id: int
    user: str
    address: str
    client: str
    version: str
    factor: str
    error: Refusal | None
    session: int | None = None
    time: float = field(default_factory=time.time)


class History:
    """All that was executed, and all logins."""

    def __init__(self) -> None:
        self._queries: deque[Query] = deque(maxlen=KEPT)
        self._logins: deque[Event] = deque(maxlen=KEPT)
        self._last_event = 500

    def executed(self, query: Query) -> None:
        """Takes down a query, which may only have begun."""
        self._queries.append(query)

    def login(self, request: Request, login: dict[str, Any], user: str, error: Refusal | None = None) -> Event:
        """Takes down a login."""
        self._last_event += 4
        name, version = str(login.get("CLIENT_APP_ID") or "OTHER"), str(login.get("CLIENT_APP_VERSION") or "")
        kind = str(login.get("AUTHENTICATOR") or "PASSWORD").upper()
        factor = "PASSWORD" if kind == "SNOWFLAKE" else FACTORS.get(kind, kind)
        address = request.peer.rpartition(":")[0].strip("[]")
        event = Event(self._last_event, user.upper(), address, CLIENTS.get(name, name), version, factor, error)
        self._logins.append(event)
        return event

    def answer(self, sql: str, session: Session) -> dict[str, Any] | None:
        """The answer to a statement about the history; nothing if it is about something else."""
        if not MENTIONED.search(sql):
            return None
        try:
            tree = sqlglot.parse_one(sql, read="snowflake")
        except sqlglot.errors.SqlglotError as error:
            raise Refusal("001003", f"SQL compilation error:\n{str(error)[:200]}", "42000") from None
        database = duckdb.connect(":memory:")
        try:
            database.execute("SET TimeZone = 'UTC'")
            for source in list(tree.find_all(exp.Table, exp.TableFromRows)):
                self._provide(database, source, session)
            result = database.execute(tree.sql(dialect="duckdb"))
            names = [described[0] for described in result.description or []]
            kinds = [str(described[1]).upper() for described in result.description or []]
            return rows_as_text(names, kinds, result.fetchall())
        except duckdb.Error as error:
            raise Refusal("000904", f"SQL compilation error:\n{str(error).splitlines()[0][:200]}", "42000") from None
        finally:
            database.close()

    def _provide(
        self, database: duckdb.DuckDBPyConnection, source: exp.Table | exp.TableFromRows, session: Session
    ) -> None:
        """Puts what a source names into the database, and the name that it has there into the statement."""
        call = source.this.expression if isinstance(source, exp.TableFromRows) else None
        dotted = source.this.this.sql() if call is not None else f"{source.catalog}.{source.db}"
        name = str(call.this if call is not None else source.name).upper()
        if dotted.upper() == "SNOWFLAKE.INFORMATION_SCHEMA" and call is not None:
            columns, rows = self._function(name, call, session)
        elif dotted.upper() == "SNOWFLAKE.ACCOUNT_USAGE" and call is None:
            if session.role not in AUDITORS:
                message = "SQL compilation error:\nSchema 'SNOWFLAKE.ACCOUNT_USAGE' does not exist or not authorized."
                raise Refusal("002003", message, "02000")
            columns, rows = self._view(name)
        else:
            message = f"SQL compilation error:\nObject '{dotted}.{name}' does not exist or not authorized."
            raise Refusal("002003", message, "42S02")
        made = f"history_{len(database.execute('SHOW TABLES').fetchall())}"
        arrays = [pyarrow.array([row[at] for row in rows], TYPES[kind]) for at, kind in enumerate(columns.values())]
        table = pyarrow.table(arrays, names=list(columns))
        database.register("given", table)
        database.execute(f"CREATE TABLE {made} AS SELECT * FROM given")
        database.unregister("given")
        alias = source.args.get("alias")
        replacement = exp.to_table(made)
        replacement.set("alias", alias)
        source.replace(replacement)

    def _view(self, name: str) -> tuple[dict[str, str], list[list[Any]]]:
        if name == "QUERY_HISTORY":
            return QUERY_COLUMNS, [query_row(query) for query in self._queries if query.ended is not None]
        if name == "LOGIN_HISTORY":
            return LOGIN_COLUMNS, [login_row(event) for event in self._logins]
        if name == "SESSIONS":
            return SESSION_COLUMNS, [session_row(event) for event in self._logins if event.session is not None]
        raise Refusal("002003", f"SQL compilation error:\nObject 'SNOWFLAKE.ACCOUNT_USAGE.{name}' does not exist.", "42S02")

    def _function(self, name: str, call: exp.Anonymous, session: Session) -> tuple[dict[str, str], list[list[Any]]]:
        kind = name.removesuffix("_BY_USER")
        if kind not in ARGUMENTS:
            raise Refusal("002141", f"SQL compilation error:\nUnknown table function {name}.", "42601")
        given = arguments(call, ARGUMENTS[kind] | ({"USER_NAME"} if kind != name else set()))
        limit = given.get("RESULT_LIMIT", USUAL_ROWS)
        if not 1 <= limit <= MOST_ROWS:
            raise Refusal("001021", f"invalid value [{limit}] for parameter 'RESULT_LIMIT'", "22023")
        prefix = "END_TIME_RANGE" if kind == "QUERY_HISTORY" else "TIME_RANGE"
        begin, end = given.get(f"{prefix}_START"), given.get(f"{prefix}_END")
        oldest = time.time() - DAYS * 24 * 3600
        for moment in (begin, end):
            if moment is not None and moment < oldest:
                raise Refusal("090064", "Cannot retrieve data from more than 7 days ago.", "22023")
        user = named(given["USER_NAME"]) if "USER_NAME" in given else session.user if kind != name else None
        shown = [user] if user else None
        if session.role not in AUDITORS:
            shown = [session.user] if shown in (None, [session.user]) else []
        within = lambda moment: (begin is None or moment >= begin) and (end is None or moment <= end)
        if kind == "LOGIN_HISTORY":
            events = [event for event in self._logins if within(event.time) and (shown is None or event.user in shown)]
            return LOGIN_COLUMNS, [login_row(event) for event in events[-limit:]]
        internal = given.get("INCLUDE_CLIENT_GENERATED_STATEMENT", False)
        queries = [
            query
            for query in self._queries
            if (shown is None or query.user in shown)
            and (internal or not query.request.get("isInternal"))
            and (within(query.ended) if query.ended is not None else end is None)
        ]
        return QUERY_COLUMNS, [query_row(query) for query in queries[-limit:]]


def arguments(call: exp.Anonymous, known: set[str]) -> dict[str, Any]:
    """The named arguments of a table function."""
    given: dict[str, Any] = {}
    for argument in call.find_all(exp.Kwarg):
        name, value = argument.this.name.upper(), argument.expression
        if name not in known:
            raise Refusal("001044", f"SQL compilation error:\nInvalid argument {name}.", "42P13")
        if isinstance(value, exp.Boolean):
            given[name] = bool(value.this)
        elif isinstance(value, exp.Literal):
            given[name] = value.this if value.is_string else int(value.this)
        else:
            if not isinstance(value, exp.UnixToTime) or str(value.args.get("target_type")) != "TIMESTAMPLTZ":
                raise Refusal("001065", "SQL compilation error:\nFunction expects a TIMESTAMP_LTZ.", "22023")
            given[name] = int(value.this.this) / 10 ** int(value.args["scale"].this)
    return given


def named(text: str) -> str:
    """A user's name as it is written in a text: upper-case unless quoted."""
    if len(text) > 2 and text.startswith('"') and text.endswith('"'):
        return text[1:-1].replace('""', '"')
    if not re.fullmatch(r"[A-Za-z_][\w$]*", text):
        raise Refusal("001003", f"SQL compilation error:\nInvalid identifier {text[:80]}.", "42000")
    return text.upper()


def moment(seconds: float | None) -> datetime.datetime | None:
    """A time as these tables have it, in milliseconds."""
    if seconds is None:
        return None
    return EPOCH + datetime.timedelta(milliseconds=int(seconds * 1000))


def query_row(query: Query) -> list[Any]:
    """A row of QUERY_HISTORY."""
    session, error = query.session, query.error
    status = "RUNNING" if query.ended is None else "FAILED_WITH_ERROR" if error else "SUCCESS"
    tag = (query.request.get("parameters") or {}).get("QUERY_TAG", session.parameters.get("QUERY_TAG", ""))
    return [
        query.id,
        str(query.request["sqlText"])[:100_000],
        session.connection.database,
        session.connection.schema,
        session.id,
        query.user,
        session.role,
        session.warehouse,
        str(tag),
        status,
        error.code if error else None,
        error.message if error else None,
        moment(query.started),
        moment(query.ended),
        int(((query.ended or time.time()) - query.started) * 1000),
        bool(query.request.get("isInternal")),
    ]


def login_row(event: Event) -> list[Any]:
    """A row of LOGIN_HISTORY."""
    success, error = "NO" if event.error else "YES", event.error
    who = [event.user, event.address, event.client, event.version, event.factor, None]
    return [moment(event.time), event.id, "LOGIN", *who, success, int(error.code) if error else None, error.message if error else None]


def session_row(event: Event) -> list[Any]:
    """A row of SESSIONS."""
    return [event.session, moment(event.time), event.user, event.factor, event.id, event.client, event.version]


def rows_as_text(names: list[str], kinds: list[str], rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    """A result in JSON, in which every value is a text."""
    data = text_result([], [], 0x1000)
    data["rowtype"] = [typed(name, kind) for name, kind in zip(names, kinds)]
    data["rowset"] = [[json_value(value, of["type"]) for value, of in zip(row, data["rowtype"])] for row in rows]
    data["total"] = len(rows)
    return data


def typed(name: str, kind: str) -> dict[str, Any]:
    """The description of a column of this type of the engine's."""
    if "TIME" in kind:
        return {**column(name), "type": "timestamp_ltz", "byteLength": None, "length": None, "scale": 9, "precision": 0}
    if kind in ("BIGINT", "INTEGER", "NUMBER"):
        return column("#" + name)
    return {**column(name), "type": "boolean"} if kind in ("BOOLEAN", "BOOL") else column(name)

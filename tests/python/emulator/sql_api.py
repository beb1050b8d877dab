"""Snowflake's SQL API v2: statements without a login, each request with its own credential and its own session.

Stricter than the real one where that shows a proxy's mistakes: fields that are not documented are refused.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emulator.credentials import Credentials
from emulator.engine import Engine
from emulator.protocol import Refusal
from emulator.queries import KEPT_QUERIES, Queries, Query
from emulator.request import BadRequest, Request
from emulator.sessions import Session, Sessions
from web import Answer

PATH = "/api/v2/statements"
ABOUT = re.compile(PATH + r"/([0-9a-f-]{36})(/cancel)?")
BEARER = re.compile(r"\s*Bearer\s+(\S+)\s*", re.I)
# What kinds of bearer tokens there are, as a login names them.
KINDS = {
    "OAUTH": "OAUTH",
    "KEYPAIR_JWT": "SNOWFLAKE_JWT",
    "PROGRAMMATIC_ACCESS_TOKEN": "PROGRAMMATIC_ACCESS_TOKEN",
}
FIELDS = {
    "statement": str,
    "timeout": int,
    "database": str,
    "schema": str,
    "warehouse": str,
    "role": str,
    "bindings": dict,
    "parameters": dict,
    "resultSetMetaData": dict,
}
# Not to be had here; those of the second kind only together with others.
NEVER = re.compile(r"\s*(put|get)\b", re.I)
NOT_ALONE = re.compile(r"\s*(use|set|unset|alter\s+session|begin|start\s+transaction|commit|rollback)\b", re.I)
# Rows in the first partition, and in each further one.
FIRST_ROWS = 1000
PARTITION_ROWS = 5000
RUNNING = "Asynchronous execution in progress. Use provided query id to perform query monitoring and management."


class Failure(Exception):
    """An error of HTTP, with Snowflake's code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass
class Submission:
    """How a statement was asked for."""

    query: Query
    request_id: str
    nullable: bool = True
    timed_out: bool = False


class SqlApi:
    """The interface, beside that of the drivers and with the same queries."""

    def __init__(
        self,
        credentials: Credentials,
        sessions: Sessions,
        engine: Engine,
        queries: Queries,
        warehouse: str,
        patience: float,
        record: Callable[..., None],
    ) -> None:
        self._credentials = credentials
        self._sessions = sessions
        self._engine = engine
        self._queries = queries
        self._warehouse = warehouse
        self._patience = patience
        self.record = record
        self._by_handle: OrderedDict[str, Submission] = OrderedDict()
        self._by_request: dict[tuple[str, str], Submission] = {}

    async def serve(self, request: Request, path: str) -> Answer:
        """Answers a request."""
        try:
            if request.problem is not None:
                raise request.problem
            return await self._handle(request, path)
        except BadRequest as error:
            return answer(error.status, {"code": f"390{error.status}", "message": error.message})
        except Failure as error:
            return answer(error.status, {"code": error.code, "message": error.message})

    async def _handle(self, request: Request, path: str) -> Answer:
        about = ABOUT.fullmatch(path)
        if path != PATH and about is None:
            raise BadRequest(404, "not found")
        wanted = "GET" if about is not None and about[2] is None else "POST"
        if request.method != wanted:
            raise BadRequest(405, "method not allowed")
        user = self.authenticate(request)
        if about is None:
            return await self._submit(request, user)
        self.record(request, user=user)
        query = self._queries.find(about[1], user)
        if query is None:
            raise Failure(404, "000709", f"Statement {about[1]} not found")
        submission = self._by_handle.get(query.id) or Submission(query, "")
        if about[2] is not None:
            return self._cancel(query)
        await self._queries.wait(query, self._patience)
        return self._answer(submission, request.parameters.get("partition"))

    def authenticate(self, request: Request) -> str:
        """The user whose token it is."""
        check_headers(request)
        bearer = BEARER.fullmatch(request.headers.get("authorization", ""))
        if bearer is None:
            raise Failure(401, "390101", "Authorization header not found in the request data.")
        kind = token_kind(request)
        if kind not in KINDS:
            raise Failure(401, "390104", f"Unknown token type {kind[:40]}.")
        try:
            return self._credentials.verify({"AUTHENTICATOR": KINDS[kind], "TOKEN": bearer[1]})
        except Refusal as refusal:
            raise Failure(401, refusal.code, refusal.message) from None

    async def _submit(self, request: Request, user: str) -> Answer:
        body, sql = None, None
        try:
            body = request.json()
            sql = body["statement"] if isinstance(body.get("statement"), str) else None
            check_body(body)
            submission, fresh = self._prepare(request, user, body)
        except (BadRequest, Failure) as error:
            self.record(request, sql=sql, user=user, status=error.status)
            raise
        query = submission.query
        self.record(request, sql=sql, user=user, executed=fresh)
        if fresh:
            self._start(query)
        if flag(request, "async"):
            return self._answer(submission) if query.done else self._running(submission)
        seconds = body.get("timeout") or self._patience + 1
        await self._queries.wait(query, min(seconds, self._patience))
        if not query.done and seconds <= self._patience:
            submission.timed_out = True
            self._queries.cancel(query)
            await self._queries.wait(query, self._patience)
        return self._answer(submission)

    def _prepare(self, request: Request, user: str, body: dict[str, Any]) -> tuple[Submission, bool]:
        """The statement, and whether to start it: not so when it is the repetition of another, or wrong."""
        request_id = request.parameters.get("requestId") or str(uuid.uuid4())
        try:
            uuid.UUID(request_id)
        except ValueError:
            raise BadRequest(400, "the requestId is not a UUID") from None
        earlier = self._by_request.get((user, request_id))
        if earlier is not None and flag(request, "retry"):
            return earlier, False
        session = self._connect(user, body)
        login = {"CLIENT_APP_ID": "SNOWFLAKE_SQL_API", "AUTHENTICATOR": KINDS[token_kind(request)]}
        self._queries.history.login(request, login, user).session = session.id
        parameters = {name.upper(): value for name, value in (body.get("parameters") or {}).items()}
        asked = {"sqlText": body["statement"], "bindings": body.get("bindings"), "parameters": parameters}
        query, fresh = self._queries.prepare(session, "", asked, wants_json=True, whole=True)
        alone = len(query.statements) == 1
        for text in query.statements:
            if NEVER.match(text) or alone and NOT_ALONE.match(text):
                query.error, fresh = Refusal("391911", "Unsupported statement type.", "0A000"), False
        if not fresh:
            self._engine.disconnect(session.engine_token)
        submission = Submission(query, request_id, flag(request, "nullable", True))
        self._by_handle[query.id] = self._by_request[user, request_id] = submission
        if len(self._by_handle) > KEPT_QUERIES:
            oldest = self._by_handle.popitem(last=False)[1]
            self._by_request.pop((oldest.query.user, oldest.request_id), None)
        return submission, fresh

    async def run(self, user: str, sql: str, context: dict[str, str | None]) -> list[dict[str, str | None]]:
        """The rows of a statement that comes by another interface; `context` says where and as whom, as a body does."""
        query = self.begin(user, sql, context)
        await self.wait(query)
        if query.error is not None or query.data is None:
            error = query.error or Refusal("000630", "Statement reached its timeout.")
            raise Failure(422, error.code, error.message)
        columns = [column["name"] for column in query.data.get("rowtype", [])]
        return [dict(zip(columns, row)) for row in query.data.get("rowset") or []]

    def begin(self, user: str, sql: str, context: dict[str, str | None]) -> Query:
        """A statement that comes by another interface and runs from now on."""
        session = self._connect(user, context)
        asked = {"sqlText": sql, "bindings": None, "parameters": {}}
        query, fresh = self._queries.prepare(session, "", asked, wants_json=True, whole=True)
        if fresh:
            self._start(query)
        return query

    async def wait(self, query: Query) -> None:
        """Returns when it is done, or when nobody would wait longer."""
        await self._queries.wait(query, self._patience)

    def _connect(self, user: str, body: dict[str, Any]) -> Session:
        """A session for one request. Names are as they are written here, not turned into upper case."""
        token, connection = self._engine.connect(body.get("database"), body.get("schema"), autocommit=True)
        role, warehouse = body.get("role") or "PUBLIC", body.get("warehouse") or self._warehouse
        return Session(self._sessions.take_id(), user, role, warehouse, connection, {}, token)

    def _start(self, query: Query) -> None:
        self._queries.start(query)
        assert query.task is not None
        query.task.add_done_callback(lambda _: self._engine.disconnect(query.session.engine_token))

    def _cancel(self, query: Query) -> Answer:
        try:
            self._queries.cancel(query)
        except Refusal as refusal:
            return answer(422, {**status(query), **reason(refusal)})
        return answer(200, {**status(query), **reason(Refusal("000604", "statement successfully canceled", "57014"))})

    def _running(self, submission: Submission) -> Answer:
        return answer(202, {"code": "333334", "message": RUNNING, **status(submission.query)})

    def _answer(self, submission: Submission, partition: str | None = None) -> Answer:
        """How the statement went: the result or a partition of it, the error, or where to ask again."""
        query = submission.query
        if not query.done:
            return self._running(submission)
        if submission.timed_out:
            message = "Statement reached its statement or warehouse timeout and was canceled."
            return answer(408, {**status(query), "code": "000630", "message": message, "sqlState": "57014"})
        if query.error is not None:
            return answer(422, {**status(query), **reason(query.error)})
        data = query.data or {}
        kinds = data.get("rowtype", [])
        rows = [
            [text(value, kind["type"], submission.nullable) for value, kind in zip(row, kinds)]
            for row in data.get("rowset") or []
        ]
        partitions = [rows[:FIRST_ROWS]]
        partitions += [rows[begin : begin + PARTITION_ROWS] for begin in range(FIRST_ROWS, len(rows), PARTITION_ROWS)]
        number = int(partition) if partition and partition.isdecimal() else 0
        if partition is not None and (not partition.isdecimal() or number >= len(partitions)):
            raise BadRequest(400, "there is no such partition")
        headers = {"link": link(query, len(partitions), number)} if len(partitions) > 1 else {}
        if number > 0:
            return answer(200, {"data": partitions[number]}, headers)
        result: dict[str, Any] = {
            "resultSetMetaData": {
                "numRows": len(rows),
                "format": "jsonv2",
                "partitionInfo": [size(part, index) for index, part in enumerate(partitions)],
                "rowType": kinds,
            },
            "data": partitions[0],
            "code": "090001",
            "message": "Statement executed successfully.",
            "sqlState": "00000",
            "requestId": submission.request_id,
            **status(query),
        }
        if handles := data.get("resultIds"):
            result["statementHandles"] = handles.split(",")
        return answer(200, result, headers)


def token_kind(request: Request) -> str:
    """What kind of token the client says that it sends."""
    return request.headers.get("x-snowflake-authorization-token-type", "OAUTH").upper()


def check_headers(request: Request) -> None:
    """What Snowflake's documentation says that each request has."""
    if not request.headers.get("user-agent"):
        raise BadRequest(400, "the request has no User-Agent")
    accepted = request.headers.get("accept", "*/*")
    if "application/json" not in accepted and "*/*" not in accepted:
        raise BadRequest(406, "the answer is JSON")
    if request.body and not request.headers.get("content-type", "").startswith("application/json"):
        raise BadRequest(415, "the body has to be JSON")


def check_body(body: dict[str, Any]) -> None:
    """Raises when a field is unknown or has the wrong type."""
    if not isinstance(body.get("statement"), str):
        raise Failure(400, "391902", "the statement is missing")
    for name, value in body.items():
        if name not in FIELDS or value is not None and not isinstance(value, FIELDS[name]):
            raise Failure(400, "391902", f"the field {name[:40]} is unknown or has the wrong type")


def flag(request: Request, name: str, default: bool = False) -> bool:
    """A query parameter that is true or false."""
    value = request.parameters.get(name, str(default)).lower()
    if value not in ("true", "false"):
        raise BadRequest(400, f"{name} is true or false")
    return value == "true"


def status(query: Query) -> dict[str, Any]:
    """What each answer says of its statement."""
    return {
        "statementHandle": query.id,
        "statementStatusUrl": f"{PATH}/{query.id}",
        "createdOn": int(query.started * 1000),
    }


def reason(refusal: Refusal) -> dict[str, Any]:
    """A refusal's fields."""
    return {"code": refusal.code, "message": refusal.message, "sqlState": refusal.sql_state}


def size(rows: list[Any], index: int) -> dict[str, int]:
    """What is said of a partition: of the first one, which is in the answer, without its compressed size."""
    uncompressed = len(json.dumps(rows, separators=(",", ":")))
    return {"rowCount": len(rows), "uncompressedSize": uncompressed} | (
        {"compressedSize": uncompressed // 2} if index else {}
    )


def link(query: Query, partitions: int, number: int) -> str:
    """The header that leads from one partition to the others."""
    numbers = {"first": 0, "last": partitions - 1}
    if number > 0:
        numbers["prev"] = number - 1
    if number + 1 < partitions:
        numbers["next"] = number + 1
    request = uuid.uuid4()
    return ",".join(
        f'<{PATH}/{query.id}?requestId={request}&partition={target}>;rel="{name}"' for name, target in numbers.items()
    )


def text(value: str | None, kind: str, nullable: bool) -> str | None:
    """A value as this interface writes it."""
    if value is None:
        return None if nullable else "null"
    return {"1": "true", "0": "false"}[value] if kind == "boolean" else value


def answer(code: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
    """An HTTP answer."""
    encoded = json.dumps(body, separators=(",", ":")).encode()
    return Answer(code, encoded, "application/json", headers or {})

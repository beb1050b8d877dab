"""Snowflake's REST interfaces beside the SQL API: some objects and what is done with them, the Cortex services, managed
MCP servers.

Objects are the engine's, but for warehouses, of which there is one, and tasks: `wait_3` waits three seconds, `fail` fails;
of `far_3` and `away_3` the results are said to be at an address of the account, and at one elsewhere.
The language model says what it was asked, word by word; asked to break off, it does. Fields that are not documented are
refused. Of the MCP servers `tools` knows no sessions, and `sessions` insists on them.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from emulator.delivery import BrokenOff
from emulator.queries import Query
from emulator.request import BadRequest, Request
from emulator.sql_api import Failure, SqlApi, answer, flag
from web import Answer, Send

PATH = "/api/v2/"
# Between two words of a streamed answer, in seconds.
PAUSE = 0.1
MODEL = "mistral-large2"
BREAK_OFF = "break off"
# The tools of the MCP server, by their types.
TOOLS = {"sql_exec_tool": "SYSTEM_EXECUTE_SQL", "find_docs": "CORTEX_SEARCH_SERVICE_QUERY"}
SERVERS = ("tools", "sessions")
# What can be done with which objects: the names of the query parameters, and the fields of the body.
ACTIONS: dict[tuple[str, str], tuple[set[str], set[str]]] = {
    ("warehouses", "abort"): ({"ifExists"}, set()),
    ("warehouses", "resume"): ({"ifExists"}, set()),
    ("warehouses", "suspend"): ({"ifExists"}, set()),
    ("tasks", "execute"): ({"asyncExec", "retryLast"}, set()),
    ("tasks", "resume"): (set(), set()),
    ("tasks", "suspend"): (set(), set()),
    ("tables", "clone"): ({"createMode", "copyGrants", "targetDatabase", "targetSchema"}, {"name", "point_of_time"}),
    ("tables", "swap-with"): ({"ifExists", "targetName", "targetDatabase", "targetSchema"}, set()),
    ("tables", "suspend-recluster"): ({"ifExists"}, set()),
    ("tables", "undrop"): (set(), set()),
}
# Rows of a list in one answer; the others are asked for page by page.
PAGE_ROWS = 10
ACCEPTED = (
    "Request execution in progress. Use the provided location header or result handler ID to perform query monitoring "
    "and management."
)
FIELDS = {
    "inference:complete": {"model", "messages", "stream", "max_tokens", "temperature", "top_p"},
    "analyst/message": {"messages", "semantic_model", "semantic_model_file", "semantic_view", "stream"},
    "agent:run": {"messages", "models", "tools", "tool_resources", "stream", "thread_id"},
    ":query": {"query", "columns", "filter", "limit"},
}


@dataclass
class Events(Answer):
    """An answer event by event."""

    words: list[str] = field(default_factory=list)

    async def send(self, send: Send) -> None:
        """Sends an event for each word; in the middle of it it may break off."""
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        )
        for index, word in enumerate(self.words):
            if index == len(self.words) // 2 and BREAK_OFF in " ".join(self.words):
                raise BrokenOff
            event = {"choices": [{"delta": {"content": word}}], "model": MODEL}
            await send({"type": "http.response.body", "body": sse(event), "more_body": True})
            await asyncio.sleep(PAUSE)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def sse(event: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(event)}\n\n".encode()


@dataclass
class Later:
    """What was asked for and is still to be fetched: by whom, as which role, and what is said at its end."""

    user: str
    role: str | None
    query: Query | None = None
    done: str = ""
    host: str = ""
    pages: list[Any] = field(default_factory=list)


class Rest:
    """The interfaces, with the statements of the SQL API behind them."""

    def __init__(self, sql_api: SqlApi, hosts: list[str], warehouse: str) -> None:
        self._sql_api = sql_api
        self._host = hosts[0]
        self._warehouse = warehouse
        self._later: dict[str, Later] = {}
        # The sessions of the MCP server that has some, and whose they are.
        self._mcp_sessions: dict[str, str] = {}

    async def serve(self, request: Request) -> Answer:
        """Answers a request."""
        try:
            if request.problem is not None:
                raise request.problem
            user = self._sql_api.authenticate(request)
            self._sql_api.record(request, user=user)
            return await self._handle(request, user, request.path.removeprefix(PATH))
        except BadRequest as error:
            return answer(error.status, {"code": f"390{error.status}", "message": error.message})
        except Failure as error:
            return answer(error.status, {"code": error.code, "message": error.message, "error_code": error.code})

    async def _handle(self, request: Request, user: str, path: str) -> Answer:
        match (request.method, [unquote(segment) for segment in path.split("/")]):
            case ("GET", ["results", handle]):
                return await self._result(request, user, handle)
            case (method, [*places, last]) if is_action(collection := places[-1] if places else "", last):
                name, _, action = last.partition(":")
                if (collection, action) not in ACTIONS:
                    raise BadRequest(404, "not found")
                if method != "POST":
                    raise BadRequest(405, "method not allowed")
                return await self._act(request, user, [*places, name], collection, action)
            case ("GET", ["databases"]):
                return await self._list(request, user, "show databases")
            case ("GET", ["databases", database, "schemas", schema, "tables"]):
                return await self._list(request, user, f"show tables in schema {database}.{schema}")
            case ("GET", ["databases", database, "schemas", schema, "tables", table]):
                columns = await self._rows(request, user, f"describe table {table}", database.upper(), schema.upper())
                return answer(200, {"name": table.upper(), "columns": columns})
            case ("DELETE", ["databases", database, "schemas", schema, "tables", table]):
                await self._rows(request, user, f"drop table {database}.{schema}.{table}")
                return answer(200, {"status": "successfully dropped"})
            case ("GET", ["users", name]):
                # No answer of Snowflake's carries such a thing; a proxy has to see it if one does.
                return answer(200, {"name": name.upper(), "token": "a-secret-of-the-user"})
            case ("POST", ["cortex", "inference:complete"]):
                return complete(fields(request, "inference:complete"))
            case ("POST", ["cortex", "analyst", "message"]):
                asked = fields(request, "analyst/message")
                return said(asked, "This is the statement: select count(*) from customers")
            case ("POST", ["cortex", "agent:run"] | ["databases", _, "schemas", _, "agents", _]):
                return said(fields(request, "agent:run"), "The agent ran what it wanted")
            case ("POST", ["databases", _, "schemas", _, "cortex-search-services", service]) if service.endswith(":query"):
                found = {"results": [{"text": f"found: {fields(request, ':query')['query']}"}], "request_id": "1"}
                return answer(200, found)
            case (method, ["databases", database, "schemas", schema, "mcp-servers", server]) if server in SERVERS:
                # No stream that the server begins, and no end of a session but by time.
                if method != "POST":
                    raise BadRequest(405, "method not allowed")
                replied = await self._mcp(request, user, database.upper(), schema.upper())
                return replied if server == "tools" else self._in_session(request, user, replied)
        raise BadRequest(404, "not found")

    async def _list(self, request: Request, user: str, sql: str) -> Answer:
        rows = await self._rows(request, user, sql)
        like = request.parameters.get("like", "").strip("%").upper()
        body = [row for row in rows if like in str(row["name"]).upper()]
        if len(body) <= PAGE_ROWS:
            return listed(body)
        handle = self._keep(request, user, pages=[body[at : at + PAGE_ROWS] for at in range(0, len(body), PAGE_ROWS)])
        return page(handle, self._later[handle], 0)

    async def _rows(
        self, request: Request, user: str, sql: str, database: str | None = None, schema: str | None = None
    ) -> list[dict[str, Any]]:
        return await self._sql_api.run(user, sql, context(request, database, schema))

    async def _act(self, request: Request, user: str, segments: list[str], collection: str, action: str) -> Answer:
        """What is done with an object."""
        parameters, known = ACTIONS[collection, action]
        if unknown := set(request.parameters) - parameters:
            raise Failure(400, "391902", f"unknown parameter {sorted(unknown)[0][:40]}")
        body = request.json() if request.body else {}
        if unknown := set(body) - known:
            raise Failure(400, "391902", f"unknown field {sorted(unknown)[0][:40]}")
        name = segments[-1].upper()
        if collection == "warehouses":
            if len(segments) != 2 or name != self._warehouse:
                raise missing("Warehouse", name)
            return answer(200, {"status": "Statement executed successfully."})
        if len(segments) != 6 or segments[0] != "databases" or segments[2] != "schemas":
            raise BadRequest(404, "not found")
        database, schema = segments[1].upper(), segments[3].upper()
        if collection == "tasks":
            sql = statement_of_task(name)
            if sql is None:
                raise missing("Task", name)
            if action != "execute":
                return answer(200, {"status": "Statement executed successfully."})
            host = {"FAR": f"https://{self._host}", "AWAY": "https://elsewhere.example"}.get(name.partition("_")[0], "")
            query = self._sql_api.begin(user, sql, context(request, database, schema))
            return await self._run(request, user, query, f"Task {name} is scheduled to run immediately.", host)
        if action == "clone":
            target = [request.parameters.get("targetDatabase", database), request.parameters.get("targetSchema", schema)]
            replaces = "or replace " if request.parameters.get("createMode") == "orReplace" else ""
            named = ".".join([*target, str(body["name"])])
            # The engine's own CLONE replaces nothing.
            sql = f"create {replaces}table {named} as select * from {database}.{schema}.{name}"
            await self._rows(request, user, sql)
            return answer(200, {"status": f"Table {str(body['name']).upper()} successfully created."})
        if action == "undrop":
            raise missing("Table", name)
        await self._rows(request, user, f"describe table {name}", database, schema)
        return answer(200, {"status": "Statement executed successfully."})

    async def _run(self, request: Request, user: str, query: Query, done: str, host: str) -> Answer:
        """Waits for a statement. If it takes long, or is not to be waited for, its result comes later."""
        later = Later(user, request.headers.get("x-snowflake-role"), query, done, host)
        if not flag(request, "asyncExec"):
            await self._sql_api.wait(query)
        if query.done:
            return ended(later)
        self._later[query.id] = later
        return accepted(query.id, later)

    def _keep(self, request: Request, user: str, pages: list[Any]) -> str:
        handle = f"01{secrets.token_hex(3)}-{secrets.token_hex(2)}-{secrets.token_hex(2)}-0000-{secrets.token_hex(6)}"
        self._later[handle] = Later(user, request.headers.get("x-snowflake-role"), pages=pages)
        return handle

    async def _result(self, request: Request, user: str, handle: str) -> Answer:
        """The result of what was asked for before, for the same user and role."""
        later = self._later.get(handle)
        if later is None or (later.user, later.role) != (user, request.headers.get("x-snowflake-role")):
            raise Failure(404, "392605", f"Result {handle[:64]} not found")
        if set(request.parameters) - {"page"}:
            raise Failure(400, "391902", "unknown parameter")
        number = request.parameters.get("page", "0")
        if later.pages:
            if not number.isdecimal() or int(number) >= len(later.pages):
                raise BadRequest(400, "there is no such page")
            return page(handle, later, int(number))
        if number != "0":
            raise BadRequest(400, "there is no such page")
        assert later.query is not None
        await self._sql_api.wait(later.query)
        return ended(later) if later.query.done else accepted(handle, later)

    def _in_session(self, request: Request, user: str, replied: Answer) -> Answer:
        """The answer of a server that insists on sessions: begun by `initialize`, named from then on."""
        session = request.headers.get("mcp-session-id")
        if request.json().get("method") == "initialize":
            session = f"Session={secrets.token_hex(16)};v=1"
            self._mcp_sessions[session] = user
            replied.headers["mcp-session-id"] = session
            return replied
        if session is None:
            raise BadRequest(400, "Mcp-Session-Id is missing")
        if self._mcp_sessions.get(session) != user:
            raise BadRequest(404, "the session is not known")
        return replied

    async def _mcp(self, request: Request, user: str, database: str, schema: str) -> Answer:
        body = request.json()
        if body.get("jsonrpc") != "2.0" or set(body) - {"jsonrpc", "id", "method", "params"}:
            raise BadRequest(400, "not JSON-RPC 2.0")
        if "id" not in body:
            return Answer(202)
        try:
            if body["method"] == "tools/call" and (sql := statement_of(body.get("params") or {})) is not None:
                rows = await self._rows(request, user, sql, database, schema)
                text = json.dumps({"result_set": {"data": rows}})
                result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": False}
            else:
                result = mcp_result(body["method"], body.get("params") or {})
        except Failure as error:
            result = {"content": [{"type": "text", "text": error.message}], "isError": True}
        return answer(200, {"jsonrpc": "2.0", "id": body["id"], "result": result})


def context(request: Request, database: str | None = None, schema: str | None = None) -> dict[str, str | None]:
    """Where, and as whom, a request's statement runs."""
    role, warehouse = (request.headers.get(f"x-snowflake-{name}") for name in ("role", "warehouse"))
    return {"role": role, "warehouse": warehouse, "database": database, "schema": schema}


def is_action(collection: str, last: str) -> bool:
    """Whether a path asks for something that is done with an object, rather than with a service."""
    return ":" in last and collection not in ("cortex", "agents", "cortex-search-services")


def statement_of_task(name: str) -> str | None:
    """What a task does; none, if it is not there."""
    if match := re.fullmatch(r"(?:WAIT|FAR|AWAY)_(\d{1,3})", name):
        return f"call system$wait({match[1]})"
    return "select * from nope" if name == "FAIL" else None


def missing(kind: str, name: str) -> Failure:
    """What is not there, or not for this role."""
    return Failure(404, "002003", f"{kind} '{name}' does not exist or not authorized.")


def accepted(handle: str, later: Later) -> Answer:
    """Where to ask for a result that comes later."""
    body = {"code": "392604", "message": ACCEPTED, "resultHandler": handle}
    return answer(202, body, {"location": f"{later.host}{PATH}results/{handle}"})


def ended(later: Later) -> Answer:
    """How a statement went."""
    assert later.query is not None
    if (error := later.query.error) is not None:
        raise Failure(422, error.code, error.message)
    return answer(200, {"status": later.done})


def listed(rows: list[Any], headers: dict[str, str] | None = None) -> Answer:
    """A list."""
    return Answer(200, json.dumps(rows).encode(), "application/json", headers or {})


def page(handle: str, later: Later, number: int) -> Answer:
    """One page of a list, with the ways to the others."""
    numbers = {"first": 0, "last": len(later.pages) - 1} | {"prev": number - 1, "next": number + 1}
    links = [(at, name) for name, at in numbers.items() if 0 <= at < len(later.pages)]
    link = ",".join(f'<{PATH}results/{handle}?page={at}>; rel="{name}"' for at, name in links)
    return listed(later.pages[number], {"link": link})


def statement_of(call: dict[str, Any]) -> str | None:
    """The statement that a tool is to run, if that is what it is for."""
    if TOOLS.get(call.get("name", "")) != "SYSTEM_EXECUTE_SQL":
        return None
    arguments = call.get("arguments") or {}
    if list(arguments) != ["sql"]:
        raise Failure(400, "391902", "sql request parameter is required and cannot be empty")
    return str(arguments["sql"])


def mcp_result(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The answer of the server to what runs no statement."""
    if method == "initialize":
        server = {"name": "tools", "version": "1"}
        return {"protocolVersion": "2025-06-18", "serverInfo": server, "capabilities": {"tools": {}}}
    if method == "tools/list":
        return {"tools": [{"name": name, "description": kind} for name, kind in TOOLS.items()]}
    if method != "tools/call" or params.get("name") not in TOOLS:
        raise BadRequest(400, "no such method or tool")
    found = f"found: {(params.get('arguments') or {}).get('query')}"
    return {"content": [{"type": "text", "text": found}], "isError": False}


def fields(request: Request, kind: str) -> dict[str, Any]:
    """The body, of which every field is known."""
    body = request.json()
    if unknown := set(body) - FIELDS[kind]:
        raise Failure(400, "399504", f"unknown field {sorted(unknown)[0][:40]}")
    return body


def complete(asked: dict[str, Any]) -> Answer:
    """What the language model says."""
    text = " ".join(str(message["content"]) for message in asked["messages"])
    if asked.get("stream"):
        return Events(200, words=f"You asked: {text}".split(" "))
    message = {"content": f"You asked: {text}"}
    return answer(200, {"choices": [{"message": message}], "model": MODEL})


def said(asked: dict[str, Any], text: str) -> Answer:
    """An answer that is streamed if that is wanted."""
    if asked.get("stream"):
        return Events(200, words=text.split(" "))
    return answer(200, {"message": {"role": "analyst", "content": [{"type": "text", "text": text}]}})

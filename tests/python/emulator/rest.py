"""Snowflake's REST interfaces beside the SQL API: some objects, the Cortex services, one managed MCP server.

Objects are the engine's. The language model says what it was asked, word by word; asked to break off, it does. Fields that
are not documented are refused.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from emulator.delivery import BrokenOff
from emulator.request import BadRequest, Request
from emulator.sql_api import Failure, SqlApi, answer
from web import Answer, Send

PATH = "/api/v2/"
# Between two words of a streamed answer, in seconds.
PAUSE = 0.1
MODEL = "mistral-large2"
BREAK_OFF = "break off"
# The tools of the MCP server, by their types.
TOOLS = {"sql_exec_tool": "SYSTEM_EXECUTE_SQL", "find_docs": "CORTEX_SEARCH_SERVICE_QUERY"}
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


class Rest:
    """The interfaces, with the statements of the SQL API behind them."""

    def __init__(self, sql_api: SqlApi) -> None:
        self._sql_api = sql_api

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
            case ("POST", ["databases", database, "schemas", schema, "mcp-servers", "tools"]):
                return await self._mcp(request, user, database.upper(), schema.upper())
        raise BadRequest(404, "not found")

    async def _list(self, request: Request, user: str, sql: str) -> Answer:
        rows = await self._rows(request, user, sql)
        like = request.parameters.get("like", "").strip("%").upper()
        body = [row for row in rows if like in str(row["name"]).upper()]
        return Answer(200, json.dumps(body).encode(), "application/json", {})

    async def _rows(
        self, request: Request, user: str, sql: str, database: str | None = None, schema: str | None = None
    ) -> list[dict[str, Any]]:
        role, warehouse = (request.headers.get(f"x-snowflake-{name}") for name in ("role", "warehouse"))
        context = {"role": role, "warehouse": warehouse, "database": database, "schema": schema}
        return await self._sql_api.run(user, sql, context)

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

"""The account's HTTP interface as an ASGI application. Every request is in the log before it has any effect."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from emulator import protocol, trouble
from emulator.credentials import Credentials
from emulator.engine import Engine
from emulator.protocol import Refusal
from emulator.queries import Queries, Query
from emulator.request import BadRequest, Request, headers_of, read_request, read_storage_request
from emulator.request_log import RequestLog, readable_body, readable_payload
from emulator.sessions import Session, Sessions
from emulator.rest import Rest
from emulator.sql_api import PATH as STATEMENTS
from emulator.sql_api import SqlApi
from emulator.storage import Storage
from emulator.trouble import Trouble
from web import Answer, Receive, Scope, Send

LOGGER = logging.getLogger("upstream")
SERVER_VERSION = "10.36.0"
# Answers shorter than this are sent as they are, also to a client that takes gzip.
SHORTEST_GZIP = 256
QUERY_RESULT = re.compile(r"/queries/([^/]+)/result")
QUERY_ABORT = re.compile(r"/queries/([^/]+)/abort-request")
MONITORING = re.compile(r"/monitoring/queries/([^/]+)")

SESSION_PARAMETERS: dict[str, Any] = {
    "AUTOCOMMIT": True,
    "CLIENT_PREFETCH_THREADS": 4,
    "CLIENT_RESULT_CHUNK_SIZE": 160,
    "CLIENT_SESSION_KEEP_ALIVE": False,
    "CLIENT_SESSION_KEEP_ALIVE_HEARTBEAT_FREQUENCY": 3600,
    "CLIENT_STAGE_ARRAY_BINDING_THRESHOLD": 65280,
    "CLIENT_TELEMETRY_ENABLED": True,
    "QUERY_CONTEXT_CACHE_SIZE": 5,
    "TIMEZONE": "Etc/UTC",
    "BINARY_OUTPUT_FORMAT": "HEX",
    "DATE_OUTPUT_FORMAT": "YYYY-MM-DD",
    "TIME_OUTPUT_FORMAT": "HH24:MI:SS",
    "TIMESTAMP_OUTPUT_FORMAT": "YYYY-MM-DD HH24:MI:SS.FF3 TZHTZM",
    "TIMESTAMP_NTZ_OUTPUT_FORMAT": "YYYY-MM-DD HH24:MI:SS.FF3",
    "TIMESTAMP_LTZ_OUTPUT_FORMAT": "",
    "TIMESTAMP_TZ_OUTPUT_FORMAT": "",
}


Handler = Callable[[Request], Awaitable[dict[str, Any]]]


class Application:
    """The emulated account."""

    def __init__(
        self,
        hosts: list[str],
        credentials: Credentials,
        sessions: Sessions,
        engine: Engine,
        log: RequestLog,
        warehouse: str,
        patience: float,
        storage: Storage,
    ) -> None:
        self._storage = storage
        self._hosts = [host.lower() for host in hosts]
        self._credentials = credentials
        self._sessions = sessions
        self._engine = engine
        self._log = log
        self._warehouse = warehouse
        self._patience = patience
        self._queries = Queries(engine, hosts, account_name(hosts[0]), storage)
        self._sql_api = SqlApi(credentials, sessions, engine, self._queries, warehouse, patience, self._record)
        self._rest = Rest(self._sql_api, hosts, warehouse)
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", "/session/v1/login-request"): self._login,
            ("POST", "/session/token-request"): self._renew,
            ("POST", "/session/heartbeat"): self._heartbeat,
            ("POST", "/session"): self._session,
            ("POST", "/queries/v1/query-request"): self._query,
            ("POST", "/queries/v1/abort-request"): self._abort,
            ("POST", "/telemetry/send"): self._telemetry,
            ("POST", "/telemetry/send/sessionless"): self._sessionless_telemetry,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._storage.owns(headers_of(scope).get("host", "")):
            await self._serve_storage(scope, receive, send)
            return
        request = await read_request(scope, receive)
        try:
            answer = await self._dispatch(request)
        except Trouble as trouble_on_the_way:
            if trouble_on_the_way.status is None:
                await trouble.break_off(json_answer(trouble_on_the_way.envelope), send)
            answer = trouble_on_the_way.page()
        except Exception:
            LOGGER.exception("%s %s failed inside the emulator", request.method, request.path)
            answer = json_answer(protocol.failure(Refusal("000603", "Internal error.")), 500)
        if not request.logged:
            self._record(request, status=answer.status)
        takes_gzip = "gzip" in request.headers.get("accept-encoding", "")
        if takes_gzip and len(answer.body) >= SHORTEST_GZIP:
            answer.body = gzip.compress(answer.body, compresslevel=1)
            answer.headers["content-encoding"] = "gzip"
        await answer.send(send)

    async def _serve_storage(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request to the storage, which knows nothing of sessions."""
        request = await read_storage_request(scope, receive, self._storage.objects.folder)
        try:
            if request.problem is not None:
                self._record(request)
            elif self._storage.is_result(request):
                self._record(request)
                await self._storage.results.serve(request, send)
            else:
                answer = await self._storage.handle(request)
                self._record(request, status=answer.status)
                await answer.send(send)
        finally:
            if request.payload is not None and not request.payload.kept:
                request.payload.discard()

    async def _dispatch(self, request: Request) -> Answer:
        host = request.headers.get("host", "").lower()
        if host.removesuffix(":443") not in self._hosts and host.rpartition(":")[0] not in self._hosts:
            return Answer(404, b"<html><body>There is no such account.</body></html>", "text/html")
        path = re.sub("/+", "/", request.path)
        if path.startswith(STATEMENTS):
            return await self._sql_api.serve(request, path)
        if path.startswith("/api/v2/"):
            return await self._rest.serve(request)
        try:
            if request.problem is not None:
                raise request.problem
            return json_answer(await self._handle(request, path))
        except Refusal as refusal:
            return json_answer(protocol.failure(refusal))
        except BadRequest as error:
            return json_answer(protocol.failure(Refusal("390400", error.message)), error.status)

    async def _handle(self, request: Request, path: str) -> dict[str, Any]:
        if handler := self._routes.get((request.method, path)):
            return await handler(request)
        if request.method == "GET" and (match := QUERY_RESULT.fullmatch(path)):
            return await self._result(request, match[1])
        if request.method == "GET" and (match := MONITORING.fullmatch(path)):
            return self._monitor(request, match[1])
        if request.method == "POST" and (match := QUERY_ABORT.fullmatch(path)):
            session = self._sessions.by_token(request.token)
            self._queries.cancel(self._queries.find(match[1], session.user))
            return protocol.success()
        known = any(path == route for _, route in self._routes)
        raise BadRequest(405 if known else 404, "method not allowed" if known else "not found")

    def _record(self, request: Request, **fields: Any) -> None:
        """Writes the request's one line to the log."""
        request.logged = True
        owner = self._sessions.owner(request.token)
        fields.setdefault("user", owner.user if owner else None)
        self._log.write(
            "request",
            method=request.method,
            path=request.path,
            query=request.query,
            headers=request.headers,
            body=readable_payload(request.payload) if request.payload else readable_body(request.body),
            peer=request.peer,
            local=request.local,
            sni=request.sni,
            **fields,
        )

    # Sessions

    async def _login(self, request: Request) -> dict[str, Any]:
        login = request.json().get("data")
        if not isinstance(login, dict):
            raise BadRequest(400, "a login needs data")
        history = self._queries.history
        try:
            user = self._credentials.verify(login)
        except Refusal as refusal:
            history.login(request, login, str(login.get("LOGIN_NAME")), refusal)
            raise
        event = history.login(request, login, user)
        self._record(request, status=200, user=user)
        wanted = request.parameters
        asked = login.get("SESSION_PARAMETERS")
        settings = {key.upper(): value for key, value in (asked if isinstance(asked, dict) else {}).items()}
        autocommit = str(settings.get("AUTOCOMMIT", True)).lower() != "false"
        database, schema = identifier(wanted.get("databaseName")), identifier(wanted.get("schemaName"))
        token, connection = self._engine.connect(database, schema, autocommit)
        role, warehouse = identifier(wanted.get("roleName")), identifier(wanted.get("warehouse"))
        session = Session(
            self._sessions.take_id(),
            user,
            role or "PUBLIC",
            warehouse or self._warehouse,
            connection,
            SESSION_PARAMETERS | settings,
            token,
            smk_id_as_text=smk_id_as_text(login.get("CLIENT_CAPABILITIES")),
        )
        event.session = session.id
        return protocol.success(
            {
                "token": self._sessions.issue(session),
                "validityInSeconds": self._sessions.session_seconds,
                "masterToken": self._sessions.issue_master(session),
                "masterValidityInSeconds": self._sessions.master_seconds,
                "sessionId": session.id,
                "displayUserName": user,
                "serverVersion": SERVER_VERSION,
                "firstLogin": False,
                "remMeToken": None,
                "remMeValidityInSeconds": 0,
                "healthCheckInterval": 45,
                "newClientForUpgrade": None,
                "parameters": [{"name": key, "value": value} for key, value in session.parameters.items()],
                "sessionInfo": {
                    "databaseName": connection.database if connection.database_set else None,
                    "schemaName": connection.schema if connection.schema_set else None,
                    "warehouseName": session.warehouse,
                    "roleName": session.role,
                },
            }
        )

    async def _renew(self, request: Request) -> dict[str, Any]:
        body = request.json()
        kind = body.get("requestType")
        if kind not in ("RENEW", "ISSUE"):
            raise Refusal("390400", "Bad request; operation not supported.")
        # The log names the owner of the token as it is before the renewal.
        self._record(request, status=200)
        return protocol.success(self._sessions.renew(request.token, str(body.get("oldSessionToken")), kind == "ISSUE"))

    async def _heartbeat(self, request: Request) -> dict[str, Any]:
        self._sessions.by_token(request.token)
        return protocol.success()

    async def _session(self, request: Request) -> dict[str, Any]:
        session = self._sessions.by_token(request.token)
        if request.parameters.get("delete", "").lower() == "true":
            self._record(request, status=200)
            session.closed = True
            async with session.lock:
                self._queries.forget(session)
                self._engine.disconnect(session.engine_token)
        return protocol.success()

    # Queries

    async def _query(self, request: Request) -> dict[str, Any]:
        sql: str | None = None
        try:
            body = request.json()
            sql = body["sqlText"] if isinstance(body.get("sqlText"), str) else None
            session = self._sessions.by_token(request.token)
            if sql is None:
                raise BadRequest(400, "sqlText is missing")
            request_id = request.parameters.get("requestId", "")
            wants_json = prefers_json(request.headers.get("user-agent", ""), body, session)
            query, fresh = self._queries.prepare(session, request_id, body, wants_json)
        except BadRequest as error:
            self._record(request, sql=sql, status=error.status)
            raise
        except Refusal:
            self._record(request, sql=sql, status=200)
            raise
        self._record(request, sql=sql, executed=fresh and not body.get("describeOnly"))
        if fresh:
            self._queries.start(query)
        if body.get("asyncExec"):
            return query.envelope(protocol.IN_PROGRESS_ASYNC) if not query.done else query.envelope()
        await self._queries.wait(query, trouble.patience(sql, self._patience))
        wanted = trouble.asked(sql)
        if wanted is not None and not (wanted.once and query.troubled):
            query.troubled = True
            raise Trouble(wanted.status, query.envelope())
        return query.envelope()

    async def _result(self, request: Request, query_id: str) -> dict[str, Any]:
        query = self._visible(request, query_id)
        if query is None:
            raise Refusal("000709", f"Statement {query_id} not found", "02000")
        self._record(request)
        await self._queries.wait(query, trouble.patience(query.request["sqlText"], self._patience))
        in_progress = protocol.IN_PROGRESS_ASYNC if query.request.get("asyncExec") else protocol.IN_PROGRESS
        return query.envelope(in_progress)

    def _monitor(self, request: Request, query_id: str) -> dict[str, Any]:
        query = self._visible(request, query_id)
        if query is None:
            return protocol.success({"queries": []})
        ended = query.ended or 0
        return protocol.success(
            {
                "queries": [
                    {
                        "id": query.id,
                        "status": query.status,
                        "state": query.status,
                        "sqlText": query.request["sqlText"],
                        "startTime": int(query.started * 1000),
                        "endTime": int(ended * 1000),
                        "errorCode": query.error.code if query.error else None,
                        "errorMessage": query.error.message if query.error else None,
                        "sessionId": query.session.id,
                        "userName": query.user,
                        "stats": {},
                    }
                ]
            }
        )

    def _visible(self, request: Request, query_id: str) -> Query | None:
        session = self._sessions.by_token(request.token)
        return self._queries.find(query_id, session.user)

    async def _abort(self, request: Request) -> dict[str, Any]:
        session = self._sessions.by_token(request.token)
        self._queries.cancel(self._queries.by_request(session, str(request.json().get("requestId"))))
        return protocol.success()

    # The rest

    async def _telemetry(self, request: Request) -> dict[str, Any]:
        self._sessions.by_token(request.token)
        return protocol.success("Log Received")

    async def _sessionless_telemetry(self, request: Request) -> dict[str, Any]:
        return protocol.success("Log Received")


def json_answer(envelope: dict[str, Any], status: int = 200) -> Answer:
    """An envelope as an HTTP answer."""
    body = json.dumps(envelope, separators=(",", ":")).encode()
    return Answer(status, body, "application/json")


def prefers_json(user_agent: str, body: dict[str, Any], session: Session) -> bool:
    """Whether the result goes out as JSON: Node cannot read Arrow, and a parameter can ask for it."""
    if user_agent.startswith("JavaScript/"):
        return True
    asked = body.get("parameters")
    parameters = session.parameters | (asked if isinstance(asked, dict) else {})
    formats = (value for key, value in parameters.items() if key.upper().endswith("_QUERY_RESULT_FORMAT"))
    return any(str(value).upper() == "JSON" for value in formats)


def smk_id_as_text(capabilities: Any) -> bool:
    """Whether the client says that it wants the numbers of keys as texts, which no double can hold."""
    return isinstance(capabilities, dict) and capabilities.get("SMK_ID_AS_STRING") in (True, "true")


def identifier(name: str | None) -> str | None:
    """A name as Snowflake resolves it: upper-case unless quoted."""
    if not name:
        return None
    if len(name) > 2 and name.startswith('"') and name.endswith('"'):
        return name[1:-1]
    return name.upper()


def account_name(host: str) -> str:
    """The account as key-pair tokens name it: the host's first label in upper case."""
    return host.partition(".")[0].upper()

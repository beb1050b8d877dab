"""The life of a query: accepted once per request id, run in the background, fetched, watched and cancelled."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from emulator import binds, parts, protocol, statements, transfers, words
from emulator.engine import Engine, status_result
from emulator.files import Files
from emulator.history import History
from emulator.protocol import Refusal
from emulator.sessions import Session
from emulator.stages import Stages
from emulator.storage import Storage
from emulator.transfers import Transfers

LOGGER = logging.getLogger("upstream.queries")
KEPT_QUERIES = 10_000
MULTI_STATEMENT = 0xA000
# What makes two requests the same statement; the rest of a body (times, counters) may differ in a repetition.
IDENTITY = ("sqlText", "bindings", "bindStage", "parameters", "describeOnly")


@dataclass(eq=False)
class Query:
    """A query request, or one statement of a request with several."""

    session: Session
    request: dict[str, Any]
    statements: list[str]
    wants_json: bool
    # All rows in the answer, none in the storage.
    whole: bool = False
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: float = field(default_factory=time.time)
    ended: float | None = None
    task: asyncio.Task[None] | None = None
    request_key: tuple[int, str] | None = None
    parent: Query | None = None
    in_engine: bool = False
    cancelled: bool = False
    # Its answer went wrong once already.
    troubled: bool = False
    data: dict[str, Any] | None = None
    error: Refusal | None = None

    @property
    def user(self) -> str:
        return self.session.user

    @property
    def identity(self) -> str:
        return json.dumps({key: self.request.get(key) for key in IDENTITY}, sort_keys=True)

    @property
    def done(self) -> bool:
        return self.data is not None or self.error is not None

    @property
    def status(self) -> str:
        """The status as the monitoring interface calls it."""
        if not self.done:
            return "RUNNING"
        return "FAILED_WITH_ERROR" if self.error else "SUCCESS"

    def envelope(self, in_progress: str = protocol.IN_PROGRESS) -> dict[str, Any]:
        """The reply: the result, the error, or where to ask again."""
        if self.error is not None:
            return protocol.failure(self.error, self.id)
        if self.data is not None:
            return protocol.success(self.data)
        data = {
            "queryId": self.id,
            "getResultUrl": f"/queries/{self.id}/result",
            "queryAbortsAfterSecs": 300,
            "progressDesc": None,
        }
        return protocol.success(data, in_progress)


class Queries:
    """All queries of the server, with the engine that runs them."""

    def __init__(self, engine: Engine, hosts: list[str], account: str, storage: Storage) -> None:
        self._storage = storage
        self._stages = Stages()
        self._transfers = Transfers(storage, self._stages)
        self._files = Files(storage, self._stages)
        self._engine = engine
        self.history = History()
        self._hosts = hosts
        self._account = account
        self._by_id: OrderedDict[str, Query] = OrderedDict()
        self._by_request: dict[tuple[int, str], Query] = {}

    def find(self, query_id: str, user: str) -> Query | None:
        """A query by its id, if `user` may see it."""
        query = self._by_id.get(query_id)
        return query if query is not None and query.user == user else None

    def prepare(
        self, session: Session, request_id: str, request: dict[str, Any], wants_json: bool, whole: bool = False
    ) -> tuple[Query, bool]:
        """The query for a request, and whether to start it: not so when its id is repeated or its text bad."""
        query = Query(session, request, [], wants_json, whole)
        earlier = self._by_request.get((session.id, request_id)) if request_id else None
        if earlier is not None:
            if earlier.identity != query.identity:
                raise Refusal("390400", "Bad request: this requestId was used for another statement.")
            return earlier, False
        self._remember(query)
        if request_id:
            query.request_key = (session.id, request_id)
            self._by_request[query.request_key] = query
        parameters = request.get("parameters")
        try:
            expected = statements.expected_count(parameters if isinstance(parameters, dict) else {}, session)
            sql = request["sqlText"]
            query.statements = [sql] if transfers.is_transfer(sql) else statements.split(sql, expected)
        except Refusal as refusal:
            query.error, query.ended = refusal, query.started
        return query, query.error is None

    def start(self, query: Query) -> None:
        """Begins to run a prepared query."""
        query.task = asyncio.create_task(self._run(query))

    async def wait(self, query: Query, seconds: float) -> None:
        """Returns when the query is done, or after `seconds`."""
        if query.task is not None:
            await asyncio.wait({query.task}, timeout=seconds)

    def cancel(self, query: Query | None) -> None:
        """Cancels a running query; raises when there is none."""
        if query is None or query.done or query.task is None:
            raise Refusal("000605", "Identified SQL statement is not currently executing.", "57014")
        query.cancelled = True
        if query.in_engine:
            query.session.connection._duck_conn.interrupt()  # fakesnow has no cancel of its own
        else:
            query.task.cancel()

    def _cancel_by_statement(self, query: Query, action: statements.Cancel) -> str:
        """Cancels what the statement `query` names, and says so."""
        user = [other for other in self._by_id.values() if other.user == query.user and other is not query]
        named = [other for other in user if action.target in (other.id, str(other.session.id) if action.all else "")]
        running = [other for other in named if not other.done and other.task is not None]
        for other in running:
            self.cancel(other)
        return f"{len(running)} queries canceled." if action.all else f"query [{action.target}] terminated."

    def forget(self, session: Session) -> None:
        """The session ends: its temporary stages go."""
        for stage in self._stages.forget(session):
            self._storage.objects.remove_under(stage.prefix)

    def by_request(self, session: Session, request_id: str) -> Query | None:
        """The query that a request id of this session began."""
        return self._by_request.get((session.id, request_id))

    def _remember(self, query: Query) -> None:
        if not query.request.get("describeOnly"):
            self.history.executed(query)
        self._by_id[query.id] = query
        if len(self._by_id) > KEPT_QUERIES:
            oldest = self._by_id.popitem(last=False)[1]
            if oldest.request_key is not None:
                self._by_request.pop(oldest.request_key, None)

    async def _run(self, query: Query) -> None:
        try:
            if len(query.statements) == 1:
                data = await self._run_one(query)
            else:
                data = await self._run_all(query)
            query.data = data if data.get("command") else self._complete(query, data)
        except Refusal as refusal:
            query.error = cancelled() if query.cancelled else refusal
        except asyncio.CancelledError:
            query.error = cancelled()
        except Exception:
            LOGGER.exception("query %s failed inside the emulator", query.id)
            query.error = Refusal("000603", "SQL execution internal error.", "XX000")
        query.ended = time.time()

    async def _run_all(self, query: Query) -> dict[str, Any]:
        if query.request.get("describeOnly"):
            return status_result("", MULTI_STATEMENT, "multiple statement execution")
        children: list[Query] = []
        for text in query.statements:
            request = {"sqlText": text}
            child = Query(query.session, request, [text], query.wants_json, query.whole, parent=query)
            self._remember(child)
            await self._run(child)
            if query.cancelled or child.error is not None:
                raise child.error or cancelled()
            children.append(child)
        data = status_result(
            "Multiple statements executed successfully.", MULTI_STATEMENT, "multiple statement execution"
        )
        data["resultIds"] = ",".join(child.id for child in children)
        data["resultTypes"] = ",".join(str((child.data or {}).get("statementTypeId", 0)) for child in children)
        return data

    async def _run_one(self, query: Query) -> dict[str, Any]:
        session, sql = query.session, query.statements[0]
        if not query.request.get("describeOnly"):
            if (data := self.history.answer(sql, session)) is not None:
                return data
            action = statements.answered_here(sql, session)
            if isinstance(action, statements.Wait):
                await asyncio.sleep(action.seconds)
                return status_result(f"waited {action.seconds} seconds", 0x1000, "SYSTEM$WAIT")
            if isinstance(action, statements.Scan):
                return self._scan(query, action.query_id)
            if isinstance(action, statements.Allowlist):
                return status_result(json.dumps(allowlist(self._hosts, self._storage.host)), 0x1000, "SYSTEM$ALLOWLIST()")
            if isinstance(action, statements.Cancel):
                return status_result(self._cancel_by_statement(query, action), 0x1000, "SYSTEM$CANCEL_QUERY")
            if action is not None:
                return status_result("Statement executed successfully.", 0x4000)
        async with session.lock:
            if session.closed:
                raise Refusal("390111", "Session no longer exists. New login required to access the service.")
            running = query.parent or query
            running.in_engine = True
            try:
                return await self._execute(query, sql)
            finally:
                running.in_engine = False

    async def _execute(self, query: Query, sql: str) -> dict[str, Any]:
        """Runs a statement: here if it is about files, else in the engine."""
        session, describes = query.session, bool(query.request.get("describeOnly"))
        bound = words.with_identifiers(sql, bindings(query.request))
        if describes:
            return await self._in_engine(query, bound, describes)
        if stage := query.request.get("bindStage"):
            count = await asyncio.to_thread(binds.load, str(stage), session, self._stages, self._files)
            return await self._in_engine(query, words.Bound(binds.rewritten(bound.sql, count, session), {}))
        if (data := self._about_files(query, bound)) is not None:
            return data
        if words.first_word(bound.sql) == "COPY":
            async with self._files.copying:
                return await self._copy(query, bound)
        return await self._in_engine(query, bound)

    async def _copy(self, query: Query, bound: words.Bound) -> dict[str, Any]:
        copy = await asyncio.to_thread(self._files.copy, bound, query.session)
        if copy is None:
            return await self._in_engine(query, bound)
        done = False
        try:
            await self._in_engine(query, words.Bound(copy.stage_sql, {}))
            data = await self._in_engine(query, words.Bound(copy.sql, {}))
            done = True
        finally:
            self._files.finish(copy, done)
        return data

    async def _in_engine(self, query: Query, bound: words.Bound, describes: bool = False) -> dict[str, Any]:
        session = query.session
        sql = statements.with_context(bound.sql, session, self._account)
        request = {"sqlText": sql, "bindings": bound.bindings, "describeOnly": describes}
        # Shielded, so that the connection's lock outlives the thread that still uses the connection.
        execution = self._engine.execute(session.engine_token, request, self._hosts[0], query.wants_json)
        return await asyncio.shield(execution)

    def _about_files(self, query: Query, bound: words.Bound) -> dict[str, Any] | None:
        """The answer to a statement about stages and their files; nothing if it is about something else."""
        session, verb = query.session, words.first_word(bound.sql)
        if verb in ("PUT", "GET"):
            return self._transfers.answer(bound.sql, bound.bindings, session, query.id)
        if verb == "CREATE" and (made := self._stages.create(bound.sql, session)):
            return status_result(f"Stage area {made.name} successfully created.", 0x6000)
        if verb == "DROP" and (dropped := self._stages.drop(bound.sql, session)):
            self._storage.objects.remove_under(dropped.prefix)
            return status_result(f"{dropped.name[2]} successfully dropped.", 0x6000)
        if verb in ("LIST", "LS"):
            return self._files.list(bound.sql, session)
        if verb in ("REMOVE", "RM"):
            return self._files.remove(bound.sql, session)
        if verb == "SELECT":
            return self._files.infer(bound, session)
        return None

    def _scan(self, query: Query, query_id: str) -> dict[str, Any]:
        """The result of an earlier query of the same user, in the format that it was asked for then."""
        earlier = self.find(query_id, query.user)
        if earlier is None or earlier.data is None:
            raise Refusal("000709", f"Statement {query_id} not found", "02000")
        return {**earlier.data, "statementTypeId": 0x1000}

    def _complete(self, query: Query, data: dict[str, Any]) -> dict[str, Any]:
        """Adds what a real account's reply has and fakesnow's lacks."""
        session = query.session
        if "rowtype" in data:
            data.setdefault("returned", data.get("total", 0))
            data.setdefault("numberOfBinds", len(query.request.get("bindings") or {}))
        settings = [{"name": name, "value": value} for name, value in session.parameters.items()]
        final = {
            "parameters": settings,
            "queryId": query.id,
            "sqlState": "00000",
            "databaseProvider": None,
            "finalDatabaseName": session.connection.database,
            "finalSchemaName": session.connection.schema,
            "finalWarehouseName": session.warehouse,
            "finalRoleName": session.role,
            "arrayBindSupported": data.get("arrayBindSupported", False),
            "version": 1,
            "sendResultTime": int(time.time() * 1000),
            "queryContext": {"entries": [{"id": 0, "timestamp": int(time.time() * 1_000_000), "priority": 0}]},
        }
        if query.whole:
            return data | final
        return parts.cut(data | final, query.id, str(query.request["sqlText"]), self._storage.results)


def bindings(request: dict[str, Any]) -> dict[str, Any]:
    """What is bound to a statement's placeholders."""
    bound = request.get("bindings")
    return bound if isinstance(bound, dict) else {}


def allowlist(hosts: list[str], storage: str) -> list[dict[str, Any]]:
    """What `SYSTEM$ALLOWLIST()` says: the account's own hosts, and some of those that every account needs besides."""
    kinds = ["SNOWFLAKE_DEPLOYMENT", *["SNOWFLAKE_DEPLOYMENT_REGIONLESS"] * (len(hosts) - 1)]
    listed = [{"type": kind, "host": host, "port": 443} for kind, host in zip(kinds, hosts)]
    return listed + [
        {"type": "STAGE", "host": storage, "port": 443},
        {"type": "OCSP_CACHE", "host": "ocsp.snowflakecomputing.com", "port": 80},
    ]


def cancelled() -> Refusal:
    """The end of a cancelled statement."""
    return Refusal("000604", "SQL execution canceled", "57014")

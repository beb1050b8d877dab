"""The emulated Snowflake's REST interfaces beside the SQL API, spoken by hand."""

from __future__ import annotations

import http.client
import json
import re
import unittest
import uuid
from typing import Any

import fixtures
from fixtures import HOST, UpstreamCase

SCHEMA = "/api/v2/databases/sandbox/schemas/public"
MCP = f"{SCHEMA}/mcp-servers"


class RestCase(UpstreamCase):
    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """One request; header names have underscores for hyphens."""
        sent = {
            "user_agent": "tests",
            "accept": "application/json, text/event-stream",
            "authorization": f"Bearer {fixtures.ACCESS_TOKEN}",
            "x_snowflake_authorization_token_type": "PROGRAMMATIC_ACCESS_TOKEN",
        }
        if body is not None:
            sent["content_type"] = "application/json"
        named = {name.replace("_", "-"): value for name, value in (sent | headers).items()}
        with self.upstream.client() as client:
            client.connection.request(method, path, json.dumps(body) if body is not None else b"", named)
            answer = client.connection.getresponse()
            text = answer.read()
            got = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, got, json.loads(text) if text.startswith((b"{", b"[")) else text.decode()

    def sql(self, statement: str) -> None:
        body = {"statement": statement, "database": "SANDBOX", "schema": "PUBLIC"}
        self.assertEqual(self.ask("POST", "/api/v2/statements", body)[0], 200, statement)

    def as_oauth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {fixtures.OAUTH_TOKEN}", "x_snowflake_authorization_token_type": "OAUTH"}


class Objects(RestCase):
    def test_tables_are_listed_described_and_dropped(self) -> None:
        self.sql("create table one (a int)")
        status, _, listed = self.ask("GET", f"{SCHEMA}/tables?like=on%25")
        self.assertEqual((status, [row["name"] for row in listed]), (200, ["ONE"]))
        status, _, described = self.ask("GET", f"{SCHEMA}/tables/one")
        self.assertEqual((status, described["columns"][0]["name"]), (200, "A"))
        self.assertEqual(self.ask("DELETE", f"{SCHEMA}/tables/one")[0], 200)
        self.assertEqual(self.ask("GET", f"{SCHEMA}/tables/one")[0], 422)

    def test_a_long_list_comes_in_pages(self) -> None:
        for number in range(23):
            self.sql(f"create table page_{number:02} (a int)")
        status, headers, first = self.ask("GET", f"{SCHEMA}/tables?like=page%25")
        self.assertEqual((status, len(first)), (200, 10))
        links = {name: path for path, name in re.findall(r'<([^>]+)>; rel="(\w+)"', headers["link"])}
        self.assertEqual(set(links), {"first", "last", "next"})
        self.assertEqual(len(self.ask("GET", links["next"])[2]), 10)
        status, headers, last = self.ask("GET", links["last"])
        self.assertEqual((status, len(last), "next" in headers["link"]), (200, 3, False))
        for wrong in ("3", "x"):
            self.assertEqual(self.ask("GET", links["first"].replace("page=0", f"page={wrong}"))[0], 400)

    def test_requests_that_are_wrong(self) -> None:
        for expected, answer in (
            (404, self.ask("GET", "/api/v2/nothings")),
            (404, self.ask("GET", "/api/v2/cortex/inference:complete")),
            (400, self.ask("POST", "/api/v2/cortex/inference:complete", {"prompt": "x"})),
            (401, self.ask("GET", "/api/v2/databases", authorization="Bearer x")),
            (401, self.ask("GET", "/api/v2/databases", authorization='Snowflake Token="x"')),
            (400, self.ask("GET", "/api/v2/databases", user_agent="")),
            (415, self.ask("POST", "/api/v2/cortex/analyst/message", {"messages": []}, content_type="text/plain")),
        ):
            self.assertEqual(answer[0], expected, answer)


class Actions(RestCase):
    patience = 0.5

    def test_what_can_be_done_with_an_object(self) -> None:
        self.sql("create or replace table source as select 1 as a")
        tables = f"{SCHEMA}/tables"
        for path, body in (
            ("/api/v2/warehouses/wh:suspend?ifExists=true", None),
            ("/api/v2/warehouses/wh:resume", None),
            (f"{SCHEMA}/tasks/wait_0:execute", None),
            (f"{SCHEMA}/tasks/wait_1:suspend", None),
            (f"{tables}/source:clone", {"name": "twin"}),
            (f"{tables}/source:clone?createMode=orReplace", {"name": "twin"}),
            (f"{tables}/source:suspend-recluster", None),
        ):
            status, _, answer = self.ask("POST", path, body)
            self.assertEqual((status, list(answer)), (200, ["status"]), (path, answer))
        self.assertEqual(self.ask("GET", f"{tables}/twin")[0], 200)

    def test_what_cannot(self) -> None:
        for expected, method, path, body in (
            (404, "POST", "/api/v2/warehouses/other:suspend", None),
            (404, "POST", "/api/v2/warehouses/wh:undrop", None),
            (404, "POST", "/api/v2/warehouses/wh:SUSPEND", None),
            (404, "POST", "/api/v2/nothings/wh:suspend", None),
            (404, "POST", "/api/v2/warehouses:suspend", None),
            (404, "POST", "/api/v2/tables/t:suspend-recluster", None),
            (404, "POST", f"{SCHEMA}/tasks/other:execute", None),
            (404, "POST", f"{SCHEMA}/tables/gone:undrop", None),
            (405, "GET", "/api/v2/warehouses/wh:suspend", None),
            (405, "PUT", f"{SCHEMA}/tasks/wait_1:execute", None),
            (400, "POST", "/api/v2/warehouses/wh:suspend?force=true", None),
            (400, "POST", "/api/v2/warehouses/wh:suspend", {"name": "other"}),
            (400, "POST", f"{SCHEMA}/tasks/wait_1:execute?asyncExec=maybe", None),
            (422, "POST", f"{SCHEMA}/tasks/fail:execute", None),
        ):
            status, _, answer = self.ask(method, path, body)
            self.assertEqual(status, expected, (method, path, answer))

    def finish(self, path: str) -> tuple[int, Any]:
        status = 202
        while status == 202:
            status, _, answer = self.ask("GET", path)
        return status, answer

    def test_what_takes_long_has_its_result_later(self) -> None:
        for query in ("", "?asyncExec=true"):
            status, headers, answer = self.ask("POST", f"{SCHEMA}/tasks/wait_1:execute{query}")
            self.assertEqual((status, answer["code"]), (202, "392604"))
            path = f"/api/v2/results/{answer['resultHandler']}"
            self.assertEqual(headers["location"], path)
            status, answer = self.finish(path)
            self.assertEqual((status, list(answer)), (200, ["status"]))
            self.assertEqual(self.ask("GET", f"{path}?page=0")[0], 200)
        failing = self.ask("POST", f"{SCHEMA}/tasks/fail:execute?asyncExec=true")[2]["resultHandler"]
        self.assertEqual(self.finish(f"/api/v2/results/{failing}")[0], 422)
        for name, host in (("far_1", f"https://{HOST}"), ("away_1", "https://elsewhere.example")):
            headers = self.ask("POST", f"{SCHEMA}/tasks/{name}:execute?asyncExec=true")[1]
            self.assertTrue(headers["location"].startswith(f"{host}/api/v2/results/"), headers)

    def test_a_result_is_for_who_asked(self) -> None:
        handle = self.ask("POST", f"{SCHEMA}/tasks/wait_0:execute?asyncExec=true")[2]["resultHandler"]
        path = f"/api/v2/results/{handle}"
        for expected, answer in (
            (404, self.ask("GET", f"/api/v2/results/{uuid.uuid4()}")),
            (404, self.ask("GET", path, x_snowflake_role="OTHER")),
            (404, self.ask("POST", path)),
            (401, self.ask("GET", path, authorization="Bearer x")),
            (400, self.ask("GET", f"{path}?page=1")),
            (400, self.ask("GET", f"{path}?wait=1")),
            (200, self.ask("GET", path, **self.as_oauth())),
        ):
            self.assertEqual(answer[0], expected, answer)


class Services(RestCase):
    def call(self, server: str, method: str, session: str | None = None, **params: Any) -> tuple[int, dict[str, str], Any]:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        headers = {"mcp_session_id": session} if session else {}
        return self.ask("POST", f"{MCP}/{server}", body, **headers)

    def test_a_language_model_answers_whole_or_word_by_word(self) -> None:
        asked = {"model": "m", "messages": [{"role": "user", "content": "who?"}]}
        whole = self.ask("POST", "/api/v2/cortex/inference:complete", asked)[2]
        self.assertEqual(whole["choices"][0]["message"]["content"], "You asked: who?")
        _, headers, events = self.ask("POST", "/api/v2/cortex/inference:complete", {**asked, "stream": True})
        self.assertEqual((headers["content-type"], events.count("data: ")), ("text/event-stream", 4))
        broken = {**asked, "messages": [{"role": "user", "content": "break off"}], "stream": True}
        with self.assertRaises(http.client.IncompleteRead):
            self.ask("POST", "/api/v2/cortex/inference:complete", broken)

    def test_a_tool_runs_a_statement(self) -> None:
        ran = self.call("tools", "tools/call", name="sql_exec_tool", arguments={"sql": "select 7 as n"})[2]["result"]
        self.assertIn('"N": "7"', ran["content"][0]["text"])
        failed = self.call("tools", "tools/call", name="sql_exec_tool", arguments={"sql": "select nope"})[2]["result"]
        self.assertTrue(failed["isError"])
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        self.assertEqual(self.ask("POST", f"{MCP}/tools", note)[0], 202)

    def test_a_server_with_sessions_insists_on_them(self) -> None:
        status, headers, _ = self.call("sessions", "initialize", protocolVersion="2025-06-18")
        session = headers["mcp-session-id"]
        self.assertEqual(status, 200)
        self.assertEqual(self.call("sessions", "tools/list", session)[0], 200)
        self.assertEqual(self.call("sessions", "tools/list")[0], 400)
        self.assertEqual(self.call("sessions", "tools/list", f"{session}x")[0], 404)
        self.assertNotIn("mcp-session-id", self.call("tools", "initialize")[1])
        for method in ("GET", "DELETE"):
            self.assertEqual(self.ask(method, f"{MCP}/sessions")[0], 405)
        self.assertEqual(self.ask("POST", f"{MCP}/nothing", {"jsonrpc": "2.0"})[0], 404)


if __name__ == "__main__":
    unittest.main()

"""The emulated Snowflake's SQL API, spoken by hand."""

from __future__ import annotations

import gzip
import json
import re
import time
import unittest
import uuid
from typing import Any

import jwt

import fixtures
from emulator import credentials
from fixtures import HOST, UpstreamCase

PATH = "/api/v2/statements"


class SqlApiCase(UpstreamCase):
    def ask(
        self, method: str, path: str, body: Any = None, **headers: str | None
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        """One request; header names have underscores for hyphens, and None leaves one out."""
        sent: dict[str, str | None] = {
            "user_agent": "tests",
            "accept": "application/json",
            "authorization": f"Bearer {fixtures.ACCESS_TOKEN}",
            "x_snowflake_authorization_token_type": "PROGRAMMATIC_ACCESS_TOKEN",
        }
        if body is not None:
            sent["content_type"] = "application/json"
        sent |= headers
        named = {name.replace("_", "-"): value for name, value in sent.items() if value is not None}
        with self.upstream.client() as client:
            client.connection.request(method, path, json.dumps(body) if body is not None else b"", named)
            answer = client.connection.getresponse()
            text = answer.read()
            got = {name.lower(): value for name, value in answer.getheaders()}
            if got.get("content-encoding") == "gzip":
                text = gzip.decompress(text)
            return answer.status, got, json.loads(text)

    def submit(self, sql: str, query: str = "", **body: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
        return self.ask("POST", PATH + query, {"statement": sql, "database": "SANDBOX", "schema": "PUBLIC", **body})

    def rows(self, sql: str, **body: Any) -> list[list[str | None]]:
        status, _, answer = self.submit(sql, **body)
        self.assertEqual(status, 200, answer)
        rows: list[list[str | None]] = answer["data"]
        return rows


class SqlApi(SqlApiCase):
    def test_a_result(self) -> None:
        status, _, answer = self.submit("select 1.5::number(10,1) as a, true, null, 'ü'", role="ANALYST")
        self.assertEqual((status, answer["code"], answer["sqlState"]), (200, "090001", "00000"))
        self.assertEqual(answer["data"], [["1.5", "true", None, "ü"]])
        about = answer["resultSetMetaData"]
        self.assertEqual((about["numRows"], about["format"], about["rowType"][0]["name"]), (1, "jsonv2", "A"))
        self.assertEqual(answer["statementStatusUrl"], f"{PATH}/{answer['statementHandle']}")
        again = self.ask("GET", answer["statementStatusUrl"])[2]
        self.assertEqual(again["data"], answer["data"])
        bindings = {"1": {"type": "FIXED", "value": "7"}, "2": {"type": "TEXT", "value": "it's"}}
        self.assertEqual(self.rows("select ?, ?", bindings=bindings), [["7", "it's"]])
        self.assertEqual(self.rows("select current_role()", role="ANALYST"), [["ANALYST"]])
        self.assertEqual(self.rows("select current_user()"), [["SVC_AGENTS"]])
        body = {"statement": "select null"}
        self.assertEqual(self.ask("POST", f"{PATH}?nullable=false", body)[2]["data"], [["null"]])

    def test_every_kind_of_token_and_no_other(self) -> None:
        key = self.upstream.user_key
        subject, now = f"{HOST.upper()}.SVC_AGENTS", int(time.time())
        issuer = f"{subject}.{credentials.key_fingerprint(key.public_key())}"
        claims = {"iss": issuer, "sub": subject, "iat": now, "exp": now + 60}
        signed = jwt.encode(claims, key, algorithm="RS256")
        body = {"statement": "select 1"}
        kind = "x_snowflake_authorization_token_type"
        for token, named, expected in (
            (fixtures.ACCESS_TOKEN, "PROGRAMMATIC_ACCESS_TOKEN", 200),
            (fixtures.OAUTH_TOKEN, "OAUTH", 200),
            (fixtures.OAUTH_TOKEN, None, 200),
            (signed, "KEYPAIR_JWT", 200),
            (signed[:-8] + "AAAAAAAA", "KEYPAIR_JWT", 401),
            (signed, "OAUTH", 401),
            (fixtures.ACCESS_TOKEN, "OAUTH", 401),
            (fixtures.PASSWORD.replace(" ", ""), "PASSWORD", 401),
        ):
            status, _, answer = self.ask("POST", PATH, body, authorization=f"Bearer {token}", **{kind: named})
            self.assertEqual(status, expected, (named, answer))
            self.assertRegex(answer["code"], r"\A\d{6}\Z")
        for header in (None, 'Snowflake Token="x"'):
            self.assertEqual(self.ask("POST", PATH, body, authorization=header)[0], 401)

    def test_requests_that_are_wrong(self) -> None:
        body = {"statement": "select 1"}
        for expected, answer in (
            (400, self.ask("POST", PATH, {"sqlText": "select 1"})),
            (400, self.ask("POST", PATH, {**body, "surprise": 1})),
            (400, self.ask("POST", PATH, {**body, "bindings": []})),
            (400, self.ask("POST", f"{PATH}?async=maybe", body)),
            (400, self.ask("POST", f"{PATH}?requestId=7", body)),
            (400, self.ask("POST", PATH, body, user_agent="")),
            (406, self.ask("POST", PATH, body, accept="text/html")),
            (415, self.ask("POST", PATH, body, content_type="text/plain")),
            (405, self.ask("GET", PATH)),
            (404, self.ask("GET", "/api/v2/statements/none")),
            (404, self.ask("GET", f"{PATH}/{uuid.uuid4()}")),
        ):
            self.assertEqual(answer[0], expected, answer)

    def test_errors_are_errors_of_http(self) -> None:
        for sql, code in (
            ("select * from nope", "002003"),
            ("selec 1", "001003"),
            ("select 1; select 2", "000008"),
            ("put file:///x @~", "391911"),
            ("use role other", "391911"),
        ):
            status, _, answer = self.submit(sql)
            self.assertEqual((status, answer["code"]), (422, code), answer)
            self.assertEqual(self.ask("GET", answer["statementStatusUrl"])[0], 422)

    def test_partitions(self) -> None:
        status, headers, answer = self.submit("select seq4() as n from table(generator(rowcount => 12000))")
        self.assertEqual(status, 200)
        parts = answer["resultSetMetaData"]["partitionInfo"]
        self.assertEqual([part["rowCount"] for part in parts], [1000, 5000, 5000, 1000])
        self.assertEqual(["compressedSize" in part for part in parts], [False, True, True, True])
        links = dict(re.findall(r'<([^>]+)>;rel="(\w+)"', headers["link"]))
        self.assertEqual(sorted(links.values()), ["first", "last", "next"])
        rows = answer["data"]
        for number in range(1, 4):
            encoding = "gzip" if number == 2 else "identity"
            path = f"{PATH}/{answer['statementHandle']}?partition={number}"
            status, got, part = self.ask("GET", path, accept_encoding=encoding)
            self.assertEqual((status, got.get("content-encoding", "identity")), (200, encoding))
            self.assertEqual(list(part), ["data"])
            rows += part["data"]
        self.assertEqual(sorted(int(row[0]) for row in rows), list(range(12000)))
        for number in ("4", "x"):
            self.assertEqual(self.ask("GET", f"{PATH}/{answer['statementHandle']}?partition={number}")[0], 400)

    def test_several_statements(self) -> None:
        sql = "create table several (a int); insert into several values (1), (2); select * from several order by a"
        status, _, answer = self.submit(sql, parameters={"multi_statement_count": "3"})
        self.assertEqual((status, len(answer["statementHandles"])), (200, 3), answer)
        self.assertEqual(self.ask("GET", f"{PATH}/{answer['statementHandles'][2]}")[2]["data"], [["1"], ["2"]])

    def test_a_repetition_is_the_same_statement(self) -> None:
        self.rows("create table once (a int)")
        request = f"?requestId={uuid.uuid4()}"
        first = self.submit("insert into once values (1)", request)[2]
        again = self.submit("insert into once values (1)", request + "&retry=true")[2]
        self.assertEqual(first["statementHandle"], again["statementHandle"])
        self.assertEqual(self.rows("select count(*) from once"), [["1"]])
        logged = [line["executed"] for line in self.upstream.lines() if request[1:] in line["query"]]
        self.assertEqual(logged, [True, False])
        self.assertIn("insert into once values (1)", self.upstream.statements())


class LongStatements(SqlApiCase):
    patience = 0.5

    def finish(self, answer: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status = 202
        while status == 202:
            status, _, answer = self.ask("GET", answer["statementStatusUrl"])
        return status, answer

    def test_what_takes_long_is_asked_for_again(self) -> None:
        for query in ("", "?async=true"):
            status, _, answer = self.submit("call system$wait(1)", query)
            self.assertEqual((status, answer["code"]), (202, "333334"))
            status, answer = self.finish(answer)
            self.assertEqual((status, answer["data"]), (200, [["waited 1 seconds"]]))
        failed = self.submit("select * from nope", "?async=true")[2]
        self.assertEqual(self.finish(failed)[0], 422)

    def test_a_statement_is_cancelled(self) -> None:
        answer = self.submit("call system$wait(30)", "?async=true")[2]
        cancel = f"{answer['statementStatusUrl']}/cancel"
        self.assertEqual(self.ask("POST", cancel)[0], 200)
        self.assertEqual(self.finish(answer)[1]["code"], "000604")
        status, _, answer = self.ask("POST", cancel)
        self.assertEqual((status, answer["code"]), (422, "000605"))


class Timeouts(SqlApiCase):
    def test_a_timeout_ends_a_statement(self) -> None:
        status, _, answer = self.submit("call system$wait(30)", timeout=1)
        self.assertEqual((status, answer["code"]), (408, "000630"))


if __name__ == "__main__":
    unittest.main()

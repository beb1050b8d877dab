"""curl, by the SQL API: what Snowflake's documentation shows. Python only starts it and reads what it prints."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any

from scenarios import (
    LARGE,
    LARGE_SUMS,
    REFUSAL_STATE,
    REFUSED,
    UNICODE,
    Cannot,
    at_once,
    cannot,
    please,
    same,
    says,
    scenario,
    sums,
    try_all,
    wait_until,
)

STATEMENTS = "/api/v2/statements"


@dataclass
class Answer:
    status: int
    body: dict[str, Any]

    @property
    def rows(self) -> Any:
        assert self.status == 200, self
        return self.body["data"]

    @property
    def handle(self) -> str:
        return str(self.body["statementHandle"])


def curl(method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
    of = os.environ
    command = ["curl", "-sS", "--compressed", "-X", method, "-w", "\n%{http_code}", "--cacert", of["SSL_CERT_FILE"]]
    command += ["-H", f"Authorization: Bearer {of['SNOWFLAKE_TOKEN']}", "-H", "Content-Type: application/json"]
    command += ["-H", "Accept: application/json", "-H", "User-Agent: scenarios/1.0"]
    command += ["-d", json.dumps(body)] if body is not None else []
    command.append(f"https://{of['SNOWFLAKE_HOST']}{path}")
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    text, _, status = done.stdout.rpartition("\n")
    return Answer(int(status), json.loads(text))


def ask(sql: str, query: str = "", **more: Any) -> Answer:
    body = {"statement": sql, "database": "ANALYTICS", "schema": "PUBLIC", "timeout": 60, **more}
    return curl("POST", STATEMENTS + query, body)


def rows(sql: str, *binds: tuple[str, Any]) -> Any:
    bindings = {str(number): {"type": kind, "value": value} for number, (kind, value) in enumerate(binds, 1)}
    return ask(sql, **({"bindings": bindings} if bindings else {})).rows


@scenario("connect")
def _() -> None:
    same(rows("select current_database(), current_schema()"), [["ANALYTICS", "PUBLIC"]])


@scenario("a small result")
def _() -> None:
    read = rows("select id, credit from customers where id < 3 order by id")
    same(read, [["1", "17.37"], ["2", "34.74"]])


@scenario("a large result, in parts")
def _() -> None:
    answer = ask(LARGE)
    parts = answer.body["resultSetMetaData"]["partitionInfo"]
    assert len(parts) > 10, parts
    rest = [curl("GET", f"{STATEMENTS}/{answer.handle}?partition={part}").rows for part in range(1, len(parts))]
    same(sums(sum(rest, answer.rows)), LARGE_SUMS)


@scenario("an empty result")
def _() -> None:
    answer = ask("select id, name from customers where id < 0")
    same((answer.rows, names(answer)), ([], ["ID", "NAME"]))


def names(answer: Answer) -> list[str]:
    return [column["name"] for column in answer.body["resultSetMetaData"]["rowType"]]


@scenario("every type")
def _() -> None:
    values = rows("""
        select 42, 1.50::number(10, 2), 123456789012345678901234567890.12::number(38, 2), 1.25::float, true,
            '2024-02-29'::date, '13:14:15.123456'::time, '2024-02-29 13:14:15.123456'::timestamp_ntz,
            '2024-02-29 13:14:15.123456 +0000'::timestamp_tz, to_binary('CAFE', 'HEX')""")[0]
    same(values[:5], ["42", "1.50", "123456789012345678901234567890.12", "1.25", "true"])
    same(values[5:], ["19782", "47655.123456000", "1709212455.123456000", "1709212455.123456000 1440", "CAFE"])
    nested = rows("""select parse_json('{"a": [1, "ü", null]}'), array_construct(1, 2), object_construct('k', 1)""")[0]
    same([json.loads(text) for text in nested], [{"a": [1, "ü", None]}, [1, 2], {"k": 1}])


@scenario("NULLs")
def _() -> None:
    same(rows("select null, null::int, null::varchar, null::date, null::float"), [[None] * 5])
    same(ask("select null::int", "?nullable=false").rows, [["null"]])


@scenario("Unicode")
def _() -> None:
    same(rows("select ?", ("TEXT", UNICODE)), [[UNICODE]])


@scenario("write")
def _() -> None:
    rows("create table written (id int, name varchar)")
    same(rows("insert into written values (1, 'one'), (2, 'two')"), [["2"]])
    rows("update written set name = 'zwei' where id = 2")
    rows("delete from written where id = 1")
    same(rows("select * from written"), [["2", "zwei"]])


def several(sql: str) -> list[Any]:
    answer = ask(sql, parameters={"MULTI_STATEMENT_COUNT": "0"})
    return [curl("GET", f"{STATEMENTS}/{handle}").rows for handle in answer.body["statementHandles"]]


@scenario("transaction")
def _() -> None:
    rows("create table kept (id int)")
    several("begin; insert into kept values (1); rollback")
    several("begin; insert into kept values (2); commit")
    same(rows("select id from kept"), [["2"]])


@scenario("binds")
def _() -> None:
    same(rows("select ?, ?, ?", ("FIXED", "7"), ("TEXT", "it's"), ("TEXT", None)), [["7", "it's", None]])


cannot("describe", "not in the SQL API")


@scenario("several statements in one text")
def _() -> None:
    same(several("select 1; select 2"), [[["1"]], [["2"]]])


@scenario("asynchronous")
def _() -> None:
    answer = ask("select 40 + 2", "?async=true")
    same(answer.status in (200, 202), True)
    path = f"{STATEMENTS}/{answer.handle}"
    wait_until(lambda: curl("GET", path).status != 202)
    same(curl("GET", path).rows, [["42"]])


@scenario("cancel")
def _() -> None:
    answer = ask("select system$wait(300)", "?async=true")
    path = f"{STATEMENTS}/{answer.handle}"
    same((answer.status, curl("POST", f"{path}/cancel").status), (202, 200))
    wait_until(lambda: curl("GET", path).status != 202)
    ended = curl("GET", path)
    same((ended.status, ended.body["code"], ended.body["sqlState"]), (422, "000604", "57014"))


@scenario("an error of Snowflake's")
def _() -> None:
    answer = ask("select no_such_column from customers")
    same((answer.status, answer.body["code"], answer.body["sqlState"]), (422, "002043", "02000"))


@scenario("a refusal, once")
def _() -> None:
    answer = ask(REFUSED)
    same((answer.status, answer.body["code"], answer.body["sqlState"]), (422, "003001", REFUSAL_STATE))
    says(answer.body["message"], "DROP TABLE", "no-drop")


@scenario("going on after a refusal")
def _() -> None:
    same(rows("select count(*) from customers"), [["300"]])


cannot("the session is renewed", "the SQL API has no sessions")


@scenario("the agent restarts")
def _() -> None:
    rows("create table mine (id int)")
    earlier, running = ask("select 'earlier'"), ask("select system$wait(5)", "?async=true")
    please("restart")
    rows("insert into mine values (1)")
    same(rows("select id from mine"), [["1"]])
    same(curl("GET", f"{STATEMENTS}/{earlier.handle}").body["data"], [["earlier"]])
    # What had not ended when the agent was killed is still its caller's.
    path = f"{STATEMENTS}/{running.handle}"
    wait_until(lambda: curl("GET", path).status != 202)
    same(curl("GET", path).status, 200)


@scenario("several sessions at once")
def _() -> None:
    same(at_once(5, lambda number: rows(f"select {number}")), [[[str(number)]] for number in range(5)])


@scenario("100 sessions at once")
def _() -> None:
    same(at_once(100, lambda number: rows(f"select {number}")), [[[str(number)]] for number in range(100)])


cannot("files: PUT and GET", "not in the SQL API")

try_all("curl, by the SQL API")

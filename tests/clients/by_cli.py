"""The Snowflake CLI: each text is one call of `snow sql`. Python only starts it and reads what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scenarios import (
    LARGE,
    LARGE_SUMS,
    REFUSED,
    UNICODE,
    at_once,
    cannot,
    please,
    same,
    says,
    scenario,
    try_all,
)

SNOW = Path(sys.executable).with_name("snow")


def snow(*words: str) -> subprocess.CompletedProcess[str]:
    of = os.environ
    connection = ["--temporary-connection", "--account", of["SNOWFLAKE_ACCOUNT"], "--user", of["SNOWFLAKE_USER"]]
    connection += ["--authenticator", "oauth", "--token", of["SNOWFLAKE_TOKEN"]]
    connection += ["--database", of["SNOWFLAKE_DATABASE"], "--schema", of["SNOWFLAKE_SCHEMA"]]
    command = [str(SNOW), *words, *connection, "--format", "json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def rows(sql: str, *words: str) -> Any:
    done = snow("sql", "--query", sql, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@cache
def several_results() -> Any:
    """What small statements say, all in one call: the CLI takes seconds to start."""
    quoted = UNICODE.replace("\\", "\\\\").replace("'", "''")
    return rows(f"""
        select id, credit from customers where id < 3 order by id;
        select id, name from customers where id < 0;
        select null as a, null::int as b, null::date as c;
        select '{quoted}' as a""")


def error_of(sql: str) -> str:
    done = snow("sql", "--query", sql)
    same(done.returncode, 1)
    # It draws a box around what it says.
    return " ".join((done.stdout + done.stderr).replace("│", " ").split())


@scenario("connect")
def _() -> None:
    done = snow("connection", "test")
    assert done.returncode == 0, done.stdout + done.stderr
    same(json.loads(done.stdout)["Status"], "OK")


@scenario("a small result")
def _() -> None:
    same(several_results()[0], [{"ID": 1, "CREDIT": "17.37"}, {"ID": 2, "CREDIT": "34.74"}])


@scenario("a large result, in parts")
def _() -> None:
    read = rows(LARGE)
    same((len(read), len({row["T"] for row in read}), sum(row["N"] for row in read)), LARGE_SUMS)


@scenario("an empty result")
def _() -> None:
    same(several_results()[1], [])


@scenario("every type")
def _() -> None:
    row = rows("""
        select 42 as a, 1.50::number(10, 2) as b, 123456789012345678901234567890.12::number(38, 2) as c,
            1.25::float as d, true as e, '2024-02-29'::date as f, '13:14:15.123456'::time as g,
            '2024-02-29 13:14:15.123456'::timestamp_ntz as h, to_binary('CAFE', 'HEX') as i""")[0]
    same([row[name] for name in "ABCDE"], [42, "1.50", "123456789012345678901234567890.12", 1.25, True])
    same([row[name] for name in "FGHI"], ["2024-02-29", "13:14:15.123456", "2024-02-29T13:14:15.123456", "cafe"])
    nested = rows("""select parse_json('{"a": [1, "ü", null]}'), array_construct(1, 2), object_construct('k', 1)""")[0]
    same([json.loads(text) for text in nested.values()], [{"a": [1, "ü", None]}, [1, 2], {"k": 1}])


@scenario("NULLs")
def _() -> None:
    same(several_results()[2], [{"A": None, "B": None, "C": None}])


@scenario("Unicode")
def _() -> None:
    same(several_results()[3], [{"A": UNICODE}])


@scenario("write")
def _() -> None:
    said = rows("""
        create table written (id int, name varchar);
        insert into written values (1, 'one'), (2, 'two');
        update written set name = 'zwei' where id = 2;
        delete from written where id = 1;
        select * from written""")
    same(said[1], [{"number of rows inserted": 2}])
    same(said[4], [{"ID": 2, "NAME": "zwei"}])


@scenario("transaction")
def _() -> None:
    said = rows("""
        create table kept (id int);
        begin; insert into kept values (1); rollback;
        begin; insert into kept values (2); commit;
        select id from kept""")
    same(said[-1], [{"ID": 2}])


cannot("binds", "the CLI puts variables into the text itself")


@scenario("describe")
def _() -> None:
    done = snow("object", "describe", "table", "customers")
    assert done.returncode == 0, done.stdout + done.stderr
    same([column["name"] for column in json.loads(done.stdout)][:3], ["ID", "NAME", "EMAIL"])


@scenario("several statements in one text")
def _() -> None:
    same(rows("select 1 as a; select 2 as a"), [[{"A": 1}], [{"A": 2}]])


def submitted(sql: str) -> str:
    """The number of a statement that runs by itself."""
    return str(rows(f"{sql};>")[0]["scheduled query ID"])


@scenario("asynchronous")
def _() -> None:
    same(rows(f"!result {submitted('select 40 + 2 as a')}"), [{"A": 42}])


@scenario("cancel")
def _() -> None:
    query = submitted("select system$wait(300)")
    rows(f"!abort {query}")
    says(error_of(f"!result {query}"), "000604", "canceled")


@scenario("an error of Snowflake's")
def _() -> None:
    says(error_of("select no_such_column from customers"), "002043 (02000)")


@scenario("a refusal, once")
def _() -> None:
    says(error_of(REFUSED), "003001 (42501)", "DROP TABLE", "no-drop")


@scenario("going on after a refusal")
def _() -> None:
    same(rows("select count(*) as n from customers"), [{"N": 300}])


def in_between(wish: str) -> None:
    """A session of three statements, and something happens during the second."""
    timer = threading.Timer(4, please, [wish])
    timer.start()
    text = "select current_session() as s; select system$wait(8); select current_session() as s"
    before, _, after = rows(text)
    timer.join()
    same(before, after)


# It ends before a session does.
cannot("the session is renewed", "each session is a process of its own")


@scenario("the agent restarts")
def _() -> None:
    in_between("restart")


@scenario("several sessions at once")
def _() -> None:
    same(at_once(3, lambda number: rows(f"select {number} as n")), [[{"N": number}] for number in range(3)])


cannot("100 sessions at once", "each session is a process of its own")


@scenario("files: PUT and GET")
def _() -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = os.urandom(300_000)
        Path(folder, "data.bin").write_bytes(content)
        for words in (
            ["copy", f"{folder}/data.bin", "@~/by_cli", "--no-auto-compress"],
            ["copy", "@~/by_cli/data.bin", f"{folder}/out"],
        ):
            done = snow("stage", *words)
            assert done.returncode == 0, done.stdout + done.stderr
        same(Path(folder, "out/data.bin").read_bytes() == content, True)


try_all(f"Snowflake CLI {version('snowflake-cli')}")

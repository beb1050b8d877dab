"""The Python connector, 5.x and 4.x: what its manual shows."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
import threading
import time
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import snowflake.connector  # noqa: E402 - it warns at once
from scenarios import (  # noqa: E402
    LARGE,
    LARGE_SUMS,
    REFUSAL_CODE,
    REFUSAL_STATE,
    REFUSED,
    UNICODE,
    at_once,
    error_of,
    of_one_session,
    same,
    says,
    scenario,
    sums,
    try_all,
    wait_until,
)
from snowflake.connector.errors import ProgrammingError  # noqa: E402


def connect(**more: Any) -> Any:
    of = os.environ
    return snowflake.connector.connect(
        account=of["SNOWFLAKE_ACCOUNT"],
        user=of["SNOWFLAKE_USER"],
        authenticator="oauth",
        token=of["SNOWFLAKE_TOKEN"],
        database=of["SNOWFLAKE_DATABASE"],
        schema=of["SNOWFLAKE_SCHEMA"],
        **more,
    )


connection = connect()
cursor = connection.cursor()


def rows(sql: str, *binds: Any) -> Any:
    return cursor.execute(sql, *binds).fetchall()


@scenario("connect")
def _() -> None:
    same(rows("select current_database(), current_schema()"), [("ANALYTICS", "PUBLIC")])
    same((connection.database, connection.schema), ("ANALYTICS", "PUBLIC"))


@scenario("a small result")
def _() -> None:
    same(rows("select id, credit from customers where id < 3 order by id"), [(1, Decimal("17.37")), (2, Decimal("34.74"))])
    same(cursor.rowcount, 2)


@scenario("a large result, in parts")
def _() -> None:
    same(sums(rows(LARGE)), LARGE_SUMS)


@scenario("an empty result")
def _() -> None:
    same(rows("select id, name from customers where id < 0"), [])
    same([column[0] for column in cursor.description], ["ID", "NAME"])


@scenario("every type")
def _() -> None:
    moment = datetime.datetime(2024, 2, 29, 13, 14, 15, 123456)
    values = rows("""
        select 42, 1.50::number(10, 2), 123456789012345678901234567890.12::number(38, 2), 1.25::float, true,
            '2024-02-29'::date, '13:14:15.123456'::time, '2024-02-29 13:14:15.123456'::timestamp_ntz,
            to_binary('CAFE', 'HEX')""")[0]
    same(values[:5], (42, Decimal("1.50"), Decimal("123456789012345678901234567890.12"), 1.25, True))
    same(values[5:], (moment.date(), moment.time(), moment, bytearray(b"\xca\xfe")))
    zone = datetime.timezone(datetime.timedelta(0))
    same(rows("select '2024-02-29 13:14:15.123456 +0000'::timestamp_tz")[0][0].astimezone(zone), moment.replace(tzinfo=zone))
    nested = rows("""select parse_json('{"a": [1, "ü", null]}'), array_construct(1, 2), object_construct('k', 1)""")[0]
    same([json.loads(text) for text in nested], [{"a": [1, "ü", None]}, [1, 2], {"k": 1}])


@scenario("NULLs")
def _() -> None:
    same(rows("select null, null::int, null::varchar, null::date, null::float"), [(None,) * 5])
    same(rows("select id, note from customers where id in (3, 4) order by id")[1], (4, None))


@scenario("Unicode")
def _() -> None:
    same(rows("select %s", (UNICODE,)), [(UNICODE,)])
    same(rows("select 'Zoë 🦊' as \"Größe\""), [("Zoë 🦊",)])
    same(cursor.description[0][0], "Größe")


@scenario("write")
def _() -> None:
    rows("create table written (id int, name varchar)")
    rows("insert into written values (1, 'one'), (2, 'two')")
    same(cursor.rowcount, 2)
    rows("update written set name = 'zwei' where id = 2")
    same(cursor.rowcount, 1)
    rows("delete from written where id = 1")
    same(rows("select * from written"), [(2, "zwei")])


@scenario("transaction")
def _() -> None:
    rows("create table kept (id int)")
    connection.autocommit(False)
    rows("insert into kept values (1)")
    connection.rollback()
    rows("insert into kept values (2)")
    connection.commit()
    connection.autocommit(True)
    same(rows("select id from kept"), [(2,)])


@scenario("binds")
def _() -> None:
    same(rows("select %(a)s, %(b)s", {"a": 7, "b": "it's"}), [(7, "it's")])
    with connect(paramstyle="qmark") as other:
        of_server = other.cursor()
        same(of_server.execute("select ?, ?, ?", (7, UNICODE, None)).fetchall(), [(7, UNICODE, None)])
        of_server.execute("create table bound (id int, name varchar)")
        of_server.executemany("insert into bound values (?, ?)", [(1, "one"), (2, "two")])
        same(of_server.execute("select * from bound order by id").fetchall(), [(1, "one"), (2, "two")])


@scenario("describe")
def _() -> None:
    described = cursor.describe("select id, name, credit from customers")
    same([(column.name, column.scale) for column in described], [("ID", 0), ("NAME", None), ("CREDIT", 2)])


@scenario("several statements in one text")
def _() -> None:
    cursor.execute("select 1; select 2", num_statements=2)
    first = cursor.fetchall()
    cursor.nextset()
    same(first + cursor.fetchall(), [(1,), (2,)])


@scenario("asynchronous")
def _() -> None:
    cursor.execute_async("select 40 + 2")
    query = cursor.sfqid
    wait_until(lambda: not connection.is_still_running(connection.get_query_status_throw_if_error(query)))
    cursor.get_results_from_sfqid(query)
    same(cursor.fetchall(), [(42,)])


@scenario("cancel")
def _() -> None:
    began = time.monotonic()
    cursor.execute_async("select system$wait(300)")
    query = cursor.sfqid
    same(cursor.abort_query(query), True)
    wait_until(lambda: not connection.is_still_running(connection.get_query_status(query)))
    error = error_of(ProgrammingError, lambda: connection.get_query_status_throw_if_error(query))
    same(error.errno, 604)
    assert time.monotonic() - began < 30


@scenario("an error of Snowflake's")
def _() -> None:
    error = error_of(ProgrammingError, lambda: rows("select no_such_column from customers"))
    same((error.errno, error.sqlstate), (2043, "02000"))


@scenario("a refusal, once")
def _() -> None:
    error = error_of(ProgrammingError, lambda: rows(REFUSED))
    same((error.errno, error.sqlstate), (REFUSAL_CODE, REFUSAL_STATE))
    says(str(error), "DROP TABLE", "no-drop")


of_one_session(rows)


def own_session(number: int) -> Any:
    with connect() as own:
        return own.cursor().execute(f"select {number}, current_session()").fetchall()[0]


@scenario("several sessions at once")
def _() -> None:
    said = at_once(5, own_session)
    same([number for number, _ in said], list(range(5)))
    same(len({session for _, session in said}), 5)


@scenario("100 sessions at once")
def _() -> None:
    together = threading.Barrier(100)

    def session(number: int) -> Any:
        with connect() as own:
            # Nobody goes on before all are there.
            together.wait(100)
            return own.cursor().execute(f"select {number}").fetchall()[0][0]

    same(at_once(100, session), list(range(100)))


@scenario("files: PUT and GET")
def _() -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = os.urandom(300_000)
        Path(folder, "data.bin").write_bytes(content)
        rows(f"put 'file://{folder}/data.bin' @~/by_connector auto_compress=false")
        same(cursor.description[6][0], "status")
        os.mkdir(f"{folder}/out")
        rows(f"get @~/by_connector/data.bin 'file://{folder}/out'")
        same(Path(folder, "out/data.bin").read_bytes() == content, True)


try_all(f"Python connector {snowflake.connector.__version__}")

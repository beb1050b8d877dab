"""ADBC with Snowflake's driver in Go: what its manual shows."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
import threading
import time
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import adbc_driver_snowflake.dbapi as snowflake
import pyarrow
from scenarios import (
    LARGE,
    LARGE_SUMS,
    REFUSAL_CODE,
    REFUSAL_STATE,
    REFUSED,
    UNICODE,
    at_once,
    cannot,
    error_of,
    of_one_session,
    same,
    says,
    scenario,
    sums,
    try_all,
)


def connect() -> Any:
    of = os.environ
    options = {
        "account": of["SNOWFLAKE_ACCOUNT"],
        "auth_type": "auth_oauth",
        "client_option.auth_token": of["SNOWFLAKE_TOKEN"],
        "db": of["SNOWFLAKE_DATABASE"],
        "schema": of["SNOWFLAKE_SCHEMA"],
    }
    options = {f"adbc.snowflake.sql.{name}": value for name, value in options.items()}
    return snowflake.connect(db_kwargs={"username": of["SNOWFLAKE_USER"], **options}, autocommit=True)


connection = connect()
cursor = connection.cursor()


def rows(sql: str, *binds: Any) -> list[tuple[Any, ...]]:
    cursor.execute(sql, binds or None)
    return cursor.fetchall()


@scenario("connect")
def _() -> None:
    same(rows("select current_database(), current_schema()"), [("ANALYTICS", "PUBLIC")])
    same((connection.adbc_current_catalog, connection.adbc_current_db_schema), ("ANALYTICS", "PUBLIC"))


@scenario("a small result")
def _() -> None:
    read = rows("select id, credit from customers where id < 3 order by id")
    same(read, [(1, Decimal("17.37")), (2, Decimal("34.74"))])


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
    same(values[5:], (moment.date(), moment.time(), moment, b"\xca\xfe"))
    zone = datetime.timezone(datetime.timedelta(0))
    same(rows("select '2024-02-29 13:14:15.123456 +0000'::timestamp_tz")[0][0].astimezone(zone), moment.replace(tzinfo=zone))
    nested = rows("""select parse_json('{"a": [1, "ü", null]}'), array_construct(1, 2), object_construct('k', 1)""")[0]
    same([json.loads(value) for value in nested], [{"a": [1, "ü", None]}, [1, 2], {"k": 1}])


@scenario("NULLs")
def _() -> None:
    same(rows("select null, null::int, null::varchar, null::date, null::float"), [(None,) * 5])


@scenario("Unicode")
def _() -> None:
    same(rows("select 'Zoë 🦊 李小龙 مريم e\u0301'"), [("Zoë 🦊 李小龙 مريم e\u0301",)])


@scenario("write")
def _() -> None:
    rows("create table written (id int, name varchar)")
    rows("insert into written values (1, 'one'), (2, 'two')")
    # By a stage: Parquet, PUT and COPY.
    table = pyarrow.table({"ID": [3, 4], "NAME": [UNICODE, None]})
    same(cursor.adbc_ingest("WRITTEN", table, mode="append"), 2)
    same(rows("select * from written order by id"), [(1, "one"), (2, "two"), (3, UNICODE), (4, None)])


@scenario("transaction")
def _() -> None:
    rows("create table kept (id int)")
    rows("begin")
    rows("insert into kept values (1)")
    rows("rollback")
    rows("begin")
    rows("insert into kept values (2)")
    rows("commit")
    same(rows("select id from kept"), [(2,)])


@scenario("binds")
def _() -> None:
    same(rows("select ?, ?", 7, UNICODE), [(7, UNICODE)])


@scenario("describe")
def _() -> None:
    same(cursor.adbc_execute_schema("select id, name, credit from customers").names, ["ID", "NAME", "CREDIT"])
    same(connection.adbc_get_table_schema("CUSTOMERS").names[:3], ["ID", "NAME", "EMAIL"])


cannot("several statements in one text", "not in ADBC")
cannot("asynchronous", "not in ADBC")


# The driver does not wait for what Snowflake says of the statement, but ends with an error of its own.
@scenario("cancel")
def _() -> None:
    with connect() as own, own.cursor() as slow:
        began = time.monotonic()
        threading.Timer(1, slow.adbc_cancel).start()
        error = error_of(snowflake.InternalError, lambda: slow.execute("select system$wait(300)"))
        same((str(error), error.vendor_code, error.sqlstate), ("INTERNAL: context canceled", None, None))
        assert time.monotonic() - began < 30
        slow.execute("select 1")
        same(slow.fetchall(), [(1,)])


# The driver has no other class for what Snowflake answers.
@scenario("an error of Snowflake's")
def _() -> None:
    error = error_of(snowflake.InternalError, lambda: rows("select no_such_column from customers"))
    same((error.vendor_code, error.sqlstate), (2043, "02000"))


@scenario("a refusal, once")
def _() -> None:
    error = error_of(snowflake.InternalError, lambda: rows(REFUSED))
    same((error.vendor_code, error.sqlstate), (REFUSAL_CODE, REFUSAL_STATE))
    says(str(error), "DROP TABLE", "no-drop")


of_one_session(rows)


@scenario("several sessions at once")
def _() -> None:
    same(len(set(sessions(5))), 5)


@scenario("100 sessions at once")
def _() -> None:
    same(len(set(sessions(100))), 100)


def sessions(count: int) -> list[str]:
    """The numbers of so many sessions, which are all there at the same time."""
    together = threading.Barrier(count)

    def one(_: int) -> str:
        with connect() as own, own.cursor() as reading:
            together.wait(100)
            reading.execute("select current_session()")
            return str(reading.fetchone()[0])

    return at_once(count, one)


@scenario("files: PUT and GET")
def _() -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = os.urandom(300_000)
        Path(folder, "data.bin").write_bytes(content)
        rows(f"put 'file://{folder}/data.bin' @~/by_adbc auto_compress=false")
        os.mkdir(f"{folder}/out")
        rows(f"get @~/by_adbc/data.bin 'file://{folder}/out'")
        same(Path(folder, "out/data.bin").read_bytes() == content, True)


try_all(f"ADBC {version('adbc-driver-snowflake')}")

"""Snowpark: sessions, data frames and files, as its manual shows."""

from __future__ import annotations

import datetime
import io
import json
import os
import threading
import time
import warnings
from decimal import Decimal
from typing import Any

warnings.simplefilter("ignore")

import snowflake.snowpark  # noqa: E402 - it warns at once
from scenarios import (  # noqa: E402
    LARGE,
    LARGE_SUMS,
    REFUSAL_CODE,
    REFUSAL_STATE,
    REFUSED,
    UNICODE,
    at_once,
    cannot,
    error_of,
    please,
    same,
    says,
    scenario,
    sums,
    try_all,
    wait_until,
)
from snowflake.connector.errors import ProgrammingError  # noqa: E402
from snowflake.snowpark import Row, Session  # noqa: E402
from snowflake.snowpark.exceptions import SnowparkSQLException  # noqa: E402
from snowflake.snowpark.functions import col  # noqa: E402


def connect() -> Session:
    of = os.environ
    options = {
        "account": of["SNOWFLAKE_ACCOUNT"],
        "user": of["SNOWFLAKE_USER"],
        "authenticator": "oauth",
        "token": of["SNOWFLAKE_TOKEN"],
        "database": of["SNOWFLAKE_DATABASE"],
        "schema": of["SNOWFLAKE_SCHEMA"],
    }
    return Session.builder.configs(options).create()


session = connect()


def rows(sql: str, *binds: Any) -> list[Row]:
    return session.sql(sql, params=binds or None).collect()


@scenario("connect")
def _() -> None:
    same((session.get_current_database(), session.get_current_schema()), ('"ANALYTICS"', '"PUBLIC"'))
    same(rows("select current_database()"), [Row("ANALYTICS")])


@scenario("a small result")
def _() -> None:
    same(session.table("customers").count(), 300)
    few = session.table("customers").filter(col("id") < 3).select("id", "credit").sort("id").collect()
    same(few, [Row(1, Decimal("17.37")), Row(2, Decimal("34.74"))])


@scenario("a large result, in parts")
def _() -> None:
    same(sums(rows(LARGE)), LARGE_SUMS)
    same(sums(list(session.sql(LARGE).to_local_iterator())), LARGE_SUMS)


@scenario("an empty result")
def _() -> None:
    frame = session.table("customers").filter(col("id") < 0).select("id", "name")
    same((frame.columns, frame.collect()), (["ID", "NAME"], []))


@scenario("every type")
def _() -> None:
    moment = datetime.datetime(2024, 2, 29, 13, 14, 15, 123456)
    values = tuple(rows("""
        select 42, 1.50::number(10, 2), 123456789012345678901234567890.12::number(38, 2), 1.25::float, true,
            '2024-02-29'::date, '13:14:15.123456'::time, '2024-02-29 13:14:15.123456'::timestamp_ntz,
            to_binary('CAFE', 'HEX')""")[0])
    same(values[:5], (42, Decimal("1.50"), Decimal("123456789012345678901234567890.12"), 1.25, True))
    same(values[5:], (moment.date(), moment.time(), moment, bytearray(b"\xca\xfe")))
    zone = datetime.timezone(datetime.timedelta(0))
    same(rows("select '2024-02-29 13:14:15.123456 +0000'::timestamp_tz")[0][0].astimezone(zone), moment.replace(tzinfo=zone))
    nested = rows("""select parse_json('{"a": [1, "ü", null]}'), array_construct(1, 2), object_construct('k', 1)""")[0]
    same([json.loads(value) for value in nested], [{"a": [1, "ü", None]}, [1, 2], {"k": 1}])


@scenario("NULLs")
def _() -> None:
    same(rows("select null, null::int, null::varchar, null::date, null::float"), [Row(None, None, None, None, None)])
    same(session.create_dataframe([[1, None], [None, "b"]], schema=["a", "b"]).collect(), [Row(1, None), Row(None, "b")])


@scenario("Unicode")
def _() -> None:
    same(session.create_dataframe([UNICODE], schema=["a"]).collect(), [Row(UNICODE)])


@scenario("write")
def _() -> None:
    frame = session.create_dataframe([[1, "one"], [2, "two"]], schema=["id", "name"])
    frame.write.save_as_table("written")
    frame.filter(col("id") == 2).write.mode("append").save_as_table("written")
    same(session.table("written").sort("id").collect(), [Row(1, "one"), Row(2, "two"), Row(2, "two")])
    same(session.table("written").update({"name": "zwei"}, col("id") == 2).rows_updated, 2)
    same(session.table("written").delete(col("id") == 1).rows_deleted, 1)
    same(session.table("written").collect(), [Row(2, "zwei"), Row(2, "zwei")])


@scenario("transaction")
def _() -> None:
    rows("create table kept (id int)")
    rows("begin")
    rows("insert into kept values (1)")
    rows("rollback")
    rows("begin")
    rows("insert into kept values (2)")
    rows("commit")
    same(session.table("kept").collect(), [Row(2)])


@scenario("binds")
def _() -> None:
    same(rows("select ?, ?", 7, UNICODE), [Row(7, UNICODE)])


@scenario("describe")
def _() -> None:
    fields = session.table("customers").select("id", "name", "credit").schema.fields
    same([field.name for field in fields], ["ID", "NAME", "CREDIT"])
    same([type(field.datatype).__name__ for field in fields], ["LongType", "StringType", "DecimalType"])


cannot("several statements in one text", "not in Snowpark, but by the connector below it")


@scenario("asynchronous")
def _() -> None:
    job = session.sql("select 40 + 2").collect_nowait()
    wait_until(job.is_done)
    same(job.result(), [Row(42)])


@scenario("cancel")
def _() -> None:
    began = time.monotonic()
    job = session.sql("select system$wait(300)").collect_nowait()
    same(job.is_done(), False)
    job.cancel()
    wait_until(job.is_done)
    same(job.is_failed(), True)
    error = error_of(ProgrammingError, job.result)
    same((error.errno, error.raw_msg), (604, "SQL execution canceled"))
    assert time.monotonic() - began < 30
    same(rows("select 1"), [Row(1)])


@scenario("an error of Snowflake's")
def _() -> None:
    error = error_of(SnowparkSQLException, lambda: rows("select no_such_column from customers"))
    same((error.sql_error_code, error.raw_message is not None), (2043, True))


@scenario("a refusal, once")
def _() -> None:
    error = error_of(SnowparkSQLException, lambda: rows(REFUSED))
    same(error.sql_error_code, REFUSAL_CODE)
    says(str(error), f"({REFUSAL_STATE})", "DROP TABLE", "no-drop")


@scenario("going on after a refusal")
def _() -> None:
    same(session.table("customers").count(), 300)


@scenario("the session is renewed")
def _() -> None:
    number = rows("select current_session()")
    please("expire")
    same(rows("select current_session()"), number)


@scenario("the agent restarts")
def _() -> None:
    rows("create temporary table mine (id int)")
    please("restart")
    rows("insert into mine values (1)")
    same(session.table("mine").collect(), [Row(1)])


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
        own = connect()
        together.wait(100)
        number = own.sql("select current_session()").collect()[0][0]
        own.close()
        return str(number)

    return at_once(count, one)


@scenario("files: PUT and GET")
def _() -> None:
    content = os.urandom(300_000)
    session.file.put_stream(io.BytesIO(content), "@~/by_snowpark/data.bin", auto_compress=False)
    with session.file.get_stream("@~/by_snowpark/data.bin") as back:
        same(back.read() == content, True)


try_all(f"Snowpark {'.'.join(map(str, snowflake.snowpark.VERSION[:3]))}")

"""SQLAlchemy with Snowflake's dialect: what its manual shows, by the engine, its connections and tables."""

from __future__ import annotations

import datetime
import json
import os
import threading
import warnings
from decimal import Decimal
from importlib.metadata import version
from typing import Any

warnings.simplefilter("ignore")

from scenarios import (  # noqa: E402 - the connector warns at once
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
from snowflake.sqlalchemy import URL  # noqa: E402
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, inspect, select, text  # noqa: E402
from sqlalchemy.exc import ProgrammingError  # noqa: E402

of = os.environ
URL_OF_ACCOUNT = URL(
    account=of["SNOWFLAKE_ACCOUNT"],
    user=of["SNOWFLAKE_USER"],
    database=of["SNOWFLAKE_DATABASE"],
    schema=of["SNOWFLAKE_SCHEMA"],
    authenticator="oauth",
    token=of["SNOWFLAKE_TOKEN"],
)
engine = create_engine(URL_OF_ACCOUNT)
connection = engine.connect()
metadata = MetaData()
people = Table(
    "people", metadata, Column("id", Integer, primary_key=True, autoincrement=False), Column("name", String(40))
)


def rows(sql: str, **binds: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(text(sql), binds)]


@scenario("connect")
def _() -> None:
    same(rows("select current_database(), current_schema()"), [("ANALYTICS", "PUBLIC")])


@scenario("a small result")
def _() -> None:
    read = rows("select id, credit from customers where id < 3 order by id")
    same(read, [(1, Decimal("17.37")), (2, Decimal("34.74"))])


@scenario("a large result, in parts")
def _() -> None:
    same(sums(rows(LARGE)), LARGE_SUMS)


@scenario("an empty result")
def _() -> None:
    result = connection.execute(text("select id, name from customers where id < 0"))
    same((list(result.keys()), result.all()), (["id", "name"], []))


@scenario("every type")
def _() -> None:
    moment = datetime.datetime(2024, 2, 29, 13, 14, 15, 123456)
    values = rows(r"""
        select 42, 1.50::number(10, 2), 123456789012345678901234567890.12::number(38, 2), 1.25::float, true,
            '2024-02-29'::date, '13\:14\:15.123456'::time, '2024-02-29 13\:14\:15.123456'::timestamp_ntz,
            to_binary('CAFE', 'HEX')""")[0]
    same(values[:5], (42, Decimal("1.50"), Decimal("123456789012345678901234567890.12"), 1.25, True))
    same(values[5:], (moment.date(), moment.time(), moment, bytearray(b"\xca\xfe")))
    zone = datetime.timezone(datetime.timedelta(0))
    same(
        rows(r"select '2024-02-29 13\:14\:15.123456 +0000'::timestamp_tz")[0][0].astimezone(zone),
        moment.replace(tzinfo=zone),
    )
    nested = rows(r"""select parse_json('{"a"\: [1, "ü", null]}'), array_construct(1, 2), object_construct('k', 1)""")[0]
    same([json.loads(value) for value in nested], [{"a": [1, "ü", None]}, [1, 2], {"k": 1}])


@scenario("NULLs")
def _() -> None:
    same(rows("select null, null::int, null::varchar, null::date, null::float"), [(None,) * 5])


@scenario("Unicode")
def _() -> None:
    same(rows("select :text", text=UNICODE), [(UNICODE,)])


@scenario("write")
def _() -> None:
    metadata.create_all(engine)
    same(inspect(connection).has_table("people"), True)
    with engine.begin() as writing:
        writing.execute(people.insert(), [{"id": 1, "name": UNICODE}, {"id": 2, "name": None}])
        same(writing.execute(people.update().where(people.c.id == 2).values(name="Ann")).rowcount, 1)
        writing.execute(people.insert().values(id=3, name="Bob"))
        same(writing.execute(people.delete().where(people.c.id == 3)).rowcount, 1)
    same([tuple(row) for row in connection.execute(select(people).order_by(people.c.id))], [(1, UNICODE), (2, "Ann")])


@scenario("transaction")
def _() -> None:
    rows("create table kept (id int)")
    rows("insert into kept values (1)")
    connection.rollback()
    rows("insert into kept values (2)")
    connection.commit()
    same(rows("select id from kept"), [(2,)])


@scenario("binds")
def _() -> None:
    same(rows("select :number, :text, :nothing", number=7, text="it's", nothing=None), [(7, "it's", None)])


@scenario("describe")
def _() -> None:
    columns = inspect(connection).get_columns("customers")
    same([column["name"] for column in columns][:3], ["id", "name", "email"])


cannot("several statements in one text", "not in SQLAlchemy, but by the connector below it")
cannot("asynchronous", "not in SQLAlchemy, but by the connector below it")
cannot("cancel", "not in SQLAlchemy, but by the connector below it")


@scenario("an error of Snowflake's")
def _() -> None:
    error = error_of(ProgrammingError, lambda: rows("select no_such_column from customers"))
    same((error.orig.errno, error.orig.sqlstate), (2043, "02000"))


@scenario("a refusal, once")
def _() -> None:
    error = error_of(ProgrammingError, lambda: rows(REFUSED))
    same((error.orig.errno, error.orig.sqlstate), (REFUSAL_CODE, REFUSAL_STATE))
    says(str(error), "DROP TABLE", "no-drop")


of_one_session(rows)


@scenario("several sessions at once")
def _() -> None:
    same(len(set(sessions(5))), 5)


@scenario("100 sessions at once")
def _() -> None:
    same(len(set(sessions(100))), 100)


def sessions(count: int) -> list[str]:
    """The numbers of so many sessions of one pool, which are all there at the same time."""
    pool = create_engine(URL_OF_ACCOUNT, pool_size=count)
    together = threading.Barrier(count)

    def session(_: int) -> str:
        with pool.connect() as own:
            together.wait(100)
            return str(own.execute(text("select current_session()")).scalar())

    return at_once(count, session)


@scenario("files: PUT and GET")
def _() -> None:
    with open("/tmp/by_sqlalchemy.bin", "wb") as file:
        file.write(os.urandom(300_000))
    rows("put file:///tmp/by_sqlalchemy.bin @~/by_sqlalchemy auto_compress=false overwrite=true")
    os.makedirs("/tmp/by_sqlalchemy", exist_ok=True)
    rows("get @~/by_sqlalchemy/by_sqlalchemy.bin file:///tmp/by_sqlalchemy")
    with open("/tmp/by_sqlalchemy.bin", "rb") as sent, open("/tmp/by_sqlalchemy/by_sqlalchemy.bin", "rb") as back:
        same(sent.read() == back.read(), True)


try_all(f"SQLAlchemy {version('snowflake-sqlalchemy')}")

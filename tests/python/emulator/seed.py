"""The data that every test finds in the account. The same in each run: tests can rely on its figures."""

from __future__ import annotations

import datetime
import random
from decimal import Decimal

import pyarrow

from emulator.engine import Engine

CUSTOMERS = 300
ORDERS = 5000
NAMES = (
    "Ada Lovelace",
    "Søren Ærø",
    "李小龙",
    "Владимир Ильин",
    "O'Brien & Sons",
    "مريم",
    "Zoë 🦊 Fuchs",
    "José Núñez",
)
COUNTRIES = ("AT", "DE", "DK", "CN", "US", None)
STATES = ("open", "shipped", "returned", None)
FIRST_DAY = datetime.datetime(2025, 1, 1)

CUSTOMERS_TABLE = """create table customers (
    id int, name varchar, email varchar, country varchar, credit number(12, 2), vip boolean, since date,
    note varchar)"""
ORDERS_TABLE = """create table orders (
    id int, customer_id int, amount number(12, 2), state varchar, ordered_at timestamp_ntz, weight float)"""


def seed(engine: Engine, database: str, schema: str) -> None:
    """Creates database and schema with the tables CUSTOMERS and ORDERS."""
    token, connection = engine.connect(database, schema, autocommit=True)
    cursor = connection.cursor()
    cursor.execute(CUSTOMERS_TABLE)
    cursor.execute(ORDERS_TABLE)
    # fakesnow has no bulk load, so the rows go to its DuckDB directly.
    duckdb = connection._duck_conn
    for table, rows in (("customers", customers()), ("orders", orders())):
        duckdb.register(f"seed_{table}", pyarrow.Table.from_pylist(rows))
        duckdb.execute(f"insert into {table} select * from seed_{table}")
        duckdb.unregister(f"seed_{table}")
    engine.disconnect(token)
    engine.refuse_unknown_names()


def customers() -> list[dict[str, object]]:
    """People with names of many scripts; the NULLs come at different distances."""
    return [
        {
            "id": number,
            "name": f"{NAMES[number % len(NAMES)]} {number}",
            "email": None if number % 11 == 0 else f"customer{number}@example.com",
            "country": COUNTRIES[number % len(COUNTRIES)],
            "credit": Decimal(number * 1737 % 500_000) / 100,
            "vip": None if number % 13 == 0 else number % 5 == 0,
            "since": (FIRST_DAY + datetime.timedelta(days=number)).date(),
            "note": None if number % 3 else f'Line one\nline two; it\'s "quoted" \\ – {number} ✓',
        }
        for number in range(1, CUSTOMERS + 1)
    ]


def orders() -> list[dict[str, object]]:
    """Orders of these customers, by a random generator with a fixed start."""
    source = random.Random(20250101)
    return [
        {
            "id": number,
            "customer_id": source.randint(1, CUSTOMERS),
            "amount": Decimal(source.randint(100, 9_999_999)) / 100,
            "state": STATES[number % len(STATES)],
            "ordered_at": FIRST_DAY + datetime.timedelta(minutes=number * 37, microseconds=number),
            "weight": None if number % 17 == 0 else source.randint(1, 4000) / 8,
        }
        for number in range(1, ORDERS + 1)
    ]

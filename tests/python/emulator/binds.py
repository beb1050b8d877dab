"""Bindings that a driver sent as files to a stage, because they are many."""

from __future__ import annotations

import csv
import gzip
import re
import tempfile
from pathlib import Path

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from emulator import words
from emulator.files import Files
from emulator.protocol import Refusal
from emulator.sessions import Session
from emulator.stages import Stages

TABLE = "EMULATOR_BINDS"


def load(stage: str, session: Session, stages: Stages, files: Files) -> int:
    """Reads the files of rows into a temporary table; returns the number of its columns."""
    reference = stages.resolve(stage, session)
    with tempfile.TemporaryDirectory() as name:
        paths = sorted(files.plain(reference, Path(name)), key=by_number)
        if not paths:
            raise unusable(f"there is nothing in {stage[:80]}")
        connection = session.connection._duck_conn
        count = columns_of(paths[0])
        columns = ", ".join(f"'C{number}': 'VARCHAR'" for number in range(count))
        try:
            connection.execute(
                f"create or replace temporary table {TABLE} as select * from read_csv(?, header = false, delim = ',', "
                "quote = '\"', escape = '\"', nullstr = '', allow_quoted_nulls = false, auto_detect = false, "
                f"parallel = false, columns = {{{columns}}})",
                [[str(path) for path in paths]],
            )
        except duckdb.Error as error:
            raise unusable(str(error)[:200]) from None
    return count


def columns_of(path: Path) -> int:
    """The number of fields in a file's first row."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") if path.suffix == ".gz" else path.open(
            encoding="utf-8", newline=""
        ) as lines:
            return len(next(csv.reader(lines)))
    except (OSError, EOFError, ValueError, StopIteration):
        raise unusable(f"{path.name} is no CSV") from None


def by_number(path: Path) -> tuple[int, str]:
    """The order of the files: drivers number them."""
    number = re.match(r"\d+", path.name)
    return int(number[0]) if number else 0, path.name


def unusable(what: str) -> Refusal:
    """Bindings that are of no use."""
    return Refusal("100080", f"SQL execution error: unusable bindings: {what}", "22000")


def rewritten(sql: str, count: int, session: Session) -> str:
    """An INSERT with placeholders as one from the table of bindings."""
    try:
        statement = sqlglot.parse_one(sql, read="snowflake")
    except SqlglotError as error:
        raise Refusal("001003", f"SQL compilation error:\n{str(error)[:200]}", "42000") from None
    values = statement.find(exp.Values)
    if not isinstance(statement, exp.Insert) or values is None or len(values.expressions) != 1:
        raise Refusal("002049", "SQL compilation error: bindings by stage are for INSERT … VALUES (…) alone", "42601")
    row = values.expressions[0]
    columns = row.expressions if isinstance(row, exp.Tuple) else [row.unnest()]
    kinds = target_types(statement, session)
    placeholders = list(values.find_all(exp.Placeholder, bfs=False))
    if len(placeholders) != count:
        raise unusable(f"{len(placeholders)} placeholders, {count} columns")
    for number, placeholder in enumerate(placeholders):
        for kind, column in zip(kinds, columns):
            if column is placeholder:
                make_readable(f"C{number}", kind, session)
        placeholder.replace(exp.column(f"C{number}", quoted=True))
    columns = row.expressions if isinstance(row, exp.Tuple) else [values.expressions[0].unnest()]
    values.replace(exp.select(*columns).from_(exp.to_table(TABLE)))
    return statement.sql(dialect="snowflake")


def target_types(statement: exp.Insert, session: Session) -> list[str]:
    """DuckDB's types of the columns that an INSERT fills, in its order."""
    target = statement.this
    named = [column.name if column.args.get("quoted") else column.name.upper() for column in target.expressions]
    table = target.this if isinstance(target, exp.Schema) else target
    name = ".".join(f'"{part}"' for part in words.name_parts(table.sql(dialect="snowflake")))
    try:
        described = session.connection._duck_conn.execute(f"describe {name}").fetchall()
    except duckdb.Error:
        # The engine says what is wrong with it.
        return []
    kinds = {column: kind for column, kind, *_ in described}
    return [kinds.get(column, "") for column in named] if named else list(kinds.values())


def make_readable(column: str, kind: str, session: Session) -> None:
    """Drivers send dates in milliseconds, times and timestamps in nanoseconds, some with an offset in minutes."""
    number = f"split_part({column}, ' ', 1)::bigint"
    forms = {
        "DATE": f"date '1970-01-01' + ({number} // 86400000)::int",
        "TIME": f"time '00:00:00' + to_microseconds({number} // 1000)",
        "TIMESTAMP": f"make_timestamp({number} // 1000)",
        "TIMESTAMP_NS": f"make_timestamp({number} // 1000)",
        "TIMESTAMP WITH TIME ZONE": f"make_timestamp({number} // 1000)::varchar || '+00'",
    }
    if form := forms.get(kind):
        session.connection._duck_conn.execute(
            f"update {TABLE} set {column} = ({form})::varchar where regexp_full_match({column}, '-?[0-9]+( [0-9]+)?')"
        )

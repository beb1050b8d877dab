"""SQL text as the account sees it: split into statements, with the few that the emulator answers by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlglot import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import TokenType

from emulator.protocol import Refusal
from emulator.sessions import Session

SNOWFLAKE = Dialect.get_or_raise("snowflake")
TOKEN_ERRORS = (SqlglotError, RecursionError, ValueError, IndexError)

WAIT = re.compile(r"\s*(?:select|call)\s+system\$wait\s*\(\s*(\d{1,4})\s*(?:,\s*'(seconds)'\s*)?\)\s*;?\s*(?:/\*.*\*/)?\s*", re.I)
SCAN = re.compile(r"\s*select\s+\*\s+from\s+table\s*\(\s*result_scan\s*\(\s*'([^']+)'\s*\)\s*\)\s*;?\s*", re.I)
ALLOWLIST = re.compile(r"\s*select\s+system\$allowlist\s*\(\s*\)\s*;?\s*", re.I)
ALTER_SESSION = re.compile(r"\s*alter\s+session\s+(set|unset)\s+(\w+)\s*(?:=\s*('[^']*'|[^\s;]+))?\s*;?\s*", re.I)
USE = re.compile(r"\s*use\s+(role|warehouse)\s+(?:\"([^\"]+)\"|(\w+))\s*;?\s*", re.I)
TRUNCATE = re.compile(r"\s*truncate\s+table\s+if\s+exists\b", re.I)
CANCEL = re.compile(r"\s*select\s+system\$cancel_(query|all_queries)\s*\(\s*'?([\w-]+)'?\s*\)\s*;?\s*", re.I)
# `$1` and its kind, which name the columns of VALUES; not what is quoted.
FROM_VALUES = re.compile(r"\bfrom\s+values\b", re.I)
POSITION = re.compile(r"""('(?:\\.|''|[^'\\])*'|"(?:""|[^"])*")|\$(\d+)""", re.S)
CONTEXT = re.compile(r"current_(?:user|role|warehouse|account|session)\b", re.I)


@dataclass
class Wait:
    """`SYSTEM$WAIT(n)`: a statement that takes as long as a test wants."""

    seconds: int


@dataclass
class Scan:
    """`SELECT * FROM TABLE(RESULT_SCAN(id))`: an earlier result again."""

    query_id: str


@dataclass
class Allowlist:
    """`SYSTEM$ALLOWLIST()`: the hosts that the account's clients need."""


@dataclass
class Cancel:
    """`SYSTEM$CANCEL_QUERY(id)`, or `SYSTEM$CANCEL_ALL_QUERIES(session)`."""

    target: str
    all: bool


@dataclass
class Done:
    """A statement that only changed the session."""


def split(sql: str, expected: int) -> list[str]:
    """The statements in `sql`; raises when there are not `expected` ones (0: any number)."""
    try:
        tokens = SNOWFLAKE.tokenize(sql)
    except TOKEN_ERRORS as error:
        raise Refusal("001003", f"SQL compilation error:\n{str(error)[:200]}", "42000") from None
    statements: list[str] = []
    start, filled = 0, False
    for token in tokens:
        if token.token_type != TokenType.SEMICOLON:
            filled = True
            continue
        if filled:
            statements.append(sql[start : token.start].strip())
        start, filled = token.end + 1, False
    if filled:
        statements.append(sql[start:].strip())
    if not statements:
        raise Refusal("000900", "SQL compilation error:\nEmpty SQL statement.", "42601")
    if expected not in (0, len(statements)):
        count = len(statements)
        message = f"Actual statement count {count} did not match the desired statement count {expected}."
        raise Refusal("000008", message, "0A000")
    return statements


def expected_count(parameters: dict[str, Any], session: Session) -> int:
    """How many statements the client says that it sends: by the request, else by the session, else one."""
    value = parameters.get("MULTI_STATEMENT_COUNT", session.parameters.get("MULTI_STATEMENT_COUNT", 1))
    try:
        return int(value)
    except (TypeError, ValueError):
        raise Refusal("001007", f"invalid value {value!r} for parameter 'MULTI_STATEMENT_COUNT'", "22023") from None


def answered_here(sql: str, session: Session) -> Wait | Scan | Allowlist | Cancel | Done | None:
    """Takes what fakesnow does not know (waiting, old results, session parameters, role, warehouse) off the engine."""
    if match := SCAN.fullmatch(sql):
        return Scan(match[1])
    if match := WAIT.fullmatch(sql):
        return Wait(int(match[1]))
    if ALLOWLIST.fullmatch(sql):
        return Allowlist()
    if match := CANCEL.fullmatch(sql):
        return Cancel(match[2], match[1].lower() != "query")
    if (match := ALTER_SESSION.fullmatch(sql)) and match[2].upper() != "AUTOCOMMIT":
        name = match[2].upper()
        if match[1].lower() == "unset":
            session.parameters.pop(name, None)
        else:
            session.parameters[name] = (match[3] or "").strip("'")
        return Done()
    if match := USE.fullmatch(sql):
        name = match[2] or match[3].upper()
        if match[1].lower() == "role":
            session.role = name
        else:
            session.warehouse = name
        return Done()
    return None


def with_context(sql: str, session: Session, account: str) -> str:
    """The statement as fakesnow understands it: `CURRENT_USER()` and its kind, which it answers with DuckDB's own, are
    replaced by the session's values."""
    # DuckDB has no such condition.
    sql = TRUNCATE.sub("truncate table", sql)
    if FROM_VALUES.search(sql):
        # The other name that Snowflake has for them.
        sql = POSITION.sub(lambda match: match[1] or f"COLUMN{match[2]}", sql)
    if not CONTEXT.search(sql):
        return sql
    values = {
        "CURRENT_USER": session.user,
        "CURRENT_ROLE": session.role,
        "CURRENT_WAREHOUSE": session.warehouse,
        "CURRENT_ACCOUNT": account,
        "CURRENT_SESSION": str(session.id),
    }
    try:
        tokens = SNOWFLAKE.tokenize(sql)
    except TOKEN_ERRORS:
        return sql
    parts: list[str] = []
    done = 0
    for name, opened, closed in zip(tokens, tokens[1:], tokens[2:]):
        text = sql[name.start : name.end + 1].upper()
        if text in values and opened.token_type == TokenType.L_PAREN and closed.token_type == TokenType.R_PAREN:
            value = values[text]
            parts += [
                sql[done : name.start],
                "NULL" if value is None else "'" + value.replace("'", "''") + "'",
            ]
            done = closed.end + 1
    return "".join(parts) + sql[done:]

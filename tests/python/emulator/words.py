"""Statements about files, cut into words: what SQL parsers know little of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

WORD = re.compile(r"""(?:'(?:\\.|''|[^'\\])*'|"(?:""|[^"])*"|[^\s'"])+""", re.S)
SKIPPED = re.compile(r"\s+|/\*.*?\*/|--[^\n]*", re.S)
COMMENTS = re.compile(r"""('(?:\\.|''|[^'\\])*'|"(?:""|[^"])*")|/\*.*?\*/|--[^\n]*""", re.S)
# IDENTIFIER(…) with what is in it, what cannot hold a placeholder, and a placeholder.
PLACES = re.compile(
    r"""identifier\s*\(\s*(\?|'(?:\\.|''|[^'\\])*')\s*\)|'(?:\\.|''|[^'\\])*'|"(?:""|[^"])*"|/\*.*?\*/|(\?)""", re.I | re.S
)
IDENTIFIER = re.compile(r"identifier\s*\(", re.I)
OPTION = re.compile(r"(\w+)\s*=\s*('(?:\\.|''|[^'\\])*'|[^\s;]+)", re.S)
NAME = re.compile(r'"((?:""|[^"])+)"|([^\s."]+)')


def words(sql: str) -> list[str]:
    """The words of a statement, without its comments and its last semicolon. A comment begins where a word could."""
    found: list[str] = []
    position = 0
    while position < len(sql):
        if skipped := SKIPPED.match(sql, position):
            position = skipped.end()
        elif word := WORD.match(sql, position):
            found.append(word[0])
            position = word.end()
        else:
            # A quote that does not end.
            found.append(sql[position:])
            break
    if found and found[-1].endswith(";"):
        found[-1] = found[-1][:-1]
        if not found[-1]:
            found.pop()
    return found


def first_word(sql: str) -> str:
    """The first word in capitals."""
    position = 0
    while skipped := SKIPPED.match(sql, position):
        position = skipped.end()
    word = re.compile(r"[A-Za-z]*").match(sql, position)
    return word[0].upper() if word else ""


def without_comments(sql: str) -> str:
    """The statement without its comments."""
    return COMMENTS.sub(lambda match: match[1] or " ", sql).strip().rstrip(";").rstrip()


def unquoted(word: str) -> str:
    """The text of a word that may be a literal."""
    if len(word) < 2 or word[0] != "'" or word[-1] != "'":
        return word
    return re.sub(r"\\(.)|''", lambda match: match[1] or "'", word[1:-1], flags=re.S)


def options(text: str) -> dict[str, str]:
    """`NAME = value` pairs by upper-case name."""
    return {match[1].upper(): unquoted(match[2]) for match in OPTION.finditer(text)}


def name_parts(name: str) -> list[str]:
    """The parts of a dotted name, as Snowflake resolves them: upper-case unless quoted."""
    return [quoted.replace('""', '"') if quoted else plain.upper() for quoted, plain in NAME.findall(name)]


def literal(text: str) -> str:
    """A text as a literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


@dataclass
class Bound:
    """A statement whose placeholders are filled in."""

    sql: str
    bindings: dict[str, Any]


def with_identifiers(sql: str, bindings: dict[str, Any]) -> Bound:
    """Names that were bound or written by IDENTIFIER(…) are put where they belong; the bindings that are left."""
    if not IDENTIFIER.search(sql):
        return Bound(sql, bindings)
    left: dict[str, Any] = {}
    number = 0

    def place(match: re.Match[str]) -> str:
        nonlocal number
        name, placeholder = match[1], match[2]
        if name is None and placeholder is None:
            return match[0]
        if name is not None and name != "?":
            return unquoted(name)
        number += 1
        bound = bindings.get(str(number)) or {}
        if name is not None:
            return str(bound.get("value"))
        left[str(len(left) + 1)] = bound
        return "?"

    return Bound(PLACES.sub(place, sql), left)


def with_values(sql: str, bindings: dict[str, Any]) -> str:
    """The statement with every placeholder replaced by what is bound to it, as a literal."""
    number = 0

    def place(match: re.Match[str]) -> str:
        nonlocal number
        if match[2] is None:
            return match[0]
        number += 1
        value = (bindings.get(str(number)) or {}).get("value")
        return "NULL" if value is None else literal(str(value))

    return PLACES.sub(place, sql)

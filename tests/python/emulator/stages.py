"""Stages: whose they are, where their files lie in the storage, and whether clients encrypt them."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field

from emulator import words
from emulator.protocol import Refusal
from emulator.sessions import Session

ROOT = "8vpe-s-acst0042/"
CREATE = re.compile(
    r"create\s+(?P<replace>or\s+replace\s+)?(?P<temporary>(?:scoped\s+)?temp(?:orary)?\s+)?stage\s+"
    r"(?P<exists>if\s+not\s+exists\s+)?(?P<name>(?:\"(?:\"\"|[^\"])+\"|[\w$.])+)(?P<rest>.*)",
    re.I | re.S,
)
DROP = re.compile(r"drop\s+stage\s+(?P<exists>if\s+exists\s+)?(?P<name>\S+)\s*", re.I)
EXTERNAL = re.compile(r"\burl\s*=", re.I)
UNENCRYPTED = re.compile(r"\bencryption\s*=\s*\(\s*type\s*=\s*'snowflake_sse'", re.I)
FILE_FORMAT = re.compile(r"\bfile_format\s*=\s*\((?:'(?:''|[^'])*'|[^)'])*\)", re.I)


@dataclass
class Stage:
    """A stage. `label` begins the names of its files in the answers to LIST and COPY."""

    name: tuple[str, str, str]
    label: str
    path: str
    encrypted: bool = True
    file_format: str | None = None
    owner: int | None = None

    @property
    def prefix(self) -> str:
        """What the keys of its files begin with."""
        return ROOT + self.path

    def file_name(self, key: str) -> str:
        """A file as the answers to LIST and COPY call it."""
        return self.label + key.removeprefix(self.prefix)


@dataclass
class Reference:
    """`@stage/path` in a statement."""

    stage: Stage
    path: str

    @property
    def prefix(self) -> str:
        return self.stage.prefix + self.path


@dataclass
class Created:
    """What CREATE STAGE made; fakesnow hears of it if it is to last."""

    name: str
    lasts: bool


@dataclass
class Stages:
    """All of them. Those of users and tables are there as soon as they are asked for."""

    _by_name: dict[tuple[object, ...], Stage] = field(default_factory=dict)

    def create(self, sql: str, session: Session) -> Created | None:
        """Makes the stage that a statement asks for; nothing if it asks for another thing or for an external stage."""
        match = CREATE.fullmatch(words.without_comments(sql))
        if match is None or EXTERNAL.search(match["rest"]):
            return None
        owner = session.id if match["temporary"] else None
        name = qualified(match["name"], session)
        if not match["replace"] and self._find(name, session) is not None:
            if match["exists"]:
                return Created(name[2], False)
            raise Refusal("002002", f"SQL compilation error:\nObject '{'.'.join(name)}' already exists.", "42710")
        file_format = FILE_FORMAT.search(match["rest"])
        self._by_name[owner, *name] = Stage(
            name,
            name[2].lower() + "/",
            f"stages/{uuid.uuid4()}/",
            not UNENCRYPTED.search(match["rest"]),
            file_format[0] if file_format else None,
            owner,
        )
        return Created(name[2], owner is None)

    def drop(self, sql: str, session: Session) -> Stage | None:
        """Forgets the stage that a statement drops; nothing if it drops another thing, or none that is known here."""
        match = DROP.fullmatch(words.without_comments(sql))
        if match is None:
            return None
        stage = self._find(qualified(match["name"], session), session)
        if stage is not None:
            del self._by_name[stage.owner, *stage.name]
        return stage

    def forget(self, session: Session) -> list[Stage]:
        """Forgets the temporary stages of a session that ended."""
        gone = [key for key, stage in self._by_name.items() if stage.owner == session.id]
        return [self._by_name.pop(key) for key in gone]

    def resolve(self, text: str, session: Session) -> Reference:
        """What `@stage/path` means to a session."""
        text = words.unquoted(text)
        match = re.fullmatch(r"@((?:\"(?:\"\"|[^\"])+\"|[^/\"])+)/?(.*)", text, re.S)
        if match is None:
            raise Refusal("001003", f"SQL compilation error:\nsyntax error: {text[:80]!r} is no stage", "42000")
        name, path = match[1], match[2]
        if name == "~":
            return Reference(self._implicit(("", "", f"~{session.user}"), "", f"users/{session.user}/"), path)
        full = qualified(name, session)
        if full[2].startswith("%"):
            return Reference(self._table(full, session), path)
        stage = self._find(full, session)
        if stage is None:
            message = f"SQL compilation error:\nStage '{'.'.join(full)}' does not exist or not authorized."
            raise Refusal("002003", message, "02000")
        return Reference(stage, path)

    def _find(self, name: tuple[str, str, str], session: Session) -> Stage | None:
        return self._by_name.get((session.id, *name)) or self._by_name.get((None, *name))

    def _table(self, name: tuple[str, str, str], session: Session) -> Stage:
        sql = """select table_oid, temporary from duckdb_tables() where table_name = ?
            and (temporary or (database_name = ? and schema_name = ?)) order by temporary desc limit 1"""
        found = session.connection._duck_conn.execute(sql, [name[2][1:], name[0], name[1]]).fetchone()
        if found is None:
            message = f"SQL compilation error:\nTable '{'.'.join(name).replace('%', '')}' does not exist or not authorized."
            raise Refusal("002003", message, "42S02")
        owner = f"s{session.id}." if found[1] else ""
        return self._implicit(name, "", f"tables/{owner}{name[0]}.{found[0]}/")

    def _implicit(self, name: tuple[str, str, str], label: str, path: str) -> Stage:
        return self._by_name.setdefault((None, *name, path), Stage(name, label, path))


def qualified(name: str, session: Session) -> tuple[str, str, str]:
    """A name with its database and schema."""
    parts = words.name_parts(name)
    connection = session.connection
    missing = [connection.database or "", connection.schema or ""][: 3 - len(parts)]
    full = [*missing, *parts]
    if len(full) != 3 or not all(full):
        message = "Cannot perform operation. This session does not have a current database."
        raise Refusal("090105", message, "22000")
    return full[0], full[1], full[2]

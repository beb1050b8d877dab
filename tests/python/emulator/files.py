"""Statements about the files of stages: LIST, REMOVE, INFER_SCHEMA, and COPY, for which the files are decrypted."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakesnow.transforms import stage as fakesnow_stage

from emulator import words
from emulator.encryption import Unreadable, decrypt
from emulator.engine import text_result
from emulator.objects import Object
from emulator.sessions import Session
from emulator.stages import FILE_FORMAT, Reference, Stage, Stages
from emulator.storage import Storage
from emulator.transfers import unreadable

LIST_TYPE, REMOVE_TYPE, SELECT_TYPE = 0x6100, 0x6200, 0x1000
REFERENCE = re.compile(r"""'@(?:''|\\.|[^'\\])*'|@(?:"(?:""|[^"])+"|[^\s,()'"])+""")
COPY = re.compile(r"copy\s+into\s+(?!@|'@|'s3:)", re.I)
FILES = re.compile(r"\bfiles\s*=\s*\(([^)]*)\)", re.I)
PATTERN = re.compile(r"\bpattern\s*=\s*('(?:\\.|''|[^'\\])*')", re.I)
PURGE = re.compile(r"\bpurge\s*=\s*(true|false)\b", re.I)
PARQUET = re.compile(r"\btype\s*=\s*'?parquet\b", re.I)
# What fakesnow does not know, and what makes no difference here.
IGNORED = re.compile(r"\b(?:encoding|replace_invalid_characters|trim_space)\s*=\s*(?:'[^']*'|\w+)", re.I)
FIELD = re.compile(r'\$1:(?:"((?:""|[^"])*)"|(\w+))')
POSITION = re.compile(r"\$(\d+)\b")
INFER = re.compile(
    r"select\s+(?P<columns>.+?)\s+from\s+table\s*\(\s*infer_schema\s*\(\s*location\s*=>\s*(?P<location>'(?:''|[^'])*')"
    r"\s*,\s*file_format\s*=>\s*'(?:''|[^'])*'\s*\)\s*\)\s*",
    re.I | re.S,
)
INFERRED = ["COLUMN_NAME", "TYPE", "NULLABLE", "EXPRESSION", "FILENAMES", "ORDER_ID"]


@dataclass
class Copy:
    """A COPY whose files lie ready: what fakesnow is told to do, and what becomes of the files afterwards."""

    sql: str
    stage_sql: str
    folder: Path
    purged: list[Object] = field(default_factory=list)


class Files:
    """Runs these statements."""

    def __init__(self, storage: Storage, stages: Stages) -> None:
        self._objects = storage.objects
        self._keys = storage.keys
        self._stages = stages
        # One at a time: the files of a stage lie in the same folder each time, by which fakesnow knows them.
        self.copying = asyncio.Lock()

    def list(self, sql: str, session: Session) -> dict[str, Any]:
        """LIST."""
        reference, items = self._wanted(sql, session)
        rows: list[list[str | None]] = [
            [
                reference.stage.file_name(item.key),
                str(item.payload.size),
                item.etag.strip('"'),
                time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(item.modified)),
            ]
            for item in items
        ]
        return text_result(["name", "#size", "md5", "last_modified"], rows, LIST_TYPE)

    def remove(self, sql: str, session: Session) -> dict[str, Any]:
        """REMOVE."""
        reference, items = self._wanted(sql, session)
        for item in items:
            self._objects.remove(item.cloud, item.key)
        rows: list[list[str | None]] = [[reference.stage.file_name(item.key), "removed"] for item in items]
        return text_result(["name", "result"], rows, REMOVE_TYPE)

    def infer(self, bound: words.Bound, session: Session) -> dict[str, Any] | None:
        """`SELECT … FROM TABLE(INFER_SCHEMA(…))` for files in Parquet; nothing if it is another statement."""
        match = INFER.fullmatch(words.without_comments(words.with_values(bound.sql, bound.bindings)))
        if match is None:
            return None
        reference = self._stages.resolve(match["location"], session)
        names = INFERRED
        if match["columns"].strip() != "*":
            names = [name.strip().upper() for name in match["columns"].split(",")]
        folder = self._folder(reference.stage, session)
        rows = []
        for item in self._objects.under(reference.prefix):
            path = self._plain(item, reference.stage, folder)
            described = session.connection._duck_conn.execute(
                "describe select * from read_parquet(?)", [str(path)]
            ).fetchall()
            file_name = reference.stage.file_name(item.key)
            for number, (name, kind, *_) in enumerate(described):
                kind = snowflake_type(kind)
                values = [name, kind, "1", f'$1:"{name}"::{kind}', file_name, str(number)]
                rows.append([dict(zip(INFERRED, values)).get(wanted) for wanted in names])
            break
        shutil.rmtree(folder, ignore_errors=True)
        return text_result(names, rows, SELECT_TYPE)

    def copy(self, bound: words.Bound, session: Session) -> Copy | None:
        """Lays the files of a COPY into a table ready; nothing if it is another statement or from another place."""
        sql = words.without_comments(words.with_values(bound.sql, bound.bindings))
        found = REFERENCE.search(sql)
        if not COPY.match(sql) or found is None:
            return None
        reference = self._stages.resolve(found[0], session)
        stage = reference.stage
        before, after = sql[: found.start()], sql[found.end() :]
        items = self._objects.under(reference.prefix)
        if files := FILES.search(after):
            names = {words.unquoted(name.strip()) for name in files[1].split(",")}
            items = [item for item in items if item.key.removeprefix(reference.prefix).lstrip("/") in names]
        if pattern := PATTERN.search(after):
            items = [it for it in items if re.fullmatch(words.unquoted(pattern[1]), stage.file_name(it.key))]
        purge = PURGE.search(after)
        for option in (FILES, PATTERN, PURGE, IGNORED):
            after = option.sub("", after)
        if not FILE_FORMAT.search(after) and "file_format" not in after.lower() and stage.file_format:
            after += " " + IGNORED.sub("", stage.file_format)
        if PARQUET.search(after):
            before = FIELD.sub(lambda match: f'"{match[1] or match[2]}"', before)
        else:
            before = POSITION.sub(lambda match: f"column{int(match[1]) - 1}", before)
        name = self._fakesnow_name(stage, session)
        quoted = ".".join(f'"{part}"' for part in name)
        folder = self._folder(stage, session)
        for item in items:
            self._plain(item, stage, folder)
        return Copy(
            f"{before}@{quoted}{after}",
            f"create stage if not exists {quoted}",
            folder,
            items if purge and purge[1].lower() == "true" else [],
        )

    def finish(self, copy: Copy, done: bool) -> None:
        """Takes the plain files away, and from the stage what is to be purged."""
        shutil.rmtree(copy.folder, ignore_errors=True)
        for item in copy.purged if done else ():
            self._objects.remove(item.cloud, item.key)

    def plain(self, reference: Reference, folder: Path) -> list[Path]:
        """Decrypts everything under a path into a folder."""
        return [self._plain(item, reference.stage, folder) for item in self._objects.under(reference.prefix)]

    def _wanted(self, sql: str, session: Session) -> tuple[Reference, list[Object]]:
        _, *rest = words.words(sql)
        reference = self._stages.resolve(rest[0] if rest else "", session)
        items = self._objects.under(reference.prefix)
        if pattern := PATTERN.search(" ".join(rest[1:])):
            names = words.unquoted(pattern[1])
            items = [item for item in items if re.fullmatch(names, reference.stage.file_name(item.key))]
        return reference, items

    def _plain(self, item: Object, stage: Stage, folder: Path) -> Path:
        """The file as it was before it was sent."""
        target = folder / item.key.removeprefix(stage.prefix)
        if not target.resolve().is_relative_to(folder.resolve()):
            raise unreadable(item)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            material = self._keys.for_reading(item, stage.encrypted)
            if material is None:
                shutil.copyfile(item.payload.path, target)
            else:
                decrypt(item, material, target)
        except Unreadable:
            raise unreadable(item) from None
        return target

    def _fakesnow_name(self, stage: Stage, session: Session) -> tuple[str, str, str]:
        """The stage that fakesnow reads in the place of this one."""
        if stage.label:
            return stage.name
        connection = session.connection
        name = re.sub(r"\W", "_", stage.path.strip("/")).upper()
        return str(connection.database), str(connection.schema), name

    def _folder(self, stage: Stage, session: Session) -> Path:
        """Where fakesnow looks for the files of a stage; empty."""
        folder = Path(fakesnow_stage.LOCAL_BUCKET_PATH, *self._fakesnow_name(stage, session))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def snowflake_type(kind: str) -> str:
    """The type that INFER_SCHEMA finds for a column of DuckDB's type `kind`."""
    if kind.startswith("DECIMAL"):
        return "NUMBER" + kind.removeprefix("DECIMAL").replace(",", ", ")
    if kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"):
        return "NUMBER(38, 0)"
    names = {"DOUBLE": "REAL", "FLOAT": "REAL", "BOOLEAN": "BOOLEAN", "DATE": "DATE", "BLOB": "BINARY", "TIME": "TIME"}
    if kind.startswith("TIMESTAMP"):
        return "TIMESTAMP_TZ" if "TIME ZONE" in kind else "TIMESTAMP_NTZ"
    return names.get(kind, "TEXT")

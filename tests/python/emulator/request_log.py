"""The log that tests read to prove what arrived at the emulated Snowflake, and what did not."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import program
from emulator.payload import LOGGED_BYTES, Payload


class RequestLog:
    """Appends JSON lines. Each line is in the file before `write` returns."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise program.StartError(f"cannot write the log {path}: {error.strerror}") from None

    def write(self, event: str, **fields: Any) -> None:
        """Writes one line. Every line has every key, so that readers need no special cases."""
        line: dict[str, Any] = {
            "time": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            "event": event,
            "method": "",
            "path": "",
            "query": "",
            "headers": {},
            "body": None,
            "status": None,
            "sql": None,
            "user": None,
            "peer": "",
            "local": "",
            "sni": None,
            "executed": False,
        }
        line.update(fields)
        # A lone surrogate, which JSON can carry but UTF-8 cannot, becomes its JSON escape again.
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._file, data) :]


def readable_body(body: bytes) -> Any:
    """The body as JSON where it is JSON, else as text with unprintable bytes escaped; nothing when empty."""
    if not body:
        return None
    text = body.decode("utf-8", "backslashreplace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def readable_payload(payload: Payload) -> Any:
    """A body on disk: as it is when it is a short text, else its size and digest alone."""
    if payload.size <= LOGGED_BYTES and payload.path.exists():
        body = payload.read()
        if body.isascii():
            return readable_body(body)
    return {"size": payload.size, "sha256": payload.sha256}

"""Answers that go wrong on their way back, or come late, because a comment in the statement asks for that."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from emulator.delivery import BrokenOff
from web import Answer, Send

ANSWERS = re.compile(r"/\* answers (\d{3})( once)? \*/")
BREAKS = re.compile(r"/\* the answer breaks off( once)? \*/")
PATIENCE = re.compile(r"/\* in progress after (\d+) s \*/")
PAGE = b"<html><body>Something on the way is out of order.</body></html>"


class Trouble(Exception):
    """The client is to get this in the place of the answer; without a status, a part of it."""

    def __init__(self, status: int | None, envelope: dict[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.envelope = envelope

    def page(self) -> Answer:
        """What a proxy, or a server that gives up, shows."""
        status = self.status or 500
        headers = {"location": "https://elsewhere.snowflakecomputing.com/"} if 300 <= status < 400 else {}
        return Answer(status, PAGE, "text/html", headers)


@dataclass
class Asked:
    """What a statement asks for."""

    status: int | None
    once: bool


def asked(sql: str) -> Asked | None:
    """The trouble that a statement asks for."""
    if match := ANSWERS.search(sql):
        return Asked(int(match[1]), bool(match[2]))
    if match := BREAKS.search(sql):
        return Asked(None, bool(match[1]))
    return None


def patience(sql: str, usual: float) -> float:
    """Seconds after which a statement that still runs is called 'in progress'."""
    match = PATIENCE.search(sql)
    return float(match[1]) if match else usual


async def break_off(answer: Answer, send: Send) -> None:
    """Sends half of an answer, and ends the connection."""
    headers = [(b"content-type", answer.content_type.encode()), (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    half = answer.body[: len(answer.body) // 2]
    await send({"type": "http.response.body", "body": half, "more_body": True})
    await asyncio.sleep(0.05)
    raise BrokenOff

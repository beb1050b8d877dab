"""Sessions and their tokens: issued at login, renewed with the master token, void after the session's end."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from fakesnow.fakes import FakeSnowflakeConnection

from emulator.protocol import Refusal


@dataclass
class Session:
    """One login. `lock` keeps two statements from using the session's one engine connection at a time."""

    id: int
    user: str
    role: str | None
    warehouse: str | None
    connection: FakeSnowflakeConnection
    parameters: dict[str, Any]
    engine_token: str
    # The client wants the numbers of keys as texts.
    smk_id_as_text: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    closed: bool = False


@dataclass
class Token:
    """A session or master token: when it ends on the monotonic clock, and whose it is."""

    session: Session
    expires: float

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.expires


class Sessions:
    """All tokens that this server ever issued; it needs the old ones to say why they no longer work."""

    def __init__(self, session_seconds: int, master_seconds: int) -> None:
        self.session_seconds = session_seconds
        self.master_seconds = master_seconds
        self._session_tokens: dict[str, Token] = {}
        self._master_tokens: dict[str, Token] = {}
        self._next_id = 1_000_000_000_000_001

    def take_id(self) -> int:
        """The next session id; as large as Snowflake's, to catch readers that use 32 bits."""
        self._next_id += 4
        return self._next_id

    def issue(self, session: Session) -> str:
        """A new session token."""
        return remember(self._session_tokens, session, self.session_seconds)

    def issue_master(self, session: Session) -> str:
        """A new master token."""
        return remember(self._master_tokens, session, self.master_seconds)

    def owner(self, token: str | None) -> Session | None:
        """The session that `token` belongs to, valid or not: for the log alone."""
        entry = self._session_tokens.get(token or "") or self._master_tokens.get(token or "")
        return entry.session if entry else None

    def by_token(self, token: str | None) -> Session:
        """The live session of a session token."""
        if not token:
            raise Refusal("390101", "Authorization header not found in the request data.")
        entry = self._session_tokens.get(token)
        if entry is None:
            raise Refusal("390104", "Session token is invalid. User must login again to access the service.")
        if entry.session.closed:
            raise Refusal("390111", "Session no longer exists. New login required to access the service.")
        if entry.expired:
            raise Refusal("390112", "Session token has expired. Please obtain a new session token.")
        return entry.session

    def renew(self, master: str | None, old: str, extra: bool) -> dict[str, Any]:
        """New tokens for the session of `master`. With `extra`, the session's other tokens stay valid."""
        entry = self._master_tokens.get(master or "")
        if entry is None:
            raise Refusal("390115", "Master token is invalid. User must login again to access the service.")
        if entry.session.closed:
            raise Refusal("390111", "Session no longer exists. New login required to access the service.")
        if entry.expired:
            raise Refusal("390114", "Authentication token has expired. The user must authenticate again.")
        previous = self._session_tokens.get(old)
        if previous is None or previous.session is not entry.session:
            raise Refusal("390104", "Session token is invalid. User must login again to access the service.")
        session = entry.session
        answer: dict[str, Any] = {
            "sessionToken": self.issue(session),
            "validityInSecondsST": self.session_seconds,
            "sessionId": session.id,
        }
        if not extra:
            previous.expires = time.monotonic()
            del self._master_tokens[master or ""]
            answer |= {"masterToken": self.issue_master(session), "validityInSecondsMT": self.master_seconds}
        return answer

    def expire_all(self) -> None:
        """Ends every session token now; the master tokens can renew them."""
        now = time.monotonic()
        for token in self._session_tokens.values():
            token.expires = min(token.expires, now)


def remember(tokens: dict[str, Token], session: Session, seconds: int) -> str:
    """Makes a random token that looks like Snowflake's."""
    token = f"ver:3-hint:{session.id}-{secrets.token_urlsafe(96)}"
    tokens[token] = Token(session, time.monotonic() + seconds)
    return token

"""TLS and HTTP/1.1 on several addresses; connections that carried no request are logged as well."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from uvicorn.protocols.http import h11_impl
from uvicorn.protocols.http.h11_impl import H11Protocol

import program
from emulator.request_log import RequestLog
from web import Receive, Scope, Send

# What the status line of the answer to this request says beside its number, if not the usual.
REASON: ContextVar[str | None] = ContextVar("reason", default=None)


class Phrases(dict[int, bytes]):
    """The reasons of status lines, of which uvicorn lets nobody choose."""

    def __getitem__(self, status: int) -> bytes:
        reason = REASON.get()
        return super().__getitem__(status) if reason is None else reason.encode("latin-1", "replace")


h11_impl.STATUS_PHRASES = Phrases(h11_impl.STATUS_PHRASES)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A server context that remembers the name that the client asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise program.StartError(f"cannot use the certificate {certificate} with the key {key}: {error}") from None

    def remember_name(connection: Any, name: str | None, _: ssl.SSLContext) -> None:
        connection.requested_name = name

    context.sni_callback = remember_name
    return context


def logging_socket(log: RequestLog) -> type[socket.socket]:
    """A kind of listening socket that logs each TCP connection as it is accepted, before any byte is read."""

    class LoggingSocket(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            connection, peer = super().accept()
            local = program.format_address(connection.getsockname())
            log.write("connection", peer=program.format_address(peer), local=local)
            return connection, peer

    return LoggingSocket


def logging_protocol(log: RequestLog) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 protocol, which tells the application the TLS name and logs what never became a request."""

    class LoggingProtocol(H11Protocol):
        requested_name: str | None = None
        requests = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.requested_name = getattr(transport.get_extra_info("ssl_object"), "requested_name", None)
            application = self.app

            async def with_tls(scope: Scope, receive: Receive, send: Send) -> None:
                self.requests += 1
                scope.setdefault("extensions", {})["snowfence.tls"] = {"sni": self.requested_name}
                await application(scope, receive, send)

            self.app = with_tls

        def send_400_response(self, msg: str) -> None:
            self._log("malformed")
            super().send_400_response(msg)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.requests == 0:
                self._log("silent")
            super().connection_lost(exc)

        def _log(self, event: str) -> None:
            peer, local = program.format_address(self.client), program.format_address(self.server)
            log.write(event, peer=peer, local=local, sni=self.requested_name)

    return LoggingProtocol

"""TLS as clients speak it, and ClientHellos that are put together by hand."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from collections.abc import Iterable

from .ways import HOST, Refused

INTERNAL = b"Snowfence internal CA"
# What the server says up to the end of its certificates fits into this.
LARGEST_ANSWER = 64 * 1024
SERVER_NAME, PADDING = 0, 21
CERTIFICATE = 11


def met(certificate: bytes) -> str:
    """Who presents this."""
    return "proxy" if INTERNAL in certificate else "snowflake"


def wrap(stream: socket.socket, name: str | None = HOST, protocols: Iterable[str] = ()) -> ssl.SSLSocket:
    """A handshake that trusts anybody."""
    context = ssl._create_unverified_context()  # noqa: S323, SLF001
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context.wrap_socket(stream, server_hostname=name)


def knock(stream: socket.socket, name: str | None = HOST, host: str = HOST) -> str:
    """Shakes hands and asks for something; who is there."""
    with stream, wrap(stream, name) as tls:
        who = met(tls.getpeercert(binary_form=True) or b"")
        tls.sendall(f"GET /bypass HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return who


def knock_in_pieces(stream: socket.socket, cut: int) -> str:
    """The same, with the hello in two segments."""
    context = ssl._create_unverified_context()  # noqa: S323, SLF001
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, to_send, server_hostname=HOST)
    pieces = [cut]
    with stream:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                send(stream, to_send.read(), pieces.pop() if pieces else 0)
                received.write(stream.recv(65536) or b"\x15\x03\x03\x00\x02\x02\x28")
        tls.write(b"GET /bypass HTTP/1.1\r\n\r\n")
        send(stream, to_send.read(), 0)
        return met(tls.getpeercert(binary_form=True) or b"")


def send(stream: socket.socket, content: bytes, cut: int) -> None:
    """Sends, in two segments if there is a place to cut."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if cut:
        stream.sendall(content[:cut])
        time.sleep(0.1)
    stream.sendall(content[cut:])


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!HH", kind, len(content)) + content


def server_name(name: str) -> bytes:
    entry = struct.pack("!BH", 0, len(name)) + name.encode()
    return extension(SERVER_NAME, struct.pack("!H", len(entry)) + entry)


def hello(name: str | None = HOST, padding: int = 0) -> bytes:
    """A ClientHello of TLS 1.2, in which the server shows its certificate in the clear. Padding comes before the name."""
    extensions = extension(PADDING, bytes(padding)) if padding else b""
    extensions += server_name(name) if name else b""
    # Groups X25519, P-256 and P-384; uncompressed points; signatures by ECDSA, RSA-PSS and RSA with SHA-256 and -384.
    extensions += extension(10, bytes.fromhex("0006001d00170018")) + extension(11, b"\x01\x00")
    extensions += extension(13, bytes.fromhex("000c040305030804080504010501"))
    ciphers = bytes.fromhex("c02bc02fc02cc030cca9cca8")
    body = b"\x03\x03" + os.urandom(32) + b"\0" + struct.pack("!H", len(ciphers)) + ciphers + b"\x01\0"
    body += struct.pack("!H", len(extensions)) + extensions
    return b"\x01" + len(body).to_bytes(3, "big") + body


def records(message: bytes, *sizes: int) -> bytes:
    """A handshake message in TLS records: of these sizes, and one for the rest."""
    parts, position = b"", 0
    for size in (*sizes, len(message) - sum(sizes)):
        part = message[position : position + size]
        position += size
        parts += b"\x16\x03\x01" + struct.pack("!H", len(part)) + part
    return parts


def say(stream: socket.socket, *pieces: bytes) -> str:
    """Sends pieces, each in a segment of its own; who answers with a certificate."""
    with stream:
        for piece in pieces:
            send(stream, piece, 0)
            time.sleep(0.1)
        return met(certificate_of(stream))


def certificate_of(stream: socket.socket) -> bytes:
    """What the server says up to the end of its certificate."""
    answer = b""
    while len(answer) < LARGEST_ANSWER:
        received = stream.recv(65536)
        if not received:
            break
        answer += received
        if answer[0] == 0x15:
            raise Refused(f"alert {answer[6:7].hex()}")
        messages = b"".join(contents(answer))
        while len(messages) >= 4:
            end = 4 + int.from_bytes(messages[1:4], "big")
            if messages[0] == CERTIFICATE and len(messages) >= end:
                return messages[:end]
            messages = messages[end:] if len(messages) >= end else b""
    raise Refused("the connection ended before a certificate came")


def contents(stream: bytes) -> Iterable[bytes]:
    """What is in the whole records of handshakes."""
    position = 0
    while position + 5 <= len(stream):
        end = position + 5 + int.from_bytes(stream[position + 3 : position + 5], "big")
        if stream[position] != 0x16 or end > len(stream):
            return
        yield stream[position + 5 : end]
        position = end

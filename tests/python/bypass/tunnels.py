"""Ways through a proxy outside, which leads wherever it is told to."""

from __future__ import annotations

import socket
import struct
import time

from .tls import knock, knock_in_pieces
from .ways import HOST, HTTP_PROXY, PORT, SNOWFLAKE, SOCKS_PROXY, Refused, dial, way

# By name, the request itself is met; by address, the hello inside.
TUNNEL = ("tunnel_refused",)
INSIDE = ("tunnel_refused", "name_guarded")


def connect(target: str, *pieces: bytes) -> socket.socket:
    """A tunnel by HTTP CONNECT."""
    stream = dial(HTTP_PROXY)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces or (f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode(),):
        stream.sendall(piece)
        time.sleep(0.1)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        received = stream.recv(1)
        if not received:
            raise Refused("the proxy hung up")
        answer += received
    if b" 200 " not in answer:
        raise Refused(answer.splitlines()[0].decode(errors="replace"))
    return stream


@way(ends="refused", events=TUNNEL)
def http_proxy_by_name() -> str:
    """HTTP CONNECT to Snowflake's name."""
    return knock(connect(f"{HOST}:{PORT}"))


@way(ends="refused", events=INSIDE)
def http_proxy_by_address() -> str:
    """HTTP CONNECT to Snowflake's address: only the hello inside has a name."""
    return knock(connect(f"{SNOWFLAKE[0]}:{PORT}"))


@way(ends="refused", events=INSIDE)
def http_proxy_in_pieces() -> str:
    """HTTP CONNECT in two segments, of which none has the whole name."""
    request = f"CONNECT {HOST}:{PORT} HTTP/1.1\r\n\r\n".encode()
    return knock(connect("", request[:20], request[20:]))


@way(ends="refused", events=INSIDE, only_all=True)
def http_proxy_and_hello_in_pieces() -> str:
    """The same, with the hello inside in two segments too."""
    request = f"CONNECT {HOST}:{PORT} HTTP/1.1\r\n\r\n".encode()
    return knock_in_pieces(connect("", request[:20], request[20:]), 90)


def socks(stream: socket.socket, *requests: bytes) -> socket.socket:
    """A tunnel by SOCKS: each request, and the answer to it."""
    answer = b""
    for request in requests:
        stream.sendall(request)
        answer = stream.recv(64)
    # Granted is 0 in version 5 and 90 in version 4.
    if answer[1:2] not in (b"\0", b"\x5a"):
        raise Refused(f"the proxy answers {answer.hex()}")
    return stream


@way(ends="refused", events=TUNNEL)
def socks5_by_name() -> str:
    """SOCKS 5 to Snowflake's name."""
    target = bytes([len(HOST)]) + HOST.encode() + struct.pack("!H", PORT)
    return knock(socks(dial(SOCKS_PROXY), b"\x05\x01\x00", b"\x05\x01\x00\x03" + target))


@way(ends="refused", events=INSIDE)
def socks5_by_address() -> str:
    """SOCKS 5 to Snowflake's address."""
    target = socket.inet_aton(SNOWFLAKE[0]) + struct.pack("!H", PORT)
    return knock(socks(dial(SOCKS_PROXY), b"\x05\x01\x00", b"\x05\x01\x00\x01" + target))


@way(ends="refused", events=INSIDE)
def socks4a_by_name() -> str:
    """SOCKS 4a to Snowflake's name."""
    request = struct.pack("!BBH", 4, 1, PORT) + b"\0\0\0\x01" + b"me\0" + HOST.encode() + b"\0"
    return knock(socks(dial(SOCKS_PROXY), request))

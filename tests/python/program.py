"""What every program of the sandbox shares: addresses, the ready line, orderly ends.

A program prints one JSON line `{"ready": true, …}` on stdout once it listens, logs on stderr, ends with status 0
on SIGTERM or SIGINT, and reports anything that keeps it from starting as one line with status 1.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any


class StartError(Exception):
    """Something that the person who started the program has to put right. Shown as one line."""


def parse_address(text: str) -> tuple[str, int]:
    """Splits `10.0.0.1:80` or `[fd00::1]:80` into host and port."""
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not separator or not host or not port.isdecimal() or int(port) > 65535 or (":" in host and not bracketed):
        raise StartError(f"{text!r} is no address: expected ADDR:PORT or [ADDR6]:PORT")
    return host, int(port)


def format_address(address: tuple[Any, ...] | None) -> str:
    """The text of a socket address, `10.0.0.1:80` or `[fd00::1]:80`; empty when it is not known."""
    if not address:
        return ""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(
    text: str, kind: socket.SocketKind = socket.SOCK_STREAM, factory: type[socket.socket] = socket.socket
) -> socket.socket:
    """A bound socket (listening, when it is a stream) for the address in `text`."""
    host, port = parse_address(text)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, because asyncio switches Nagle's delay off only on sockets that say that they are TCP.
    protocol = socket.IPPROTO_TCP if kind == socket.SOCK_STREAM else socket.IPPROTO_UDP
    listener = factory(family, kind, protocol)
    try:
        if kind == socket.SOCK_STREAM:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        if kind == socket.SOCK_STREAM:
            listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {text}: {error.strerror or error}") from None
    return listener


def addresses_in(text: str) -> list[str]:
    """The addresses of hosts in `10.77.3.0/24`, or those that end in the same digits in `fd77:3::/64`, with port 443."""
    network = ipaddress.ip_network(text)
    numbers = [int(str(number), 16) if network.version == 6 else number for number in range(2, 255)]
    return [format_address((str(network[number]), 443)) for number in numbers]


def announce(listeners: list[socket.socket], **facts: Any) -> None:
    """Tells the program that started this one that it can connect now."""
    addresses = [format_address(listener.getsockname()) for listener in listeners]
    print(json.dumps({"ready": True, "listen": addresses, **facts}), flush=True)


def stop_on_signal() -> asyncio.Event:
    """An event that is set by SIGTERM and SIGINT. Call it inside the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs `main` to its end and leaves the process with the right status."""
    try:
        asyncio.run(main)
    except StartError as error:
        sys.exit(f"error: {error}")

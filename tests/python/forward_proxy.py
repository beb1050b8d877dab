"""Plain proxies that lead anywhere: the ways around the agent that tests try from inside a pod.

    python forward_proxy.py --http 10.77.1.7:3128 --socks 10.77.1.7:1080

The one speaks HTTP CONNECT, the other SOCKS 4, 4a and 5 without a password.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import struct
import sys
from collections.abc import Awaitable, Callable

import program

LARGEST_HEAD = 16 * 1024
CONNECT_SECONDS = 10.0

SOCKS4, SOCKS5 = 4, 5
CONNECT = 1
SOCKS4_GRANTED, SOCKS4_FAILED = 90, 91
SOCKS5_FAILED, SOCKS5_NOT_ALLOWED = 1, 7
TYPE_IPV4, TYPE_NAME, TYPE_IPV6 = 1, 3, 4
NO_AUTHENTICATION, NO_METHOD = 0, 0xFF

Target = tuple[str, int]
ReadTarget = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[tuple[Target, bytes, bytes]]]


class BadRequest(Exception):
    """A request that leads nowhere, with the bytes to answer it by."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(answer)
        self.answer = answer


def http_answer(status: str) -> bytes:
    """A refusal of a CONNECT request."""
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


async def http_target(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> tuple[Target, bytes, bytes]:
    """Reads a request; what the client wants, and the answers for when it can be had and when it cannot."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
        raise BadRequest(http_answer("400 Bad Request")) from None
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3:
        raise BadRequest(http_answer("400 Bad Request"))
    if words[0] != "CONNECT":
        raise BadRequest(http_answer("405 Method Not Allowed"))
    try:
        target = program.parse_address(words[1])
    except program.StartError:
        raise BadRequest(http_answer("400 Bad Request")) from None
    return target, b"HTTP/1.1 200 Connection established\r\n\r\n", http_answer("502 Bad Gateway")


async def socks_target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Target, bytes, bytes]:
    """The same for SOCKS."""
    try:
        version = (await reader.readexactly(1))[0]
        if version == SOCKS4:
            return await socks4_target(reader)
        if version == SOCKS5:
            return await socks5_target(reader, writer)
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError, UnicodeDecodeError):
        pass
    raise BadRequest(b"")


async def socks4_target(reader: asyncio.StreamReader) -> tuple[Target, bytes, bytes]:
    """After the version: an address, or (4a) an impossible one and a name."""
    answer = struct.Struct("!BB6x")
    command, port, address = struct.unpack("!BH4s", await reader.readexactly(7))
    await reader.readuntil(b"\0")
    host = str(ipaddress.IPv4Address(address))
    if address[:3] == b"\0\0\0" and address[3]:
        host = (await reader.readuntil(b"\0"))[:-1].decode("ascii")
    if command != CONNECT:
        raise BadRequest(answer.pack(0, SOCKS4_FAILED))
    return (host, port), answer.pack(0, SOCKS4_GRANTED), answer.pack(0, SOCKS4_FAILED)


async def socks5_target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Target, bytes, bytes]:
    """After the version: a choice of methods, then an address or a name."""

    def answer(code: int) -> bytes:
        return struct.pack("!BBBB6x", SOCKS5, code, 0, TYPE_IPV4)

    methods = await reader.readexactly((await reader.readexactly(1))[0])
    if NO_AUTHENTICATION not in methods:
        raise BadRequest(bytes([SOCKS5, NO_METHOD]))
    writer.write(bytes([SOCKS5, NO_AUTHENTICATION]))
    _, command, _, kind = await reader.readexactly(4)
    if kind == TYPE_NAME:
        host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("ascii")
    elif kind in (TYPE_IPV4, TYPE_IPV6):
        host = str(ipaddress.ip_address(await reader.readexactly(4 if kind == TYPE_IPV4 else 16)))
    else:
        raise BadRequest(answer(SOCKS5_NOT_ALLOWED))
    (port,) = struct.unpack("!H", await reader.readexactly(2))
    if command != CONNECT:
        raise BadRequest(answer(SOCKS5_NOT_ALLOWED))
    return (host, port), answer(0), answer(SOCKS5_FAILED)


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Moves bytes one way until the sender is done, then tells the receiver so."""
    try:
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()


async def serve(
    read_target: ReadTarget, known: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serves one client of one of the protocols."""
    try:
        target, granted, failed = await asyncio.wait_for(read_target(reader, writer), CONNECT_SECONDS)
        host, port = known.get(target[0], target[0]), target[1]
        if host.count(":") == 1:
            host, port = program.parse_address(host)
        try:
            answers, questions = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_SECONDS)
        except (OSError, TimeoutError) as error:
            print(f"forward_proxy: no way to {host}:{port}: {error}", file=sys.stderr)
            raise BadRequest(failed) from None
        print(f"forward_proxy: {host}:{port}", file=sys.stderr)
        writer.write(granted)
        try:
            await asyncio.gather(relay(reader, questions), relay(answers, writer))
        finally:
            questions.close()
    except BadRequest as error:
        writer.write(error.answer)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.close()


async def main(options: argparse.Namespace) -> None:
    """Serves until a signal comes."""
    stop = program.stop_on_signal()
    known = dict(record.split("=", 1) for record in options.host)
    listeners = []
    for address, read_target in ((options.http, http_target), (options.socks, socks_target)):
        listener = program.bind(address)
        await asyncio.start_server(
            lambda reader, writer, read_target=read_target: serve(read_target, known, reader, writer),
            sock=listener,
            limit=LARGEST_HEAD,
        )
        listeners.append(listener)
    program.announce(listeners)
    await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--http", required=True, metavar="ADDR:PORT", help="where to speak HTTP CONNECT")
    parser.add_argument("--socks", required=True, metavar="ADDR:PORT", help="where to speak SOCKS")
    parser.add_argument("--host", action="append", default=[], metavar="NAME=ADDR[:PORT]", help="a name that is not in DNS")
    program.run(main(parser.parse_args()))

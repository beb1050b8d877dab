"""A tiny authoritative DNS server over UDP, TCP and HTTPS: A and AAAA records from the command line, nothing else.

    python dns.py --listen 10.77.1.2:53 --record acme.snowflakecomputing.com=10.77.2.1,fd77::1 --ttl 5 \\
        --numbered pod-{}.snowflakecomputing.com=10.77.3.{},fd77:3::{} --https 10.77.1.2:8443 --certificate c --key k

Names are compared without regard to case. Other types of a known name get an empty answer, unknown names NXDOMAIN.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import socket
import ssl
import struct
import sys
from pathlib import Path

import program

Records = dict[str, list[ipaddress.IPv4Address | ipaddress.IPv6Address]]

TYPE_A, TYPE_AAAA, TYPE_ANY, CLASS_IN = 1, 28, 255, 1
NO_ERROR, FORMAT_ERROR, NAME_ERROR, NOT_IMPLEMENTED, REFUSED = 0, 1, 3, 4, 5
RESPONSE, AUTHORITATIVE, RECURSION_DESIRED = 0x8000, 0x0400, 0x0100
LARGEST_DATAGRAM = 512
LARGEST_HEAD = 16 * 1024
IDLE_SECONDS = 10.0
# What `{}` in --numbered stands for.
NUMBERS = range(2, 255)


class MalformedQuery(Exception):
    """Bytes that are no DNS query with one question."""


class Zone:
    """The records, and the answers that follow from them."""

    def __init__(self, records: Records, ttl: int) -> None:
        self._records = records
        self._ttl = ttl

    def answer(self, query: bytes) -> bytes | None:
        """The reply to a query; none to what is too short to have one, or is itself a reply."""
        if len(query) < 12:
            return None
        identifier, flags, questions = struct.unpack_from("!HHH", query)
        if flags & RESPONSE:
            return None
        kept = flags & (0x7800 | RECURSION_DESIRED)
        if flags & 0x7800:
            return header(identifier, kept, NOT_IMPLEMENTED)
        try:
            if questions != 1:
                raise MalformedQuery
            name, end = read_name(query, 12)
            kind, class_ = struct.unpack_from("!HH", query, end)
        except (MalformedQuery, struct.error):
            return header(identifier, kept, FORMAT_ERROR)
        question = query[12 : end + 4]
        if class_ != CLASS_IN:
            return header(identifier, kept, REFUSED, 1) + question
        addresses = self._records.get(name)
        if addresses is None:
            # A name above a known one exists, though it has no records.
            exists = any(known.endswith(f".{name}") for known in self._records)
            return header(identifier, kept | AUTHORITATIVE, NO_ERROR if exists else NAME_ERROR, 1) + question
        answers = b""
        count = 0
        for address in addresses:
            type_ = TYPE_A if address.version == 4 else TYPE_AAAA
            if kind in (type_, TYPE_ANY):
                # 0xC00C points at the question's name.
                answers += (
                    struct.pack("!HHHIH", 0xC00C, type_, CLASS_IN, self._ttl, len(address.packed)) + address.packed
                )
                count += 1
        return header(identifier, kept | AUTHORITATIVE, NO_ERROR, 1, count) + question + answers


class Datagrams(asyncio.DatagramProtocol):
    """DNS over UDP."""

    def __init__(self, zone: Zone) -> None:
        self._zone = zone
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._zone.answer(data)
        if answer is None or self._transport is None:
            return
        if len(answer) > LARGEST_DATAGRAM:
            # Truncated: the client asks again over TCP.
            answer = answer[:2] + bytes([answer[2] | 0x02]) + answer[3:6] + b"\0\0" + answer[8:12] + question_of(answer)
        self._transport.sendto(answer, addr)


def header(identifier: int, flags: int, code: int, questions: int = 0, answers: int = 0) -> bytes:
    """The twelve bytes before a reply's question."""
    return struct.pack("!HHHHHH", identifier, RESPONSE | flags | code, questions, answers, 0, 0)


def read_name(message: bytes, start: int) -> tuple[str, int]:
    """The question's name in lower case, and the offset after it. Compression has no place in a query."""
    labels: list[str] = []
    position = start
    while True:
        if position >= len(message) or position - start > 255:
            raise MalformedQuery
        length = message[position]
        position += 1
        if length == 0:
            return ".".join(labels).lower(), position
        if length > 63 or position + length > len(message):
            raise MalformedQuery
        labels.append(message[position : position + length].decode("latin-1"))
        position += length


def question_of(reply: bytes) -> bytes:
    """The question section of a reply that this server made."""
    return reply[12 : read_name(reply, 12)[1] + 4]


def parse_records(texts: list[str]) -> Records:
    """`NAME=ADDR[,ADDR…]` from the command line."""
    records: Records = {}
    for text in texts:
        name, separator, addresses = text.partition("=")
        if not separator or not name:
            raise program.StartError(f"{text!r} is no record: expected NAME=ADDR[,ADDR6]")
        try:
            found = [ipaddress.ip_address(address) for address in addresses.split(",")]
        except ValueError as error:
            raise program.StartError(f"{text!r} is no record: {error}") from None
        records.setdefault(name.rstrip(".").lower(), []).extend(found)
    return records


def numbered_records(texts: list[str]) -> list[str]:
    """One record for each number."""
    return [text.replace("{}", str(number)) for text in texts for number in NUMBERS]


async def serve_https(zone: Zone, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One query over HTTPS (RFC 8484), as the body of a POST; whatever else comes is hung up on."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_SECONDS)
        lines = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        if lines[0].startswith("POST ") and fields.get("content-type") == "application/dns-message":
            query = await asyncio.wait_for(reader.readexactly(int(fields.get("content-length", "0"))), IDLE_SECONDS)
            answer = zone.answer(query) or b""
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: application/dns-message\r\nContent-Length: {len(answer)}\r\n"
                "Connection: close\r\n\r\n".encode() + answer
            )
            await writer.drain()
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError, TimeoutError, ValueError, OSError):
        pass
    finally:
        writer.close()


async def serve_stream(zone: Zone, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """DNS over TCP: each message has its length before it."""
    try:
        while True:
            (length,) = struct.unpack("!H", await asyncio.wait_for(reader.readexactly(2), IDLE_SECONDS))
            answer = zone.answer(await asyncio.wait_for(reader.readexactly(length), IDLE_SECONDS))
            if answer is None:
                break
            writer.write(struct.pack("!H", len(answer)) + answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, TimeoutError, OSError):
        pass
    finally:
        writer.close()


async def main(options: argparse.Namespace) -> None:
    """Serves until a signal comes."""
    stop = program.stop_on_signal()
    records = parse_records(options.record + numbered_records(options.numbered))
    zone = Zone(records, options.ttl)
    loop = asyncio.get_running_loop()
    streams: list[socket.socket] = []
    for address in options.listen:
        stream = program.bind(address)
        # Port 0 stands for a free one; UDP then takes the same as TCP.
        datagram = program.bind(program.format_address(stream.getsockname()), socket.SOCK_DGRAM)
        await loop.create_datagram_endpoint(lambda: Datagrams(zone), sock=datagram)
        await asyncio.start_server(lambda reader, writer: serve_stream(zone, reader, writer), sock=stream)
        streams.append(stream)
    if options.https:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.certificate, options.key)
        stream = program.bind(options.https)
        await asyncio.start_server(
            lambda reader, writer: serve_https(zone, reader, writer), sock=stream, ssl=tls, limit=LARGEST_HEAD
        )
        streams.append(stream)
    print(f"dns: answering for {len(records)} names", file=sys.stderr)
    program.announce(streams)
    await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listen", action="append", required=True, metavar="ADDR:PORT", help="repeat for several")
    parser.add_argument("--record", action="append", default=[], metavar="NAME=ADDR[,ADDR6]", help="repeat for several")
    parser.add_argument("--numbered", action="append", default=[], metavar="NAME=ADDR", help="{} is each of 2 to 254")
    parser.add_argument("--https", metavar="ADDR:PORT", help="answer over HTTPS too")
    parser.add_argument("--certificate", type=Path, help="PEM chain for --https")
    parser.add_argument("--key", type=Path, help="PEM key of the certificate")
    parser.add_argument("--ttl", type=int, default=5, help="seconds that answers may be kept (default 5)")
    program.run(main(parser.parse_args()))

"""Writes down what arrives on Snowflake's side by another way than the agent, whatever protocol it is in.

    python witness.py --device eth0 --snowflake 10.77.1.2/32 --snowflake 10.77.3.0/24 --agent 10.77.1.1 --log witness.jsonl

A line for each packet with content that goes to one of Snowflake's networks and is not from the agent: its "time",
"source", "destination", "protocol", the number of "bytes" after the headers, and the first of these as "text". Packets
without content, as in a TCP handshake, and what ICMP says of the network, are not written down.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import socket
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import program

ANY_PROTOCOL = 0x0003
IPV4, IPV6 = 0x0800, 0x86DD
ICMP, TCP, UDP, ICMPV6, FRAGMENT = 1, 6, 17, 58, 44
# Headers of IPv6 that have their own length in their second byte: hop-by-hop and destination options, routing.
EXTENSIONS = (0, 43, 60)
LARGEST = 65536
SHOWN = 200

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class NotPacket(Exception):
    """Bytes that are no whole IP header."""


@dataclass(frozen=True)
class Packet:
    """What matters of a packet."""

    source: Address
    destination: Address
    protocol: int
    content: bytes


def read(kind: int, data: bytes) -> Packet:
    """Reads a packet of this Ethernet type."""
    try:
        return read_ipv4(data) if kind == IPV4 else read_ipv6(data)
    except (IndexError, ValueError):
        raise NotPacket from None


def read_ipv4(data: bytes) -> Packet:
    """The total length counts, for Ethernet pads what is short."""
    header, total = (data[0] & 0xF) * 4, int.from_bytes(data[2:4], "big")
    is_first = int.from_bytes(data[6:8], "big") & 0x1FFF == 0
    protocol = data[9]
    content = data[header:total]
    return Packet(
        ipaddress.IPv4Address(data[12:16]),
        ipaddress.IPv4Address(data[16:20]),
        protocol,
        after_ports(protocol, content) if is_first else content,
    )


def read_ipv6(data: bytes) -> Packet:
    """The same, past the headers that may stand before the content."""
    protocol, position, end = data[6], 40, 40 + int.from_bytes(data[4:6], "big")
    is_first = True
    while protocol in (*EXTENSIONS, FRAGMENT):
        length = 8
        if protocol == FRAGMENT:
            is_first = int.from_bytes(data[position + 2 : position + 4], "big") & 0xFFF8 == 0
        else:
            length += data[position + 1] * 8
        protocol, position = data[position], position + length
    content = data[position:end]
    return Packet(
        ipaddress.IPv6Address(data[8:24]),
        ipaddress.IPv6Address(data[24:40]),
        protocol,
        after_ports(protocol, content) if is_first else content,
    )


def after_ports(protocol: int, content: bytes) -> bytes:
    """What a transport carries. Of protocols that are not known, all."""
    if protocol == TCP:
        return content[(content[12] >> 4) * 4 :]
    return content[8:] if protocol == UDP else content


class Witness:
    """Reads packets from a device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._snowflake: list[Network] = [ipaddress.ip_network(text) for text in options.snowflake]
        self._agent: set[Address] = {ipaddress.ip_address(text) for text in options.agent}
        try:
            self._log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            self.socket.setblocking(False)
            # Room for what comes while others have the processor.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024 * 1024)
            self.socket.bind((options.device, ANY_PROTOCOL))
        except OSError as error:
            raise program.StartError(f"cannot watch {options.device}: {error.strerror or error}") from None

    def look(self) -> None:
        """Reads what is there."""
        while True:
            try:
                data, address = self.socket.recvfrom(LARGEST)
            except BlockingIOError:
                return
            _, kind, direction, *_ = address
            if direction != socket.PACKET_OUTGOING and kind in (IPV4, IPV6):
                self._take(kind, data)

    def _take(self, kind: int, data: bytes) -> None:
        try:
            packet = read(kind, data)
        except NotPacket:
            return
        if packet.source in self._agent or not any(packet.destination in network for network in self._snowflake):
            return
        if not packet.content or packet.protocol in (ICMP, ICMPV6):
            return
        line = {
            "time": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            "source": str(packet.source),
            "destination": str(packet.destination),
            "protocol": packet.protocol,
            "bytes": len(packet.content),
            "text": packet.content[:SHOWN].decode("ascii", "backslashreplace"),
        }
        os.write(self._log, (json.dumps(line) + "\n").encode())


async def main(options: argparse.Namespace) -> None:
    """Watches until a signal comes."""
    stop = program.stop_on_signal()
    witness = Witness(options)
    asyncio.get_running_loop().add_reader(witness.socket, witness.look)
    program.announce([])
    await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", required=True, help="where Snowflake's packets come in")
    parser.add_argument("--snowflake", action="append", required=True, metavar="NET", help="repeat for several")
    parser.add_argument("--agent", action="append", required=True, metavar="ADDR", help="repeat for several")
    parser.add_argument("--log", type=Path, required=True, help="JSON-lines file to append to")
    program.run(main(parser.parse_args()))

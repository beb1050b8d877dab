"""Ways by packets that are put together by hand. They need NET_RAW."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time

from .tls import hello, records
from .ways import GATEWAY, SNOWFLAKE, SNOWFLAKE6, UNKNOWN, Address, Refused, way

TCP, UDP = 6, 17
IPV4, IPV6 = 0x0800, 0x86DD
# An address such as other pods have.
NEIGHBOUR = "10.77.2.250"
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
REFUSED = ("raw_socket_refused",)
# Where the kernel cannot refuse packet sockets, the perimeter meets their packets.
DROPPED = ("raw_socket_refused", "perimeter_dropped", "name_guarded")


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def own_address(target: Address) -> str:
    """The address from which packets go there."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((target[0], 9))
        return probe.getsockname()[0]


def tcp(source: str, target: Address, content: bytes) -> bytes:
    """A segment in the middle of a connection."""
    return transport(TCP, source, target, struct.pack("!HHIIBBHHH", 40123, target[1], 7, 7, 0x50, 0x18, 512, 0, 0), content, 16)


def udp(source: str, target: Address, content: bytes) -> bytes:
    return transport(UDP, source, target, struct.pack("!HHHH", 40123, target[1], 8 + len(content), 0), content, 6)


def transport(protocol: int, source: str, target: Address, head: bytes, content: bytes, place: int) -> bytes:
    """Puts the checksum into its place."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, target[0])
    sum_ = checksum(ends + struct.pack("!II", protocol, len(head + content)) + head + content)
    return head[:place] + struct.pack("!H", sum_) + head[place + 2 :] + content


def ipv4(source: str, target: str, protocol: int, content: bytes, fragment: int = 0) -> bytes:
    length = 20 + len(content)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 0x5F5F, fragment, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + content


def ipv6(source: str, target: str, protocol: int, content: bytes) -> bytes:
    head = struct.pack("!IHBB", 0x60000000, len(content), protocol, 64)
    return head + socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target) + content


def gateways_address(device: str = "eth0") -> bytes:
    """The hardware address of the gateway, once the kernel has asked for it."""
    for _ in range(50):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.sendto(b"", (GATEWAY, 9))
        with open("/proc/net/arp") as table:
            for line in table:
                address, _, flags, hardware, _, on = [*line.split(), "", "", "", "", "", ""][:6]
                if address == GATEWAY and flags == "0x2" and on == device:
                    return bytes.fromhex(hardware.replace(":", ""))
        time.sleep(0.05)
    raise Refused("the gateway does not answer")


def put_on(device: str, kind: int, packets: list[bytes], bypass: bool = False) -> str:
    """Sends packets by a packet socket."""
    gateway = gateways_address(device)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sender:
        if bypass:
            sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        for packet in packets:
            sender.sendto(packet, (device, kind, 0, 0, gateway))
    return "sent"


def segment(target: Address) -> bytes:
    return ipv4(own_address(target), target[0], TCP, tcp(own_address(target), target, b"select 1"))


@way(ends="refused", events=REFUSED, root=True)
def raw_ip() -> str:
    """TCP by a raw IP socket that makes its own headers."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        sender.sendto(segment(SNOWFLAKE), (SNOWFLAKE[0], 0))
    return "sent"


@way(ends="refused", events=REFUSED, root=True)
def raw_udp() -> str:
    """UDP by a raw IP socket, whose header the kernel makes."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sender:
        sender.sendto(udp(own_address(SNOWFLAKE), SNOWFLAKE, b"select 1"), (SNOWFLAKE[0], 0))
    return "sent"


@way(ends="refused", events=REFUSED, root=True)
def raw_ipv6() -> str:
    """The same over IPv6."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP) as sender:
        sender.sendto(tcp(own_address(SNOWFLAKE6), SNOWFLAKE6, b"select 1"), (SNOWFLAKE6[0], 0))
    return "sent"


@way(ends="stopped", events=DROPPED, root=True)
def packet_socket() -> str:
    """TCP by a packet socket, which goes by every hook for sockets."""
    return put_on("eth0", IPV4, [segment(SNOWFLAKE)])


@way(ends="stopped", events=DROPPED, root=True)
def packet_socket_over_ipv6() -> str:
    """The same over IPv6."""
    source = own_address(SNOWFLAKE6)
    packet = ipv6(source, SNOWFLAKE6[0], TCP, tcp(source, SNOWFLAKE6, b"select 1"))
    return put_on("eth0", IPV6, [packet])


@way(ends="stopped", events=DROPPED, root=True)
def packet_socket_past_the_queue() -> str:
    """The same with PACKET_QDISC_BYPASS, which also goes by the pod's own device queue."""
    return put_on("eth0", IPV4, [segment(SNOWFLAKE)], bypass=True)


@way(ends="stopped", events=DROPPED, root=True)
def packet_socket_with_udp() -> str:
    """UDP by a packet socket."""
    content = udp(own_address(SNOWFLAKE), SNOWFLAKE, b"select 1")
    return put_on("eth0", IPV4, [ipv4(own_address(SNOWFLAKE), SNOWFLAKE[0], UDP, content)])


@way(ends="stopped", events=DROPPED, root=True)
def packet_socket_with_fragments() -> str:
    """UDP by a packet socket, in two fragments, of which the second has no ports."""
    source = own_address(SNOWFLAKE)
    content = udp(source, SNOWFLAKE, bytes(1000))
    more, eighths = 0x2000, 64
    first = ipv4(source, SNOWFLAKE[0], UDP, content[: eighths * 8], more)
    second = ipv4(source, SNOWFLAKE[0], UDP, content[eighths * 8 :], eighths)
    return put_on("eth0", IPV4, [second, first])


@way(ends="stopped", events=DROPPED, root=True)
def packet_socket_under_a_false_address() -> str:
    """TCP by a packet socket, with another pod's address as its source: whose attempt it is, the address does not say."""
    packet = ipv4(NEIGHBOUR, SNOWFLAKE[0], TCP, tcp(NEIGHBOUR, SNOWFLAKE, b"select 1"))
    return put_on("eth0", IPV4, [packet])


@way(ends="stopped", events=DROPPED, root=True)
def packet_socket_to_an_unknown_address() -> str:
    """The hello of a connection by a packet socket, to an address that nobody knows."""
    source = own_address(UNKNOWN.v4)
    packet = ipv4(source, UNKNOWN.v4[0], TCP, tcp(source, UNKNOWN.v4, records(hello())))
    return put_on("eth0", IPV4, [packet])


@way(ends="stopped", events=DROPPED, root=True)
def another_protocol() -> str:
    """A protocol that nobody has heard of, to Snowflake's address, by a packet socket."""
    return put_on("eth0", IPV4, [ipv4(own_address(SNOWFLAKE), SNOWFLAKE[0], 253, os.urandom(64))])



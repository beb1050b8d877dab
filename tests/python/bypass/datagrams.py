"""Ways that are no stream."""

from __future__ import annotations

import os
import socket

from .ways import PORT, SNOWFLAKE, SNOWFLAKE6, way

DATAGRAM = ("datagram_refused",)
IPPROTO_UDPLITE = 136


@way(ends="refused", events=DATAGRAM)
def connected_udp() -> str:
    """UDP from a socket that is connected."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(SNOWFLAKE)
        sender.send(b"select 1")
    return "sent"


@way(ends="refused", events=DATAGRAM)
def unconnected_udp() -> str:
    """UDP from a socket that is not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"select 1", SNOWFLAKE)
    return "sent"


@way(ends="refused", events=DATAGRAM)
def unconnected_udp_over_ipv6() -> str:
    """The same over IPv6."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"select 1", SNOWFLAKE6)
    return "sent"


@way(ends="refused", events=DATAGRAM)
def udp_to_a_mapped_address() -> str:
    """UDP to an IPv4 address through an IPv6 socket."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"select 1", (f"::ffff:{SNOWFLAKE[0]}", PORT))
    return "sent"


@way(ends="refused", events=DATAGRAM)
def udp_by_sendmsg() -> str:
    """UDP with the address in a message, on a socket that is connected elsewhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("10.77.1.6", 53))
        sender.sendmsg([b"select 1"], [], 0, SNOWFLAKE)
    return "sent"


@way(ends="refused", events=DATAGRAM)
def corked_udp() -> str:
    """UDP that is put together in pieces before it goes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"select ", socket.MSG_MORE, SNOWFLAKE)
        sender.sendto(b"1", SNOWFLAKE)
    return "sent"


@way(ends="refused", events=DATAGRAM)
def udp_in_fragments() -> str:
    """UDP that is too large for one packet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(bytes(8000), SNOWFLAKE)
    return "sent"


@way(ends="refused", events=DATAGRAM)
def quic() -> str:
    """The beginning of QUIC: an Initial packet of version 1, padded to 1200 bytes."""
    head = bytes([0xC3]) + bytes.fromhex("00000001") + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0"
    packet = head + (0x4000 | 1200 - len(head) - 2).to_bytes(2, "big")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(SNOWFLAKE)
        sender.send(packet + os.urandom(1200 - len(packet)))
    return "sent"


@way(ends="refused", events=DATAGRAM)
def udp_lite() -> str:
    """UDP-Lite, which is a protocol of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, IPPROTO_UDPLITE) as sender:
        sender.sendto(b"select 1", SNOWFLAKE)
    return "sent"

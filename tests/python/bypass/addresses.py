"""Ways by an address: known ones in every notation, and ones that nobody has told the agent of."""

from __future__ import annotations

import socket

from .tls import knock
from .ways import GUARDED, HOST, PORT, SNOWFLAKE, SNOWFLAKE6, UNKNOWN, dial, way


@way(ends="proxy")
def by_name() -> str:
    """The host's name, as every driver does."""
    return knock(socket.create_connection((HOST, PORT), 4))


@way(ends="proxy")
def hard_coded_ipv4() -> str:
    """An address in the program."""
    return knock(dial(SNOWFLAKE))


@way(ends="proxy")
def hard_coded_ipv6() -> str:
    """The same in IPv6."""
    return knock(dial(SNOWFLAKE6))


@way(ends="proxy")
def ipv4_mapped() -> str:
    """The IPv4 address through an IPv6 socket."""
    return knock(dial((f"::ffff:{SNOWFLAKE[0]}", PORT)))


@way(ends="proxy")
def bound_source_and_device() -> str:
    """A socket that is bound to the pod's own address, so that a redirect to the loopback device would fail."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.77.1.6", 53))
        own = probe.getsockname()[0]
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.settimeout(4)
    stream.bind((own, 0))
    stream.connect(SNOWFLAKE)
    return knock(stream)


@way(**GUARDED)
def unknown_ipv4() -> str:
    """An address of Snowflake's that nobody has told the agent of, with the right name."""
    return knock(dial(UNKNOWN.v4))


@way(**GUARDED)
def unknown_ipv6() -> str:
    """The same in IPv6."""
    return knock(dial(UNKNOWN.v6))


@way(ends="proxy", events=("name_guarded",), in_all="proxy")
def unknown_address_twice() -> str:
    """The same again after the refusal, as a driver tries again by itself: the agent has learnt."""
    for attempt in range(20):
        try:
            return knock(dial(UNKNOWN.v4))
        except OSError:
            if attempt == 19:
                raise
    return "never"


@way(**GUARDED)
def ip_options() -> str:
    """An unknown address, with options that make the IP header longer."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.settimeout(4)
    # 39 times no operation, and the end.
    stream.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01" * 39 + b"\x00")
    stream.connect(UNKNOWN.v4)
    return knock(stream)


@way(ends="stopped", leads=False)
def source_route() -> str:
    """A known address, by a strict route through the pod's gateway."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.settimeout(4)
    hop = socket.inet_aton("10.77.2.1")
    stream.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([0x83, 7, 4]) + hop + b"\x00")
    stream.connect(SNOWFLAKE)
    return knock(stream)


@way(**GUARDED, root=True)
def extension_headers() -> str:
    """An unknown address, with options for the destination between the IPv6 header and TCP."""
    stream = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    stream.settimeout(4)
    # Next header (filled in), no further 8 bytes, and padding of 6 bytes.
    stream.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
    stream.connect(UNKNOWN.v6)
    return knock(stream)

"""Ways by a name that the agent does not hear of, or not in time."""

from __future__ import annotations

import socket
import ssl
import struct
import time

from .tls import hello, knock, records, say
from .ways import DNS, DNS_OVER_HTTPS, GUARDED, PATIENCE, PORT, UNKNOWN, Address, Refused, dial, way


def question(name: str) -> bytes:
    """A query for an IPv4 address."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 0x5F5F, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def address_in(answer: bytes) -> Address:
    """The one in the answer: its last four bytes."""
    if answer[6:8] != b"\0\x01":
        raise Refused("no address in the answer")
    return socket.inet_ntoa(answer[-4:]), PORT


def over_tcp(stream: socket.socket, name: str) -> Address:
    query = question(name)
    with stream, stream.makefile("rb") as answers:
        stream.sendall(struct.pack("!H", len(query)) + query)
        return address_in(answers.read(struct.unpack("!H", answers.read(2))[0]))


def over_udp(server: Address, name: str) -> Address:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.settimeout(PATIENCE)
        resolver.sendto(question(name), server)
        return address_in(resolver.recv(512))


@way(ends="stopped")
def dns_over_tcp() -> str:
    """A name that is asked for over TCP."""
    address = over_tcp(dial(DNS), UNKNOWN.name)
    return knock(dial(address), UNKNOWN.name, UNKNOWN.name)


@way(**GUARDED)
def dns_over_https() -> str:
    """A name that is asked for over HTTPS, where nobody can listen."""
    query = question(UNKNOWN.name)
    context = ssl._create_unverified_context()  # noqa: S323, SLF001
    with context.wrap_socket(dial(DNS_OVER_HTTPS)) as tls, tls.makefile("rb") as answers:
        head = "POST /dns-query HTTP/1.1\r\nHost: dns\r\nContent-Type: application/dns-message\r\n"
        tls.sendall(f"{head}Content-Length: {len(query)}\r\n\r\n".encode() + query)
        address = address_in(answers.read().split(b"\r\n\r\n", 1)[1])
    return knock(dial(address), UNKNOWN.name, UNKNOWN.name)


@way(**GUARDED)
def own_resolver() -> str:
    """A name that is asked for at a resolver of one's own, at another port than 53."""
    address = over_udp((DNS[0], 5353), UNKNOWN.name)
    return knock(dial(address), UNKNOWN.name, UNKNOWN.name)


@way(**GUARDED)
def own_hosts_file() -> str:
    """A name of one's own making, from the pod's /etc/hosts, for an address that nobody knows."""
    with open("/etc/hosts") as hosts:
        address = next(line.split()[0] for line in hosts if "unlisted.snowflakecomputing.com" in line)
    return knock(socket.create_connection((address, PORT), PATIENCE), "unlisted.snowflakecomputing.com")


@way(ends="stopped")
def between_the_answer_and_its_use() -> str:
    """A connection in the instant after the answer, before the agent can have learnt from it."""
    first = records(hello(UNKNOWN.name))
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.settimeout(PATIENCE)
    stream.connect(over_udp(DNS, UNKNOWN.name))
    return say(stream, first)


@way(ends="refused", events=("foreign_name", "not_tls"))
def learnt_address_without_a_name() -> str:
    """TLS without a name, to an address that the agent has only heard of in a DNS answer."""
    address = over_udp(DNS, UNKNOWN.name)
    for _ in range(100):
        with dial(address) as probe:
            if probe.getsockname()[0].startswith("127."):
                # It is led to the agent by now.
                break
        time.sleep(0.02)
    return say(dial(address), records(hello(None)))

"""Ways by what is inside TLS: another host than the one that TLS was asked for."""

from __future__ import annotations

import ssl

from .tls import met, wrap
from .ways import FOREIGN, HOST, SNOWFLAKE, UNKNOWN, Address, Refused, dial, way

OTHER = "other-account.snowflakecomputing.com"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS_FRAME = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def ask(tls: ssl.SSLSocket, host: str) -> int:
    """The status of the answer to a harmless request, which is read to its end."""
    tls.sendall(f"GET /bypass HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        received = tls.recv(65536)
        if not received:
            raise Refused("the connection was closed")
        head += received
    return int(head.split(b" ", 2)[1])


def front(address: Address) -> str:
    with wrap(dial(address), FOREIGN) as tls:
        who = met(tls.getpeercert(binary_form=True) or b"")
        ask(tls, HOST)
    return who


@way(ends="refused", events=("foreign_name",))
def domain_fronting() -> str:
    """TLS under a foreign name, with a request for Snowflake inside."""
    return front(SNOWFLAKE)


@way(ends="refused", events=("foreign_name",), only_all=True, asked=True)
def domain_fronting_at_an_unknown_address() -> str:
    """The same, where nobody knows."""
    return front(UNKNOWN.v4)


@way(ends="refused", events=("host_mismatch",))
def second_host_on_a_connection() -> str:
    """A connection that is kept alive, and then used for another account than it was opened for."""
    with wrap(dial(SNOWFLAKE)) as tls:
        who = met(tls.getpeercert(binary_form=True) or b"")
        ask(tls, HOST)
        status = ask(tls, OTHER)
    if who == "proxy" and status >= 400:
        raise Refused(f"status {status}")
    return who


@way(ends="proxy", events=("host_mismatch",))
def http2_with_another_authority() -> str:
    """HTTP/2, whose requests name their host in another place."""
    with wrap(dial(SNOWFLAKE), protocols=["h2"]) as tls:
        who = met(tls.getpeercert(binary_form=True) or b"")
        # A request by literal fields: GET, https, /, and the other authority.
        fields = b"\x82\x87\x84" + b"\x01" + bytes([len(OTHER)]) + OTHER.encode()
        tls.sendall(PREFACE + SETTINGS_FRAME + len(fields).to_bytes(3, "big") + b"\x01\x05\x00\x00\x00\x01" + fields)
        with tls.makefile("rb") as frames:
            # Up to an answer's headers.
            while head := frames.read(9):
                frames.read(int.from_bytes(head[:3], "big"))
                if head[3] == 1:
                    break
        return who


@way(ends="refused", events=("malformed_request",))
def http2_all_the_same() -> str:
    """HTTP/2 to a server that has not agreed to it."""
    with wrap(dial(SNOWFLAKE)) as tls:
        who = met(tls.getpeercert(binary_form=True) or b"")
        tls.sendall(PREFACE + SETTINGS_FRAME)
        answer = tls.recv(65536)
        # A frame of settings is how a server agrees.
        if who == "proxy" and answer[3:4] != b"\x04":
            raise Refused(answer[:30].decode(errors="replace"))
        return who

"""Ways by what a ClientHello says, or how it is sent: to a known address, and to one that nobody knows."""

from __future__ import annotations

import os
import socket
import struct
import subprocess

from .tls import INTERNAL, hello, knock, records, say
from .ways import FOREIGN, GUARDED, HOST, ONLY_ALL, PATIENCE, SNOWFLAKE, UNKNOWN, Address, Refused, dial, way

# The server's name stands in the middle of what is cut in two here.
CUT = 90


@way(ends="proxy")
def name_in_upper_case() -> str:
    """A name in capitals."""
    return say(dial(SNOWFLAKE), records(hello(HOST.upper())))


@way(**GUARDED)
def name_in_upper_case_at_an_unknown_address() -> str:
    """The same, where nobody knows."""
    return say(dial(UNKNOWN.v4), records(hello(HOST.upper())))


@way(ends="stopped")
def name_with_a_dot() -> str:
    """A name with a dot at its end, which means the same."""
    return say(dial(SNOWFLAKE), records(hello(f"{HOST}.")))


@way(**GUARDED)
def name_with_a_dot_at_an_unknown_address() -> str:
    """The same, where nobody knows."""
    return say(dial(UNKNOWN.v4), records(hello(f"{HOST}.")))


@way(ends="refused", events=("foreign_name", "not_tls"))
def no_name() -> str:
    """TLS without a name."""
    return say(dial(SNOWFLAKE), records(hello(None)))


@way(ends="refused", events=("not_tls",), only_all=True, asked=True)
def no_name_at_an_unknown_address() -> str:
    """The same, where nobody knows."""
    return knock(dial(UNKNOWN.v4), None)


@way(ends="refused", events=("foreign_name",))
def foreign_name() -> str:
    """Another's name, at Snowflake's address."""
    return say(dial(SNOWFLAKE), records(hello(FOREIGN)))


@way(ends="refused", events=("foreign_name",), only_all=True, asked=True)
def foreign_name_at_an_unknown_address() -> str:
    """The same, where nobody knows."""
    return knock(dial(UNKNOWN.v4), FOREIGN)


@way(ends="proxy")
def two_segments() -> str:
    """A hello in two segments, cut in the middle of the name."""
    whole = records(hello())
    return say(dial(SNOWFLAKE), whole[:CUT], whole[CUT:])


@way(**ONLY_ALL)
def two_segments_at_an_unknown_address() -> str:
    """The same, where nobody knows."""
    whole = records(hello())
    return say(dial(UNKNOWN.v4), whole[:CUT], whole[CUT:])


@way(**ONLY_ALL)
def small_segments_at_an_unknown_address() -> str:
    """A hello that the kernel cuts in pieces, because the socket asks for segments of 88 bytes."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.settimeout(PATIENCE)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
    stream.connect(UNKNOWN.v4)
    return say(stream, records(hello()))


@way(ends="proxy")
def two_records() -> str:
    """A hello in two TLS records, cut in the middle of the name."""
    return say(dial(SNOWFLAKE), records(hello(), CUT))


@way(**ONLY_ALL)
def two_records_at_an_unknown_address() -> str:
    """The same, where nobody knows."""
    return say(dial(UNKNOWN.v4), records(hello(), CUT))


@way(ends="proxy")
def long_hello() -> str:
    """A hello of more than two kilobytes, with the name at its end."""
    return say(dial(SNOWFLAKE), records(hello(padding=2200)))


@way(**GUARDED)
def long_hello_at_an_unknown_address() -> str:
    """The same, where nobody knows."""
    return say(dial(UNKNOWN.v4), records(hello(padding=2200)))


def second_hello(address: Address) -> str:
    """A client whose first guess of a key no server accepts, so that it is asked for another hello."""
    command = ["openssl", "s_client", "-connect", f"{address[0]}:{address[1]}", "-servername", HOST]
    command += ["-groups", "P-521:X25519:P-256", "-showcerts"]
    done = subprocess.run(command, input=b"GET /bypass HTTP/1.1\r\n\r\n", capture_output=True, timeout=20)
    if b"BEGIN CERTIFICATE" not in done.stdout:
        raise Refused(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    return "proxy" if INTERNAL in done.stdout else "snowflake"


@way(ends="proxy")
def second_hello_after_a_retry() -> str:
    """A hello that the server answers with HelloRetryRequest, and a second one."""
    return second_hello(SNOWFLAKE)


@way(**GUARDED)
def second_hello_at_an_unknown_address() -> str:
    """The same, where nobody knows."""
    return second_hello(UNKNOWN.v4)


@way(ends="proxy")
def an_old_version() -> str:
    """A hello in a record that says SSL 3.0, as old clients do."""
    whole = records(hello())
    return say(dial(SNOWFLAKE), b"\x16\x03\x00" + whole[3:])


@way(**GUARDED)
def an_old_version_at_an_unknown_address() -> str:
    """The same, where nobody knows."""
    whole = records(hello())
    return say(dial(UNKNOWN.v4), b"\x16\x03\x00" + whole[3:])


@way(ends="proxy")
def a_subdomain_of_ones_own() -> str:
    """A name that Snowflake has never heard of, under a suffix of Snowflake's."""
    return knock(dial(SNOWFLAKE), "nobody.snowflakecomputing.com")


# A warning that servers read over (no_renegotiation), as a record.
WARNING = bytes.fromhex("15030100020164")


@way(**GUARDED)
def a_warning_before_the_hello_at_an_unknown_address() -> str:
    """A record with a warning before the hello, which servers read over."""
    return say(dial(UNKNOWN.v4), WARNING + records(hello()))


@way(ends="stopped", only_all=True)
def a_warning_and_two_segments_at_an_unknown_address() -> str:
    """The same, with the hello in two segments after it."""
    whole = records(hello())
    return say(dial(UNKNOWN.v4), WARNING + whole[:CUT], whole[CUT:])


@way(ends="stopped", only_all=True)
def an_unheard_of_version_in_two_segments_at_an_unknown_address() -> str:
    """A record of version 3.5, which nobody has defined and servers do not look at, in two segments."""
    whole = b"\x16\x03\x05" + records(hello())[3:]
    return say(dial(UNKNOWN.v4), whole[:CUT], whole[CUT:])


@way(ends="refused", events=("not_tls",), only_all=True, asked=True)
def a_hello_of_ssl2_at_an_unknown_address() -> str:
    """A hello in the form of SSL 2, which asks for TLS and has no room for a name."""
    ciphers = bytes.fromhex("00c02f00c03000009c")
    body = b"\x01\x03\x03" + struct.pack("!HHH", len(ciphers), 0, 16) + ciphers + os.urandom(16)
    return say(dial(UNKNOWN.v4), struct.pack("!H", 0x8000 | len(body)) + body)


@way(ends="refused", events=("foreign_name",), only_all=True, asked=True)
def a_name_that_is_none_at_an_unknown_address() -> str:
    """A name that no host can have, to which servers answer as if there were none."""
    return say(dial(UNKNOWN.v4), records(hello("x!y")))

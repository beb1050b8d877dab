"""Ways by unusual sockets and system calls."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import socket
import struct
import subprocess
import sys

from .tls import certificate_of, hello, knock, met, records, say
from .ways import GUARDED, HOST, PATIENCE, PORT, SNOWFLAKE, SNOWFLAKE6, UNKNOWN, dial, way

IPPROTO_MPTCP = 262
TCP_FASTOPEN_CONNECT = 30
MSG_FASTOPEN = 0x20000000


@way(ends="proxy")
def multipath_tcp() -> str:
    """Multipath TCP, which is a protocol of its own to the kernel."""
    return knock(dial(SNOWFLAKE, protocol=IPPROTO_MPTCP))


@way(**GUARDED)
def multipath_tcp_to_an_unknown_address() -> str:
    """The same, to an address that nobody knows: the guard has to find the name behind its options."""
    return knock(dial(UNKNOWN.v4, protocol=IPPROTO_MPTCP))


@way(ends="proxy")
def fast_open_by_sendto() -> str:
    """TCP Fast Open: no connect() at all, the first packet carries data."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.settimeout(PATIENCE)
    stream.sendto(records(hello()), MSG_FASTOPEN, SNOWFLAKE)
    return met(certificate_of(stream))


@way(**GUARDED)
def fast_open_to_an_unknown_address() -> str:
    """The same, to an address that nobody knows."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.settimeout(PATIENCE)
    stream.sendto(records(hello()), MSG_FASTOPEN, UNKNOWN.v4)
    return met(certificate_of(stream))


@way(ends="proxy")
def fast_open_by_option() -> str:
    """TCP Fast Open by the option that delays connect() until there is something to send."""
    stream = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    # A socket that waits, for Python's own way of waiting takes the delay for an error.
    for option in socket.SO_SNDTIMEO, socket.SO_RCVTIMEO:
        stream.setsockopt(socket.SOL_SOCKET, option, struct.pack("=qq", int(PATIENCE), 0))
    stream.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    stream.connect(SNOWFLAKE6)
    return say(stream, records(hello()))


@way(ends="proxy")
def non_blocking_connect() -> str:
    """connect() that does not wait, and a look later whether it has come to something."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        stream.connect(SNOWFLAKE)
    select.select([], [stream], [], PATIENCE)
    stream.settimeout(PATIENCE)
    return knock(stream)


@way(ends="proxy")
def connect_twice() -> str:
    """A socket that is connected, taken apart (AF_UNSPEC), and connected again elsewhere."""
    stream = dial(("10.77.1.6", 53))
    libc = ctypes.CDLL(None, use_errno=True)
    nobody = struct.pack("=H14x", socket.AF_UNSPEC)
    if libc.connect(stream.fileno(), nobody, len(nobody)) != 0:
        raise OSError(ctypes.get_errno(), "connect to AF_UNSPEC")
    stream.connect(SNOWFLAKE)
    return knock(stream)


@way(ends="proxy")
def io_uring() -> str:
    """connect() by io_uring, which makes no such system call."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    target = struct.pack("!4s", socket.inet_aton(SNOWFLAKE[0]))
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", PORT) + target + bytes(8)
    result = Ring().connect(stream.fileno(), address)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    stream.settimeout(PATIENCE)
    return knock(stream)


class Ring:
    """As much of io_uring as it takes to connect."""

    SETUP, ENTER = 425, 426
    CONNECT = 16
    GET_EVENTS = 1
    SUBMISSIONS, ENTRIES = 0, 0x10000000

    def __init__(self) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        parameters = ctypes.create_string_buffer(120)
        self._ring = self._call(self.SETUP, 1, parameters)
        if self._ring < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        # Offsets within the rings: of submissions after 40 bytes, of completions after 80.
        _, self._tail, _, _, _, _, self._array = struct.unpack_from("=7I", parameters, 40)
        _, _, _, _, _, self._completions = struct.unpack_from("=6I", parameters, 80)
        size = self._completions + 16 * 2
        self._rings = mmap.mmap(self._ring, max(size, self._array + 4), offset=self.SUBMISSIONS)
        self._entries = mmap.mmap(self._ring, 64, offset=self.ENTRIES)

    def connect(self, descriptor: int, address: bytes) -> int:
        """The result of one connect: zero, or an error with a minus before it."""
        kept = ctypes.create_string_buffer(address, len(address))
        entry = struct.pack("=BBHiQQ", self.CONNECT, 0, 0, descriptor, len(address), ctypes.addressof(kept))
        self._entries[: len(entry)] = entry
        self._rings[self._array : self._array + 4] = struct.pack("=I", 0)
        self._rings[self._tail : self._tail + 4] = struct.pack("=I", 1)
        if self._call(self.ENTER, self._ring, 1, 1, self.GET_EVENTS, None, 0) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        _, result, _ = struct.unpack_from("=QiI", self._rings, self._completions)
        return result


@way(ends="stopped", leads=False)
def a_namespace_of_its_own() -> str:
    """A child that moves into a new network namespace, which its parent then joins: neither has a listener yet."""
    script = """
import ctypes, fcntl, os, socket, struct, sys
sys.path.insert(0, sys.argv[1])
from bypass import tls, ways
libc = ctypes.CDLL(None, use_errno=True)
NEWUSER, NEWNET = 0x10000000, 0x40000000
if libc.unshare(NEWUSER | NEWNET) != 0:
    raise OSError(ctypes.get_errno(), "unshare")
home = os.open("/proc/self/ns/net", os.O_RDONLY)
if os.fork() == 0:
    if libc.setns(home, NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    with socket.socket() as probe:
        # The loopback device goes up.
        fcntl.ioctl(probe, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))
    print(tls.knock(ways.dial(ways.SNOWFLAKE)), flush=True)
    os._exit(0)
os.wait()
"""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, "-c", script, here], capture_output=True, text=True, timeout=30)
    if not done.stdout:
        raise OSError(done.stderr.strip().splitlines()[-1])
    return done.stdout.strip()


@way(**GUARDED)
def urgent_data() -> str:
    """An unknown address, with the hello sent as urgent data."""
    stream = dial(UNKNOWN.v4)
    stream.send(records(hello(HOST)), socket.MSG_OOB)
    return met(certificate_of(stream))

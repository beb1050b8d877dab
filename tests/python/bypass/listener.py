"""Ways by the agent's own listener."""

from __future__ import annotations

import socket

from .sockets import MSG_FASTOPEN
from .tls import knock
from .ways import LISTENER, PATIENCE, dial, way

PROBE = ("no_flow",)


@way(ends="refused", events=PROBE, leads=False)
def the_listener_itself() -> str:
    """Straight to the agent's port, with no redirect that would say who comes."""
    return knock(dial(LISTENER))


@way(ends="refused", events=PROBE, leads=False)
def the_listener_by_another_address() -> str:
    """The same by another loopback address, and over IPv6."""
    try:
        return knock(dial(("127.9.9.9", LISTENER[1])))
    except ConnectionRefusedError:
        return knock(dial(("::1", LISTENER[1])))


@way(ends="refused", events=PROBE, leads=False)
def the_listener_by_fast_open() -> str:
    """The same by TCP Fast Open."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.settimeout(PATIENCE)
    stream.sendto(b"\x16\x03\x01", MSG_FASTOPEN, LISTENER)
    return knock(stream)

"""What a way is, and where things are in the sandbox."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

Address = tuple[str, int]

HOST = os.environ.get("SNOWFLAKE_HOST", "acme.eu-west-1.snowflakecomputing.com")
FOREIGN = "www.example.com"
PORT = 443
# How long anybody is waited for.
PATIENCE = 4.0


class Refused(OSError):
    """The traveller was turned back, and this is what it was told."""


@dataclass(frozen=True)
class Way:
    """A way, and what is to become of who takes it."""

    go: Callable[[], str]
    # How it ends: at the "proxy", "refused", or anyhow but at Snowflake ("stopped").
    ends: str
    # Kinds of events of which one must be recorded; none: an ordinary connection.
    events: tuple[str, ...] = ()
    # Needs root, NET_ADMIN and NET_RAW.
    root: bool = False
    # How it ends in mode `all`, if otherwise; the events are of mode `endpoints` then.
    in_all: str = ""
    # Leads around mode `endpoints`; only mode `all` stops it.
    only_all: bool = False
    # In mode `all` the agent asks the server who it is, from the pod's own network.
    asked: bool = False
    # Would lead to Snowflake if there were no agent.
    leads: bool = True
    # Changes the pod's network, so that the pod is of no use to another way.
    alters: bool = False

    @property
    def name(self) -> str:
        return self.go.__name__

    @property
    def what(self) -> str:
        return " ".join((self.go.__doc__ or "").split())


# An address that nobody knows: the guard meets the name, and in mode `all` the agent takes the connection anyway.
GUARDED: dict[str, object] = {"ends": "refused", "events": ("name_guarded",), "in_all": "proxy"}
# What only mode `all` takes.
ONLY_ALL: dict[str, object] = {"ends": "proxy", "only_all": True}

WAYS: dict[str, Way] = {}


def way(**facts: object) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Makes a function a way."""

    def register(go: Callable[[], str]) -> Callable[[], str]:
        WAYS[go.__name__] = Way(go, **facts)  # type: ignore[arg-type]
        return go

    return register


def address_in(variable: str, default: str) -> Address:
    """The address and port that the environment names."""
    host, _, port = os.environ.get(variable, default).rpartition(":")
    return host.split("//")[-1].strip("[]"), int(port.split("/")[0])


SNOWFLAKE = address_in("SANDBOX_UPSTREAM", "10.77.1.2:443")
SNOWFLAKE6 = address_in("SANDBOX_UPSTREAM6", "[fd77:1::2]:443")
DNS = address_in("SANDBOX_DNS", "10.77.1.6:53")
DNS_OVER_HTTPS = address_in("SANDBOX_DNS_OVER_HTTPS", "https://10.77.1.6:8443/dns-query")
HTTP_PROXY = address_in("SANDBOX_HTTP_PROXY", "http://10.77.1.7:3128")
SOCKS_PROXY = address_in("SANDBOX_SOCKS_PROXY", "socks5h://10.77.1.7:1080")
GATEWAY = "10.77.2.1"
LISTENER = ("127.0.0.1", 15443)


@dataclass
class Unknown:
    """An address of Snowflake's that no way has used before; each way has its own."""

    number: int = 2
    _v4: str = field(default_factory=lambda: os.environ.get("SANDBOX_UNKNOWN", "10.77.3.0/24"))
    _v6: str = field(default_factory=lambda: os.environ.get("SANDBOX_UNKNOWN6", "fd77:3::/64"))

    @property
    def v4(self) -> Address:
        return str(ipaddress.ip_network(self._v4)[self.number]), PORT

    @property
    def v6(self) -> Address:
        return str(ipaddress.ip_network(self._v6)[int(str(self.number), 16)]), PORT

    @property
    def name(self) -> str:
        """What DNS calls it."""
        return f"pod-{self.number}.snowflakecomputing.com"


UNKNOWN = Unknown()


def dial(address: Address, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
    """An ordinary connection."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    stream = socket.socket(family, kind, protocol)
    stream.settimeout(PATIENCE)
    stream.connect(address)
    return stream

"""Ways by devices, addresses and routes that a pod with NET_ADMIN makes for itself. They change the pod's network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

from .packets import DROPPED, IPV4, NEIGHBOUR, gateways_address, own_address, put_on, segment
from .hellos import CUT
from .sockets import MSG_FASTOPEN
from .tls import certificate_of, hello, knock, met, records, say
from .ways import GATEWAY, GUARDED, PATIENCE, PORT, SNOWFLAKE, UNKNOWN, dial, way

# An address of nobody, which is translated to Snowflake's.
NOBODY = "203.0.113.7"
IP_TRANSPARENT = 19
# Where a packet is met that was translated.
MET = ("packet_dropped", "perimeter_dropped", "name_guarded")


def ip(*commands: str) -> None:
    """Runs `ip`, once for each command."""
    for command in commands:
        run(["ip", *command.split()])


def nft(rules: str) -> None:
    run(["nft", "-f", "-"], rules)


def run(command: list[str], given: str = "") -> None:
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


@way(ends="stopped", events=DROPPED, root=True, alters=True)
def macvlan() -> str:
    """A macvlan device on the pod's own, and a packet socket on that."""
    packet = segment(SNOWFLAKE)
    own = own_address(SNOWFLAKE)
    ip("link add second link eth0 type macvlan mode bridge", "link set second up")
    ip(f"address add {own}/32 dev second", f"route replace {GATEWAY}/32 dev second")
    return put_on("second", IPV4, [packet])


@way(ends="stopped", events=DROPPED, root=True, alters=True)
def veth() -> str:
    """A pair of devices that the pod makes, one end of which it bridges to its own device; a packet comes in at the other."""
    packet = segment(SNOWFLAKE)
    address, gateway = bridged()
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sender:
        # The devices take a moment until they carry anything.
        for _ in range(5):
            sender.sendto(packet, ("inner", IPV4, 0, 0, gateway))
            time.sleep(0.1)
    return f"sent from {address}"


def bridged() -> tuple[str, bytes]:
    """Moves the pod's device into a bridge with one end of a new pair. The pod's address, and its gateway's hardware's."""
    gateway = gateways_address()
    address = own_address(SNOWFLAKE)
    ip("link add bridge type bridge", "link add outer type veth peer name inner")
    ip("link set outer master bridge", "link set eth0 master bridge")
    ip("link set bridge up", "link set outer up", "link set inner up")
    return address, gateway


@way(ends="stopped", root=True, alters=True)
def a_namespace_behind_a_bridge() -> str:
    """A child in a network namespace of its own, which is bridged to the pod's device and has the pod's address."""
    address, _ = bridged()
    script = """
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x40000000) != 0:
    raise OSError(ctypes.get_errno(), "unshare")
# Root there is who this is here; without that, a program that is started has no rights.
for file, text in ("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1"):
    with open("/proc/self/" + file, "w") as setting:
        setting.write(text)
print("moved", flush=True)
sys.stdin.readline()
from bypass import devices, tls, ways
devices.ip("link set lo up", "link set inner up", f"address add {sys.argv[2]}/32 dev inner")
devices.ip(f"route add {ways.GATEWAY} dev inner", f"route add default via {ways.GATEWAY}")
print(tls.knock(ways.dial(ways.SNOWFLAKE)), flush=True)
"""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-c", script, here, address]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdin and child.stdout and child.stderr
    if child.stdout.readline() != "moved\n":
        raise OSError(child.stderr.read().strip().splitlines()[-1])
    ip(f"address del {address}/32 dev eth0", f"link set inner netns {child.pid}")
    said, complaint = child.communicate("go\n", timeout=30)
    if not said:
        raise OSError(complaint.strip().splitlines()[-1])
    return said.strip()


@way(ends="refused", events=MET, in_all="proxy", root=True, alters=True)
def translated_destination() -> str:
    """A rule of the pod's own that translates an address of nobody to Snowflake's, after connect()."""
    nft(f"""
table ip pod {{
  chain output {{
    type nat hook output priority -100;
    ip daddr {NOBODY} dnat to {SNOWFLAKE[0]}
  }}
}}
""")
    return knock(dial((NOBODY, PORT)))


@way(ends="refused", events=MET, in_all="proxy", root=True, alters=True)
def translated_to_an_unknown_address() -> str:
    """The same, to an address of Snowflake's that nobody knows."""
    nft(f"""
table ip pod {{
  chain output {{
    type nat hook output priority -100;
    ip daddr {NOBODY} dnat to {UNKNOWN.v4[0]}
  }}
}}
""")
    return knock(dial((NOBODY, PORT)))


@way(ends="refused", events=("packet_dropped",), root=True, only_all=True, alters=True)
def translated_from_loopback() -> str:
    """A rule that translates an address of the pod's own loopback, which nobody redirects; and a hello in two segments."""
    nft(f"""
table ip pod {{
  chain output {{
    type nat hook output priority -100;
    ip daddr 127.0.0.1 tcp dport 9 dnat to {UNKNOWN.v4[0]}:{PORT}
  }}
}}
""")
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.settimeout(PATIENCE)
    stream.bind((own_address(SNOWFLAKE), 0))
    stream.connect(("127.0.0.1", 9))
    whole = records(hello())
    return say(stream, whole[:CUT], whole[CUT:])


@way(ends="refused", root=True, alters=True)
def translated_listener() -> str:
    """A rule of the pod's own that leads what was redirected to the agent on to Snowflake."""
    nft(f"""
table ip pod {{
  chain output {{
    type nat hook output priority -100;
    ip daddr 127.0.0.1 tcp dport 15443 dnat to {SNOWFLAKE[0]}:{PORT}
  }}
  chain leave {{
    type nat hook postrouting priority 100;
    oifname "eth0" masquerade
  }}
}}
""")
    return knock(dial(SNOWFLAKE))


@way(ends="stopped", events=("perimeter_dropped",), in_all="proxy", root=True, alters=True)
def rewritten_at_the_device() -> str:
    """A rule at the pod's device, behind every hook for sockets, that writes Snowflake's address over another."""
    nft(f"""
table netdev pod {{
  chain leave {{
    type filter hook egress device eth0 priority 0;
    ip daddr {NOBODY} ip daddr set {SNOWFLAKE[0]}
  }}
  chain enter {{
    type filter hook ingress device eth0 priority 0;
    ip saddr {SNOWFLAKE[0]} ip saddr set {NOBODY}
  }}
}}
""")
    return knock(dial((NOBODY, PORT)))


@way(**GUARDED, root=True, alters=True)
def transparent_proxy() -> str:
    """A transparent proxy in the pod (TPROXY and a route of its own), which takes a connection and dials Snowflake."""
    ip("rule add fwmark 7 lookup 107", "route add local default dev lo table 107")
    nft(f"""
table ip pod {{
  chain output {{
    type route hook output priority -150;
    ip daddr {NOBODY} tcp dport {PORT} meta mark set 7
  }}
  chain enter {{
    type filter hook prerouting priority -150;
    ip daddr {NOBODY} tcp dport {PORT} tproxy to 127.0.0.1:16000 meta mark set 7
  }}
}}
""")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    listener.bind(("127.0.0.1", 16000))
    listener.listen()

    def relay() -> None:
        taken, _ = listener.accept()
        onward = dial(SNOWFLAKE)
        threading.Thread(target=copy, args=(onward, taken), daemon=True).start()
        copy(taken, onward)

    threading.Thread(target=relay, daemon=True).start()
    return knock(dial((NOBODY, PORT)))


def copy(source: socket.socket, to: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            to.sendall(data)
    except OSError:
        pass


@way(ends="stopped", root=True)
def transparent_source() -> str:
    """A socket with an address that is not the pod's (IP_TRANSPARENT), which says all it has to in its first packet."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    stream.settimeout(PATIENCE)
    stream.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    stream.bind((NEIGHBOUR, 0))
    stream.sendto(records(hello()), MSG_FASTOPEN, SNOWFLAKE)
    return met(certificate_of(stream))


@way(ends="stopped", root=True, alters=True)
def routes_before_loopback() -> str:
    """Rules by which even the loopback network is sent out of the pod's device, instead of to the agent."""
    ip(f"route add 127.0.0.0/8 via {GATEWAY} dev eth0 onlink table 107", "rule add pref 1 lookup 107")
    ip("rule add pref 2 lookup local", "rule del pref 0")
    return knock(dial(SNOWFLAKE))

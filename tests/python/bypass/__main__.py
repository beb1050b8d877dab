"""Lists ways, and tries them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime, timezone

from . import addresses, datagrams, devices, hellos, listener, names, packets, requests, sockets, tunnels  # noqa: F401
from .ways import UNKNOWN, WAYS, Way


def listing() -> None:
    """All ways, a JSON object a line."""
    for way in WAYS.values():
        facts = {key: value for key, value in vars(way).items() if key != "go"}
        texts = {key: value for key, value in facts.items() if not isinstance(value, bool)}
        true = [key for key, value in facts.items() if value is True]
        print(json.dumps({"name": way.name, "what": way.what, **texts, "is": true}))


def attempt(way: Way, pause: float) -> dict[str, object]:
    """Takes a way to its end."""
    began = now()
    try:
        end, detail = way.go(), ""
    except (OSError, EOFError) as error:
        # Also what `ways.Refused` says, and every failure of TLS.
        end, detail = "refused", f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001
        end, detail = "impossible", f"{type(error).__name__}: {error}"
    facts = {"name": way.name, "end": end, "detail": detail, "number": UNKNOWN.number}
    # What it causes, and what is written down of it, comes before the next begins.
    time.sleep(pause)
    return {**facts, "began": began, "ended": now()}


def now() -> str:
    """The time, as the logs have it."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(prog="bypass", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="print what there is, a JSON object a line")
    run = commands.add_parser("run", help="try some ways")
    run.add_argument("--number", type=int, default=2, help="the first of the unknown addresses to use, 2 to 254")
    run.add_argument("--pause", type=float, default=0.2, help="seconds after each")
    run.add_argument("ways", nargs="+", metavar="NAME", choices=WAYS)
    options = parser.parse_args()
    if options.command != "run":
        return listing()
    for number, name in enumerate(options.ways, options.number):
        UNKNOWN.number = number
        print(json.dumps(attempt(WAYS[name], options.pause)), flush=True)
    sys.stdout.flush()
    return None


if __name__ == "__main__":
    main()

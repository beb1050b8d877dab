"""Tries scenarios one by one, and prints a JSON line for each: its name, and ✓ or the reason why not."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Trial = Callable[[], None]
TRIALS: dict[str, Trial] = {}

# So many rows that most of them are in parts. `LARGE_SUMS` is what has come when all of them have.
LARGE = "select seq4() as n, 'row ' || seq4() as t from table(generator(rowcount => 90000))"
LARGE_SUMS = (90_000, 90_000, 4_049_955_000)
UNICODE = "Zoë 🦊 李小龙 مريم e\u0301 '\"\\"
REFUSED = "drop table customers"
# Of every refusal by the agent.
REFUSAL_CODE = 3001
REFUSAL_STATE = "42501"


class Cannot(Exception):
    """The client by its nature, or the emulated Snowflake, has no such thing."""


def scenario(name: str) -> Callable[[Trial], Trial]:
    """Has a function tried as a scenario."""

    def keep(trial: Trial) -> Trial:
        TRIALS[name] = trial
        return trial

    return keep


def cannot(name: str, reason: str) -> None:
    """A scenario that there is none of, and why."""

    def trial() -> None:
        raise Cannot(reason)

    TRIALS[name] = trial


def of_one_session(rows: Callable[[str], list[Any]]) -> None:
    """What goes on in a session, for a client whose rows are tuples."""

    @scenario("going on after a refusal")
    def _() -> None:
        same(rows("select count(*) from customers"), [(300,)])

    @scenario("the session is renewed")
    def _() -> None:
        session = rows("select current_session()")
        please("expire")
        same(rows("select current_session()"), session)

    @scenario("the agent restarts")
    def _() -> None:
        rows("create temporary table mine (id int)")
        please("restart")
        rows("insert into mine values (1)")
        same(rows("select id from mine"), [(1,)])


def try_all(client: str) -> None:
    """Tries every scenario in the order of the program."""
    say(client=client)
    for name, trial in TRIALS.items():
        try:
            trial()
            say(scenario=name, outcome="✓")
        except Cannot as reason:
            say(scenario=name, outcome=str(reason))
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[1].lineno
            say(scenario=name, failure=f"line {line}: {type(error).__name__}: {error}")
    # Threads of a driver that are left over keep nobody waiting.
    os._exit(0)


def say(**facts: str) -> None:
    """One line."""
    print(json.dumps(facts, ensure_ascii=False), flush=True)


def same(got: Any, wanted: Any) -> None:
    """Compares, values and types."""
    if got != wanted or type(got) is not type(wanted):
        raise AssertionError(f"{got!r} is not {wanted!r}")


def says(text: str, *words: str) -> None:
    """Each of the words is in the text."""
    for word in words:
        if word not in text:
            raise AssertionError(f"{word!r} is not in {text!r}")


def error_of(kind: type[Exception], action: Callable[[], Any]) -> Any:
    """The error that the action ends in, which is of this very class."""
    try:
        got = action()
    except Exception as error:
        if type(error) is not kind:
            raise
        return error
    raise AssertionError(f"no {kind.__name__}, but {got!r}")


def sums(rows: list[Any]) -> tuple[int, int, int]:
    """Of the rows of `LARGE`: how many, how many different ones, and the sum of their numbers."""
    numbers = [int(row[0]) for row in rows]
    same([row[1] for row in rows[70_000:70_010]], [f"row {number}" for number in numbers[70_000:70_010]])
    return len(rows), len(set(numbers)), sum(numbers)


def please(wish: str) -> None:
    """Has the test do something: `expire` the sessions at Snowflake, or `restart` the agent."""
    file = Path.home() / "please"
    draft = file.with_suffix(".draft")
    draft.write_text(wish)
    draft.rename(file)
    wait_until(lambda: not file.exists())


def wait_until(holds: Callable[[], Any]) -> None:
    """Waits until something holds."""
    until = time.monotonic() + 60
    while not holds():
        if time.monotonic() > until:
            raise AssertionError("not within a minute")
        time.sleep(0.05)


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Does the work for each number, all at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))

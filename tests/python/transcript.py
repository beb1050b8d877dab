"""Replays what a driver says, byte for byte as far as it is known, and compares what it is told and what Snowflake sees.

    python transcript.py transcripts/jdbc/refusal.json

A transcript is JSON: what it `tells`, the facts that it `rests on`, its `steps`, what of it `arrives` at Snowflake, and
what the journal `records`, which is for others to compare. Its folder's `driver.json` has the requests of the driver, each
with its own facts. A step does one of them:

    {"do": "query",                          the request, by its name
     "with": {"sql": "select 1"},            placeholders of its own; `<sql>` in the request becomes this
     "answer": {"data.rowset": [["1"]]},     what the answer must have; `status` is 200 and `header.<name>` a header
     "keep": {"query": "data.queryId"},      placeholders for later steps
     "until": {"data.getResultUrl": null},   repeats the step until the answer has this
     "aside": "slow"}                        sends it and goes on; {"end of": "slow", "answer": …} waits for the answer

A request may be `like` another, of which it has what it does not say itself. `{"ask": "expire"}` asks who runs this to end the session tokens at Snowflake. A value that begins with `~` is a regular
expression, of which a part of the text must be; null is null or nothing at all.

Other placeholders: `<new id>`, `<now>` in milliseconds, `<count>` of the requests with it, `<length>` of the body, and what
the environment says by SNOWFLAKE_TOKEN, SNOWFLAKE_HOST and so on. A header `*: <name>` stands for all headers that were
kept under the name.

The `json` of a request goes out without spaces, or as its `body` says: `gzip`, or `indented` as cJSON does it.
What is no JSON is described: by its `length`, its `text`, what it `begins` with, and its `rows` where it is part of a result.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import select
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PLACEHOLDER = re.compile(r"<([a-z][a-z_ ]*)>")
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I)
# Where the requests to the account are in the emulated Snowflake's log, and whose they are.
LOG, HOST = "SANDBOX_UPSTREAM_LOG", "SNOWFLAKE_HOST"
PATIENCE = 90
PAUSE = 0.3


class Otherwise(Exception):
    """Something is not as the transcript says."""


def compare(place: str, expected: Any, found: Any) -> None:
    """Raises where something is not as expected."""
    if isinstance(expected, str) and expected.startswith("~"):
        same = found is not None and re.search(expected[1:], str(found)) is not None
    else:
        same = found == expected
    if not same:
        raise Otherwise(f"{place} is {str(found)[:300]!r}, not {expected!r}")


def find(value: Any, path: str) -> Any:
    """What is at a path such as `data.chunks.0.url`; None where there is nothing."""
    for name in path.split("."):
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        is_json = "json" in self.headers.get("content-type", "") and body
        self.body: Any = json.loads(body) if is_json else described(body)

    def at(self, path: str) -> Any:
        """The status, a header, or what is there in the body."""
        if path == "status":
            return self.status
        if path.startswith("header."):
            return self.headers.get(path.removeprefix("header."))
        return find(self.body, path)

    def check(self, expected: dict[str, Any]) -> None:
        """Compares it with what is expected."""
        for path, value in ({"status": 200} | expected).items():
            try:
                compare(path, value, self.at(path))
            except Otherwise as otherwise:
                raise Otherwise(f"{otherwise}; all of it: {str(self.body)[:600]}") from None

    def has(self, expected: dict[str, Any]) -> bool:
        """Whether it is as expected."""
        try:
            self.check(expected)
        except Otherwise:
            return False
        return True


def described(body: bytes) -> dict[str, Any]:
    """What is to be said of a body that is no JSON. A part of a result is rows without the brackets around them."""
    text = body.decode("utf-8", "replace")
    try:
        rows: Any = len(json.loads(f"[{text}]")) if text.startswith("[") else None
    except ValueError:
        rows = None
    return {"length": len(body), "text": text, "begins": body[:4].hex(), "rows": rows}


class Player:
    """Plays a transcript against the account."""

    def __init__(self, folder: Path) -> None:
        driver = json.loads((folder / "driver.json").read_text())
        self._requests: dict[str, Any] = driver["requests"]
        self._always: dict[str, Any] = driver["with"]
        self._kept: dict[str, Any] = {}
        self._count = 0
        self._trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        self._connection: http.client.HTTPSConnection | None = None
        self._aside: dict[str, tuple[threading.Thread, list[Any]]] = {}

    def play(self, step: dict[str, Any]) -> None:
        """Takes one step."""
        if "ask" in step:
            ask(step["ask"])
            return
        if "end of" in step:
            thread, ended = self._aside.pop(step["end of"])
            thread.join(PATIENCE)
            if not ended:
                raise Otherwise("there is no answer")
            answer = ended[0]
        else:
            parts = self._written(step)
            if name := step.get("aside"):
                self._send_aside(name, parts)
                return
            answer = self._send(parts)
            until = time.monotonic() + PATIENCE
            while "until" in step and not answer.has(step["until"]) and time.monotonic() < until:
                time.sleep(PAUSE)
                answer = self._send(self._written(step))
        answer.check(step.get("until", {}) | step.get("answer", {}))
        for name, path in step.get("keep", {}).items():
            self._kept[name] = answer.at(path)
            if self._kept[name] is None:
                raise Otherwise(f"there is no {path} to keep: {str(answer.body)[:600]}")

    def _written(self, step: dict[str, Any]) -> tuple[str, str, list[tuple[str, str]], bytes | None]:
        """A request as it goes out."""
        request = self._request(step["do"])
        kept = self._filled(self._always, {}) | self._kept
        kept |= self._filled(step.get("with", {}), kept)
        method, target = self._filled(request["send"], kept).split(" ", 1)
        body = self._body(request, kept)
        headers = list(self._headers(request["headers"], kept | {"length": str(len(body or b""))}))
        if target.startswith("https://"):
            url = urlsplit(target)
            compare("the host of the address", os.environ[HOST], url.hostname)
            target = url.path + (f"?{url.query}" if url.query else "")
        return method, target, headers, body

    def _request(self, name: str) -> dict[str, Any]:
        """A request, with what it has of the one that it is like."""
        request = self._requests[name]
        if "like" not in request:
            return request
        model = self._request(request["like"])
        return model | request | {"json": model["json"] | request.get("json", {})}

    def _headers(self, lines: list[str], kept: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for line in lines:
            name, value = line.split(":", 1)
            if name == "*":
                yield from kept[value.strip(" <>")].items()
            else:
                yield name, self._filled(value.removeprefix(" "), kept)

    def _body(self, request: dict[str, Any], kept: dict[str, Any]) -> bytes | None:
        form = request.get("body")
        if "text" in request:
            return str(self._filled(request["text"], kept)).encode()
        if "json" not in request:
            return None
        value = self._filled(request["json"], kept)
        if form == "indented":
            return json.dumps(value, indent="\t", separators=(",", ":\t"), ensure_ascii=False).encode()
        body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        return gzip.compress(body) if form == "gzip" else body

    def _filled(self, value: Any, kept: dict[str, Any]) -> Any:
        """A value with what its placeholders stand for."""
        if isinstance(value, dict):
            return {name: self._filled(item, kept) for name, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item, kept) for item in value]
        if not isinstance(value, str):
            return value
        if whole := PLACEHOLDER.fullmatch(value):
            return self._meant(whole[1], kept)
        return PLACEHOLDER.sub(lambda match: str(self._meant(match[1], kept)), value)

    def _meant(self, name: str, kept: dict[str, Any]) -> Any:
        if name in kept:
            return kept[name]
        if name == "new id":
            return str(uuid.uuid4())
        if name == "now":
            return int(time.time() * 1000)
        if name == "count":
            self._count += 1
            return self._count
        variable = f"SNOWFLAKE_{name.upper()}"
        if variable not in os.environ:
            raise Otherwise(f"nobody knows what <{name}> is")
        return os.environ[variable]

    def _send_aside(self, name: str, parts: Any) -> None:
        ended: list[Any] = []
        connection = self._connect()
        thread = threading.Thread(target=lambda: ended.append(exchange(connection, *parts)), daemon=True)
        self._aside[name] = (thread, ended)
        thread.start()

    def _send(self, parts: Any) -> Answer:
        """Over the connection that is open, as every driver does; over a new one where it was closed meanwhile.

        What may have arrived is not sent again: it would be on record twice.
        """
        if self._connection is None or was_closed(self._connection):
            if self._connection is not None:
                self._connection.close()
            self._connection = self._connect()
        return exchange(self._connection, *parts)

    def _connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(os.environ[HOST], context=self._trust, timeout=PATIENCE)


def was_closed(connection: http.client.HTTPSConnection) -> bool:
    """Whether something has come that nobody has asked for, as the end of a connection does."""
    return connection.sock is not None and bool(select.select([connection.sock], [], [], 0)[0])


def exchange(
    connection: http.client.HTTPSConnection,
    method: str,
    target: str,
    headers: list[tuple[str, str]],
    body: bytes | None,
) -> Answer:
    """Sends a request with these headers and no others, in their order and spelling."""
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    chunked = any(name.lower() == "transfer-encoding" for name, _ in headers)
    connection.endheaders(body, encode_chunked=chunked)
    answer = connection.getresponse()
    return Answer(answer.status, answer.getheaders(), answer.read())


def ask(wish: str) -> None:
    """Asks who runs this for something, and waits until it is done."""
    path = Path(os.environ["HOME"]) / "please"
    path.write_text(wish)
    until = time.monotonic() + PATIENCE
    while path.exists():
        if time.monotonic() > until:
            raise Otherwise(f"nobody does what is asked for: {wish}")
        time.sleep(PAUSE)


def arrivals(log: Path, begin: int) -> list[dict[str, Any]]:
    """The requests to the account since the log was so long, each as one line too; what is asked again counts once."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [json.loads(line) for line in file]
    arrived: list[dict[str, Any]] = []
    for line in lines:
        host = line.get("headers", {}).get("host", "").removesuffix(":443")
        if line["event"] != "request" or host != os.environ[HOST]:
            continue
        line["line"] = ID.sub("<id>", f"{line['method']} {line['path']} {line.get('sql') or ''}").strip()
        is_asked_again = line["method"] == "GET" or line["path"].endswith("/abort-request")
        if not (is_asked_again and arrived and arrived[-1]["line"] == line["line"]):
            arrived.append(line)
    return arrived


def check_arrivals(expected: list[Any], arrived: list[dict[str, Any]]) -> None:
    """Compares what arrived at Snowflake: lines, or lines with what else must be there."""
    wanted = [item if isinstance(item, dict) else {"line": item} for item in expected]
    if len(wanted) != len(arrived):
        raise Otherwise(f"{[item['line'] for item in arrived]} arrived")
    for item, found in zip(wanted, arrived):
        for path, value in item.items():
            compare(f"{item['line']}: {path}", value, find(found, path))


def main() -> None:
    """Plays the transcript that is named."""
    path = Path(sys.argv[1])
    transcript = json.loads(path.read_text())
    log = Path(os.environ[LOG])
    begin = log.stat().st_size
    player = Player(path.parent)
    try:
        for number, step in enumerate(transcript["steps"], 1):
            try:
                player.play(step)
            except Otherwise as otherwise:
                raise Otherwise(f"step {number}, {step.get('do') or step}: {otherwise}") from None
        check_arrivals(transcript["arrives"], arrivals(log, begin))
    except Otherwise as otherwise:
        sys.exit(f"{path.parent.name}/{path.name}: {otherwise}")


if __name__ == "__main__":
    main()

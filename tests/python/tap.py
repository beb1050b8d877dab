"""Between a driver and a server: ends the TLS of each, changes nothing, and keeps what was asked and every byte of the
answers.

`tap.py LISTEN SERVER NAME CA CERTIFICATE KEY EXCHANGES PROGRAM…` listens at one address for the server at another one, whose
name and CA follow, and shows a certificate of its own for as long as the program runs. What was answered is in the file
EXCHANGES then, a line of JSON each.
"""

from __future__ import annotations

import base64
import io
import json
import select
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

PORT = 443
# So much is read at a time.
PIECE = 65536

listen, server, name, authority, certificate, key, file, *program = sys.argv[1:]
ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
ours.load_cert_chain(certificate, key)
theirs = ssl.create_default_context(cafile=authority)
connections: list[threading.Thread] = []
exchanges: list[dict[str, Any]] = []


def accept(listener: socket.socket) -> None:
    while True:
        thread = threading.Thread(target=connection, args=(listener.accept()[0],))
        connections.append(thread)
        thread.start()


def connection(plain: socket.socket) -> None:
    asked, answered = io.BytesIO(), io.BytesIO()
    try:
        with ours.wrap_socket(plain, server_side=True) as client:
            with theirs.wrap_socket(socket.create_connection((server, PORT)), server_hostname=name) as upstream:
                carry(client, upstream, asked, answered)
    except OSError as error:
        print(f"a connection ended: {error!r}", file=sys.stderr)
    asked.seek(0)
    answered.seek(0)
    while (request := message(asked)) and (answer := message(answered)):
        method, target, _ = request[0].split(" ", 2)
        first, headers, body = answer
        status, text = int(first.split(" ")[1]), base64.b64encode(body).decode()
        exchanges.append({"method": method, "target": target, "status": status, "headers": headers, "body": text})


def carry(client: ssl.SSLSocket, upstream: ssl.SSLSocket, asked: IO[bytes], answered: IO[bytes]) -> None:
    """Until one of them leaves."""
    ways = {client: (upstream, asked), upstream: (client, answered)}
    while True:
        for source in select.select(ways, [], [])[0]:
            to, seen = ways[source]
            source.setblocking(False)
            try:
                while piece := source.recv(PIECE):
                    seen.write(piece)
                    to.setblocking(True)
                    to.sendall(piece)
                return
            except ssl.SSLWantReadError:
                pass


def message(stream: IO[bytes]) -> tuple[str, list[tuple[str, str]], bytes] | None:
    """First line, headers and body of the next one, if all of it is there."""
    if not (first := stream.readline().decode().strip()):
        return None
    lines = iter(lambda: stream.readline().decode().strip(), "")
    headers = [(field.lower(), value.strip()) for field, _, value in (line.partition(":") for line in lines)]
    of = dict(headers)
    if of.get("transfer-encoding") != "chunked":
        length = int(of.get("content-length", 0))
        body = stream.read(length)
        return (first, headers, body) if len(body) == length else None
    body = b""
    while size := int(stream.readline() or b"0", 16):
        body += stream.read(size)
        stream.readline()
    return (first, headers, body) if stream.readline() else None


threading.Thread(target=accept, args=(socket.create_server((listen, PORT)),), daemon=True).start()
status = subprocess.run(program, check=False).returncode
for each in connections:
    each.join()
Path(file).write_text("".join(json.dumps(exchange) + "\n" for exchange in exchanges))
sys.exit(status)

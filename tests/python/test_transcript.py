"""The player of transcripts: how it takes the end of its connection."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import tempfile
import threading
import unittest
from pathlib import Path
from unittest import mock

import fixtures
from transcript import Player

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
DRIVER = {"with": {}, "requests": {"part": {"send": "GET /part", "headers": ["Host: localhost"]}}}


class Connections(unittest.TestCase):
    """A server answers the first request of each connection, and closes it: at once where it `closes`, or else when it is
    asked again."""

    def setUp(self) -> None:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        fixtures.make_certificates(folder)
        (folder / "driver.json").write_text(json.dumps(DRIVER))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.listener = self.enterContext(socket.create_server(("127.0.0.1", 0)))
        self.requests, self.closes, self.closed = 0, False, threading.Event()
        threading.Thread(target=self.serve, daemon=True).start()
        host = f"{fixtures.HOST}:{self.listener.getsockname()[1]}"
        environment = {"SNOWFLAKE_HOST": host, "SSL_CERT_FILE": str(folder / "ca.pem")}
        self.enterContext(mock.patch.dict(os.environ, environment))
        self.player = Player(folder)

    def serve(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            with self.context.wrap_socket(plain, server_side=True) as stream:
                self.take(stream)
                stream.sendall(ANSWER)
                if not self.closes:
                    self.take(stream)
            self.closed.set()

    def take(self, stream: ssl.SSLSocket) -> None:
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            if not (piece := stream.recv(65536)):
                return
            asked += piece
        self.requests += 1

    def test_a_closed_connection_is_left_for_another_one(self) -> None:
        self.closes = True
        for _ in range(3):
            self.player.play({"do": "part"})
            self.assertTrue(self.closed.wait(fixtures.ALL_SECONDS))
            self.closed.clear()
        self.assertEqual(self.requests, 3)

    def test_what_may_have_arrived_is_not_sent_again(self) -> None:
        self.player.play({"do": "part"})
        with self.assertRaises(http.client.RemoteDisconnected):
            self.player.play({"do": "part"})
        self.assertEqual(self.requests, 2)


if __name__ == "__main__":
    unittest.main()

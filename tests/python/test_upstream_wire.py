"""What arrives at the emulated Snowflake's sockets: all of it is logged, and nothing of it does harm."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import fixtures
from fixtures import HOST, Upstream, UpstreamCase


class Wire(UpstreamCase):
    def tls(self, name: str | None = HOST) -> ssl.SSLSocket:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", self.upstream.port), timeout=fixtures.ALL_SECONDS)
        return context.wrap_socket(plain, server_hostname=name)

    def test_every_kind_of_arrival_is_logged(self) -> None:
        before = len(self.upstream.lines())
        socket.create_connection(("127.0.0.1", self.upstream.port)).close()
        with self.tls("silent.example"):
            pass
        with self.tls("garbage.example") as garbage:
            garbage.sendall(b"\x16\x03garbage\r\n\r\n")
            garbage.recv(1000)
        with self.upstream.client() as client:
            self.assertEqual(client.raw("POST", "/api/files?x=1", b'{"name":"drop it"}')[0], 404)
            self.assertEqual(client.raw("GET", "/session/v1/login-request")[0], 405)
            self.assertEqual(client.raw("GET", "/elsewhere", host="other.example")[0], 404)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            lines = self.upstream.lines()[before:]
            if {line["event"] for line in lines} == {"connection", "silent", "malformed", "request"}:
                break
            time.sleep(0.05)
        self.assertEqual(sum(line["event"] == "connection" for line in lines), 4)
        self.assertIn(("silent", "silent.example"), [(line["event"], line["sni"]) for line in lines])
        self.assertIn(("malformed", "garbage.example"), [(line["event"], line["sni"]) for line in lines])
        statement, method, host = (line for line in lines if line["event"] == "request")
        self.assertEqual((statement["path"], statement["query"]), ("/api/files", "x=1"))
        self.assertEqual(statement["status"], 404)
        self.assertEqual(statement["body"], {"name": "drop it"})
        self.assertEqual((method["status"], host["status"]), (405, 404))
        self.assertTrue(statement["peer"].startswith("127.0.0.1:") or statement["peer"].startswith("[::1]:"))
        self.assertEqual(statement["local"].rpartition(":")[2], str(self.upstream.port))
        self.assertEqual(host["headers"]["host"], "other.example")

    def test_refused_statements_are_logged_as_not_executed(self) -> None:
        with self.upstream.client() as client:
            client.token = "eyJ.a.clients.own.token"
            client.query("drop table orders")
        line = self.upstream.lines()[-1]
        self.assertEqual((line["sql"], line["executed"], line["user"]), ("drop table orders", False, None))
        self.assertIn(client.token, line["headers"]["authorization"])

    def test_malformed_input_gets_an_answer(self) -> None:
        bomb = gzip.compress(bytes(80 * 1024 * 1024))
        path = "/queries/v1/query-request?requestId=x"
        with self.session() as client:
            for body, status in (
                (b"", 400),
                (b"{", 400),
                (b"[" * 100_000, 400),
                (b"[]", 400),
                (b"\xff\xfe", 400),
                (b"{}", 400),
                (b'{"sqlText": 7}', 400),
                (b"\x1f\x8bnot gzip", 400),
                (gzip.compress(b'{"sqlText": "select 1"}')[:-9], 400),
                (bomb, 413),
            ):
                self.assertEqual(client.raw("POST", path, body)[0], status, body[:20])
            oddities: list[dict[str, Any]] = [
                {"parameters": 7},
                {"parameters": {"MULTI_STATEMENT_COUNT": []}},
                {"bindings": 7},
                {"bindings": {"1": 2}},
            ]
            for odd in oddities:
                body = json.dumps({"sqlText": "select ?", **odd}).encode()
                self.assertEqual(client.raw("POST", path, body)[0], 200, odd)
            for login in (b"{}", b'{"data": 1}', b"7"):
                self.assertEqual(client.raw("POST", "/session/v1/login-request", login)[0], 400)
            self.assert_refused(client.login(7, ["x"], AUTHENTICATOR={}), "390100")  # type: ignore[arg-type]
            self.assert_refused(client.login(AUTHENTICATOR="SNOWFLAKE_JWT", TOKEN="a.b.c"), "390144")
            self.assertEqual(client.rows("select 1"), [["1"]])

    def test_bodies_and_answers_may_be_compressed(self) -> None:
        with self.session() as client:
            body = gzip.compress(b'{"sqlText": "select * from orders"}')
            status, answer = client.raw("POST", "/queries/v1/query-request", body, accept_encoding="gzip")
            self.assertEqual((status, answer[:2]), (200, b"\x1f\x8b"))
            self.assertEqual(json.loads(gzip.decompress(answer))["data"]["total"], 5000)
        self.assertEqual(self.upstream.lines()[-1]["sql"], "select * from orders")

    def test_a_megabyte_of_sql(self) -> None:
        with self.session() as client:
            text = "x" * 1_000_000
            self.assertEqual(client.rows(f"select length('{text}')"), [["1000000"]])
            self.assertEqual(len(self.upstream.statements()[-1]), 1_000_017)

    def test_telemetry_is_taken(self) -> None:
        with self.session() as client:
            self.assertTrue(client.call("POST", "/telemetry/send", {"logs": []})["success"])
            client.token = None
            self.assertTrue(client.call("POST", "/telemetry/send/sessionless", {"logs": []})["success"])

    def test_every_address_is_served(self) -> None:
        port = int(self.upstream.program.ready["listen"][1].rpartition(":")[2])
        connection = socket.create_connection(("::1", port), timeout=fixtures.ALL_SECONDS)
        with self.upstream.trust.wrap_socket(connection, server_hostname=HOST) as tls:
            tls.sendall(b"POST /telemetry/send/sessionless HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
            self.assertTrue(tls.recv(100).startswith(b"HTTP/1.1 200"))
        self.assertEqual(self.upstream.lines()[-1]["local"], f"[::1]:{port}")


class Starting(unittest.TestCase):
    def test_problems_are_one_line_and_signals_end_it_cleanly(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            upstream = Upstream(Path(folder))
            self.addCleanup(lambda: upstream.program.process.poll() is None and upstream.program.stop())
            address = f"127.0.0.1:{upstream.port}"
            taken = fixtures.run("upstream.py", *upstream.arguments(address))
            self.assertEqual(taken.returncode, 1)
            self.assertEqual(taken.stderr, f"error: cannot listen on {address}: Address already in use\n")
            self.assertEqual(taken.stdout, "")
            with upstream.client() as client:
                client.login()
                self.assertEqual(upstream.program.stop(), 0)
            (Path(folder) / "credentials.json").write_text('{"A": {"pasword": "x"}}')
            wrong = fixtures.run("upstream.py", *upstream.arguments("127.0.0.1:0"))
            self.assertEqual((wrong.returncode, wrong.stderr.count("\n")), (1, 1))
            self.assertIn("A.pasword", wrong.stderr)


if __name__ == "__main__":
    unittest.main()

"""The DNS server and the CONNECT proxy, each over real sockets."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import struct
import tempfile
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fixtures
from fixtures import Program

A, AAAA, TXT = 1, 28, 16


def question(name: str, kind: int, identifier: int = 7, class_: int = 1) -> bytes:
    """A query as a stub resolver sends it."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", identifier, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, class_)


def read(reply: bytes, query: bytes) -> tuple[int, list[str]]:
    """The reply's code and addresses, after checking that it belongs to the query."""
    identifier, flags, questions, answers, _, _ = struct.unpack_from("!HHHHHH", reply)
    assert identifier == struct.unpack_from("!H", query)[0] and flags & 0x8000
    assert reply[12 : len(query)] == query[12:] and questions == 1
    position = len(query)
    addresses = []
    for _ in range(answers):
        pointer, _, _, ttl, length = struct.unpack_from("!HHHIH", reply, position)
        assert (pointer, ttl) == (0xC00C, 3)
        position += 12
        addresses.append(str(ipaddress.ip_address(reply[position : position + length])))
        position += length
    assert position == len(reply)
    return flags & 0xF, addresses


class Dns(unittest.TestCase):
    program: ClassVar[Program]
    folder: ClassVar[tempfile.TemporaryDirectory[str]]

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        many = "many.example=" + ",".join(f"10.9.0.{number}" for number in range(1, 60))
        records = ("Acme.Example=10.1.2.3,fd00::1", "acme.example=10.1.2.4", "only4.example=10.1.2.5", many)
        words = [word for record in records for word in ("--record", record)]
        cls.program = fixtures.start(
            "dns.py", "--listen", "127.0.0.1:0", "--ttl", "3", *words, log=Path(cls.folder.name, "log")
        )

    @classmethod
    def tearDownClass(cls) -> None:
        cls.program.stop()
        cls.folder.cleanup()

    def udp(self, message: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(2)
            # Datagrams may get lost, so a resolver asks again.
            for _ in range(3):
                client.sendto(message, ("127.0.0.1", self.program.port))
                with contextlib.suppress(TimeoutError):
                    return client.recv(4096)
        raise TimeoutError("no answer to three queries")

    def tcp(self, *messages: bytes) -> list[bytes]:
        with socket.create_connection(("127.0.0.1", self.program.port), timeout=5) as client:
            client.sendall(b"".join(struct.pack("!H", len(message)) + message for message in messages))
            with client.makefile("rb") as stream:
                return [stream.read(struct.unpack("!H", stream.read(2))[0]) for _ in messages]

    def test_answers(self) -> None:
        for name, kind, expected in (
            ("acme.example", A, (0, ["10.1.2.3", "10.1.2.4"])),
            ("aCmE.eXaMpLe", A, (0, ["10.1.2.3", "10.1.2.4"])),
            ("acme.example", AAAA, (0, ["fd00::1"])),
            ("acme.example", TXT, (0, [])),
            ("only4.example", AAAA, (0, [])),
            ("example", A, (0, [])),
            ("other.example", A, (3, [])),
            ("xacme.example", A, (3, [])),
        ):
            query = question(name, kind)
            self.assertEqual(read(self.udp(query), query), expected, name)
            self.assertEqual(read(self.tcp(query)[0], query), expected, name)

    def test_several_queries_on_one_connection(self) -> None:
        queries = [question("acme.example", A, 1), question("nope", A, 2)]
        replies = self.tcp(*queries)
        self.assertEqual([read(*pair)[0] for pair in zip(replies, queries)], [0, 3])

    def test_what_does_not_fit_a_datagram_is_cut_off_and_comes_by_tcp(self) -> None:
        query = question("many.example", A)
        reply = self.udp(query)
        self.assertTrue(reply[2] & 0x02)
        self.assertLessEqual(len(reply), 512)
        self.assertEqual(len(read(self.tcp(query)[0], query)[1]), 59)

    def test_malformed_queries_do_no_harm(self) -> None:
        source = random.Random(1)
        good = question("acme.example", A)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(500):
                data = bytearray(good[: source.randint(0, len(good))])
                for _ in range(source.randint(0, 4)):
                    if data:
                        data[source.randrange(len(data))] = source.randrange(256)
                client.sendto(data, ("127.0.0.1", self.program.port))
        self.assertEqual(self.udp(good[:20])[3] & 0xF, 1)
        self.assertEqual(self.udp(good[:2] + b"\x28\0" + good[4:])[3] & 0xF, 4)
        chaos = question("acme.example", A, class_=3)
        self.assertEqual(read(self.udp(chaos), chaos)[0], 5)
        self.assertEqual(read(self.udp(good), good)[0], 0)

    def test_wrong_records_and_taken_ports_are_one_line(self) -> None:
        address = f"127.0.0.1:{self.program.port}"
        for words, message in (
            (("--listen", address), f"error: cannot listen on {address}: Address already in use\n"),
            (("--listen", "127.0.0.1:0", "--record", "a=1.2.3"), "error: 'a=1.2.3' is no record"),
            (("--listen", "127.0.0.1:0", "--record", "a"), "error: 'a' is no record"),
            (("--listen", "fd00::1:53"), "error: 'fd00::1:53' is no address"),
        ):
            done = fixtures.run("dns.py", *words)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertTrue(done.stderr.startswith(message), done.stderr)


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """Sends back, in capitals, what it got until its client was done."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as stream:
                connection.sendall(stream.read().upper())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]


class ConnectProxy(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.program = fixtures.start("connect_proxy.py", "--listen", "127.0.0.1:0", log=Path(folder.name, "log"))
        self.addCleanup(lambda: self.program.process.poll() is None and self.program.stop())

    def exchange(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.program.port), timeout=10) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                return stream.read()

    def test_bytes_pass_both_ways(self) -> None:
        with echo_server() as port:
            payload = b"abc" * 500_000
            answer = self.exchange(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + payload)
        self.assertEqual(answer, b"HTTP/1.1 200 Connection established\r\n\r\n" + payload.upper())

    def test_everything_else_is_refused(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            closed = server.getsockname()[1]
        for request, status in (
            (b"GET / HTTP/1.1\r\n\r\n", b"405"),
            (b"CONNECT here HTTP/1.1\r\n\r\n", b"400"),
            (b"CONNECT a:b:c HTTP/1.1\r\n\r\n", b"400"),
            (b"\r\n\r\n", b"400"),
            (b"CONNECT ", b"400"),
            (b"x" * 100_000, b"400"),
            (f"CONNECT 127.0.0.1:{closed} HTTP/1.1\r\n\r\n".encode(), b"502"),
        ):
            self.assertEqual(self.exchange(request)[9:12], status, request[:40])
        self.assertEqual(self.program.stop(), 0)


if __name__ == "__main__":
    unittest.main()

"""The DNS server, the proxies and the witness, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import random
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fixtures
import witness
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
        words += ["--numbered", "pod-{}.example=10.8.0.{}", "--https", "127.0.0.1:0"]
        fixtures.make_certificates(Path(cls.folder.name))
        for option, file in (("--certificate", "server.pem"), ("--key", "server.key")):
            words += [option, str(Path(cls.folder.name, file))]
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

    def test_numbered_names(self) -> None:
        for name, expected in (("pod-2.example", "10.8.0.2"), ("pod-254.example", "10.8.0.254")):
            query = question(name, A)
            self.assertEqual(read(self.udp(query), query), (0, [expected]))
        query = question("pod-255.example", A)
        self.assertEqual(read(self.udp(query), query), (3, []))

    def test_answers_over_https(self) -> None:
        query = question("acme.example", AAAA)
        host, port = self.program.ready["listen"][1].rsplit(":", 1)
        connection = http.client.HTTPSConnection(host, int(port), context=ssl._create_unverified_context(), timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", "/dns-query", query, {"Content-Type": "application/dns-message"})
            self.assertEqual(read(connection.getresponse().read(), query), (0, ["fd00::1"]))

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


class ForwardProxy(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        words = ("--http", "127.0.0.1:0", "--socks", "127.0.0.1:0", "--host", "echo.example=127.0.0.1")
        self.program = fixtures.start("forward_proxy.py", *words, log=Path(folder.name, "log"))
        self.addCleanup(lambda: self.program.process.poll() is None and self.program.stop())

    def exchange(self, data: bytes, listener: int = 0) -> bytes:
        port = int(self.program.ready["listen"][listener].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                return stream.read()

    def test_bytes_pass_both_ways(self) -> None:
        payload = b"abc" * 500_000
        for request, listener, answer in (
            (b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n", 0, b"HTTP/1.1 200 Connection established\r\n\r\n"),
            (b"CONNECT echo.example:%d HTTP/1.1\r\n\r\n", 0, b"HTTP/1.1 200 Connection established\r\n\r\n"),
        ):
            with echo_server() as port:
                self.assertEqual(self.exchange(request % port + payload, listener), answer + payload.upper())

    def test_socks_leads_there_too(self) -> None:
        granted4, granted5 = b"\0\x5a" + bytes(6), b"\x05\0\x05\0\0\x01" + bytes(6)
        name = b"echo.example"
        for before, after, answer in (
            (b"\x04\x01", b"\x7f\0\0\x01me\0", granted4),
            (b"\x04\x01", b"\0\0\0\x01me\0" + name + b"\0", granted4),
            (b"\x05\x01\0\x05\x01\0\x01\x7f\0\0\x01", b"", granted5),
            (b"\x05\x01\0\x05\x01\0\x03" + bytes([len(name)]) + name, b"", granted5),
        ):
            with echo_server() as port:
                request = before + struct.pack("!H", port) + after
                self.assertEqual(self.exchange(request + b"abc", 1), answer + b"ABC", request)

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
        for request, answer in (
            (b"\x06", b""),
            (b"\x05\x01\x02", b"\x05\xff"),
            (b"\x05\x01\0\x05\x02\0\x01\x7f\0\0\x01\0\x50", b"\x05\0\x05\x07\0\x01" + bytes(6)),
            (b"\x04\x01" + struct.pack("!H", closed) + b"\x7f\0\0\x01\0", b"\0\x5b" + bytes(6)),
            (b"\x04\x01\0", b""),
        ):
            self.assertEqual(self.exchange(request, 1), answer, request)
        self.assertEqual(self.program.stop(), 0)


class Witness(unittest.TestCase):
    def packet(self, destination: str, protocol: int, content: bytes, fragment: int = 0) -> witness.Packet:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 0, fragment, 64, protocol, 0)
        data = head + socket.inet_aton("10.0.0.1") + socket.inet_aton(destination) + content
        # What is short is padded on its way.
        return witness.read(witness.IPV4, data + bytes(10))

    def test_content_is_what_comes_after_the_headers(self) -> None:
        segment = struct.pack("!HHIIBBHHH", 1, 443, 0, 0, 0x60, 0x18, 0, 0, 0) + bytes(4)
        self.assertEqual(self.packet("10.0.0.2", witness.TCP, segment + b"hello").content, b"hello")
        self.assertEqual(self.packet("10.0.0.2", witness.TCP, segment).content, b"")
        self.assertEqual(self.packet("10.0.0.2", witness.UDP, bytes(8) + b"hello").content, b"hello")
        self.assertEqual(self.packet("10.0.0.2", witness.UDP, b"the rest", fragment=64).content, b"the rest")
        self.assertEqual(self.packet("10.0.0.2", 253, b"anything").content, b"anything")

    def test_headers_of_ipv6_are_passed_over(self) -> None:
        ends = socket.inet_pton(socket.AF_INET6, "fd00::1") + socket.inet_pton(socket.AF_INET6, "fd00::2")
        content = bytes([witness.UDP, 0]) + bytes(6) + bytes(8) + b"hello"
        data = struct.pack("!IHBB", 0x60000000, len(content), 60, 64) + ends + content
        packet = witness.read(witness.IPV6, data)
        self.assertEqual((packet.protocol, packet.content), (witness.UDP, b"hello"))

    def test_what_is_cut_off_is_no_packet(self) -> None:
        for data in (b"", b"\x45", bytes(11)):
            for kind in (witness.IPV4, witness.IPV6):
                with self.assertRaises(witness.NotPacket):
                    witness.read(kind, data)


class Plain(unittest.TestCase):
    """What runs on other kernels, where there is no more than Python."""

    def test_nothing_but_python_is_needed(self) -> None:
        for program in ("dns.py", "forward_proxy.py", "plain_upstream.py", "witness.py"):
            with self.subTest(program):
                # Without the environment's packages.
                command = [sys.executable, "-S", str(fixtures.HERE / program), "--help"]
                done = subprocess.run(command, capture_output=True, text=True, env={}, timeout=60)
                self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main()

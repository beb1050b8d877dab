"""The ClickHouse front: the HTTP interface, errors, compression, deduplication, and data that outlives the process."""

from __future__ import annotations

import gzip
import signal
import tempfile
import unittest
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlencode

import fixtures
from fixtures import Program

TABLE = """CREATE TABLE records (id UInt64, text String) ENGINE = MergeTree ORDER BY id
    SETTINGS non_replicated_deduplication_window = 1000"""


class ClickHouse(unittest.TestCase):
    """One front for all tests of the class; a test may restart it."""

    program: ClassVar[Program]
    folder: ClassVar[tempfile.TemporaryDirectory[str]]

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        cls.begin()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.program.stop()
        cls.folder.cleanup()

    @classmethod
    def begin(cls) -> None:
        python = fixtures.interpreter("clickhouse")
        folder = Path(cls.folder.name)
        arguments = ("--listen", "127.0.0.1:0", "--data", str(folder / "data"))
        cls.program = fixtures.start("clickhouse.py", *arguments, python=python, log=folder / "log")

    def send(
        self,
        query: str | None = None,
        body: bytes | None = None,
        path: str = "/",
        headers: dict[str, str] | None = None,
        **parameters: str,
    ) -> tuple[int, bytes, str | None]:
        """Status, body and exception code of one request; POST when there is a body."""
        if query is not None:
            parameters["query"] = query
        url = f"http://127.0.0.1:{self.program.port}{path}?{urlencode(parameters)}"
        request = urllib.request.Request(url, body, headers or {})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=fixtures.ALL_SECONDS) as answer:
                return answer.status, answer.read(), None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers.get("X-ClickHouse-Exception-Code")

    def text(self, query: str, **parameters: str) -> str:
        """The answer to a query that must succeed."""
        status, body, _ = self.send(None, query.encode(), "/", None, **parameters)
        self.assertEqual(status, 200, body)
        return body.decode()

    def table(self, database: str) -> None:
        self.text(f"DROP DATABASE IF EXISTS {database}")
        self.text(f"CREATE DATABASE {database}")
        self.text(TABLE, database=database)

    def test_people_can_use_it(self) -> None:
        self.assertEqual(self.send("SELECT 1"), (200, b"1\n", None))
        self.assertEqual(self.send(path="/ping"), (200, b"Ok.\n", None))
        self.assertEqual(self.send(), (200, b"Ok.\n", None))
        self.assertEqual(self.send(path="/nowhere")[0], 404)

    def test_parameters_settings_and_formats(self) -> None:
        query = "SELECT {a:String} || {b:String} AS x"
        answer = self.text(query, param_a="it's \\\\ ", param_b="ü", default_format="JSONEachRow")
        self.assertEqual(answer, '{"x":"it\'s \\\\ ü"}\n')
        self.assertEqual(self.text("SELECT getSetting('max_threads')", max_threads="3"), "3\n")
        self.assertNotEqual(self.text("SELECT getSetting('max_threads')"), "3\n")
        self.assertEqual(self.text("SELECT currentDatabase()", database="system"), "system\n")
        self.assertEqual(self.text("SELECT currentDatabase()"), "default\n")
        self.assertEqual(self.text("SELECT 1 AS a FORMAT CSVWithNames", default_format="TSV"), '"a"\n1\n')
        self.assertEqual(self.send("SELECT", b"1 +\n1"), (200, b"2\n", None))

    def test_a_form_carries_query_and_parameters(self) -> None:
        parts = {"query": "SELECT {p:String}, {n:UInt8}", "param_p": "a\\\tb", "param_n": "7"}
        body = "".join(
            f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in parts.items()
        )
        headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
        self.assertEqual(self.send(None, f"{body}--xyz--\r\n".encode(), headers=headers), (200, b"a\\tb\t7\n", None))

    def test_errors(self) -> None:
        for query, status, code in (
            ("SELECT nope", 404, "47"),
            ("SELECT * FROM nope", 404, "60"),
            ("SELECT * FROM nope.nope", 404, "81"),
            ("SELECT (", 400, "62"),
            ("SELECT {a:UInt8}", 400, "456"),
            ("SELECT throwIf(1)", 500, "395"),
        ):
            answer = self.send(None, query.encode())
            self.assertEqual((answer[0], answer[2]), (status, code), answer)
            self.assertTrue(answer[1].startswith(f"Code: {code}. DB::Exception: ".encode()), answer)
        self.assertEqual(self.send(None, b"SELECT 1", no_such_setting="1")[::2], (404, "115"))
        self.assertEqual(self.send(None, b"SELECT 1", "/", None, **{"x; DROP": "1"})[::2], (404, "115"))
        self.assertEqual(self.send("CREATE DATABASE by_get")[::2], (500, "164"))
        self.assertEqual(self.send("/* SELECT */ DROP TABLE x")[::2], (500, "164"))
        self.assertEqual(self.send(None, b"")[::2], (400, "62"))
        self.assertEqual(self.send("SELECT 1"), (200, b"1\n", None))

    def test_rows_come_as_a_body(self) -> None:
        self.table("bodies")
        rows = b'{"id":1,"text":"a"}\n{"id":2,"text":"\xc3\xa9"}\n'
        self.assertEqual(self.send("INSERT INTO bodies.records FORMAT JSONEachRow", rows)[0], 200)
        packed = gzip.compress(b"3\tc\n")
        headers = {"Content-Encoding": "gzip"}
        self.assertEqual(self.send("INSERT INTO bodies.records (id, text) FORMAT TSV", packed, headers=headers)[0], 200)
        self.text("INSERT INTO bodies.records VALUES (4, 'd')")
        self.text('INSERT INTO bodies.records FORMAT JSONEachRow {"id":5,"text":"e"}')
        query = "SELECT groupArray(text) FROM (SELECT * FROM bodies.records ORDER BY id)"
        self.assertEqual(self.text(query), "['a','é','c','d','e']\n")
        self.assertEqual(self.send("INSERT INTO bodies.records FORMAT TSV", b"six\tf\n")[::2], (400, "27"))
        self.assertEqual(self.text("SELECT count() FROM bodies.records"), "5\n")

    def test_native_compression_round_trip(self) -> None:
        status, packed, _ = self.send(None, b"SELECT number FROM numbers(300000) FORMAT TSV", compress="1")
        self.assertEqual(status, 200)
        self.assertLess(len(packed), 1_500_000)
        self.table("packed")
        insert = "INSERT INTO packed.records (id) FORMAT TSV"
        self.assertEqual(self.send(insert, packed, decompress="1")[0], 200)
        self.assertEqual(self.text("SELECT count(), sum(id) FROM packed.records"), "300000\t44999850000\n")
        damaged = bytearray(packed)
        damaged[40] ^= 1
        self.assertEqual(self.send(insert, bytes(damaged), decompress="1")[2], "40")
        self.assertEqual(self.send(insert, packed[:10], decompress="1")[2], "271")
        self.assertEqual(self.send(insert, bytes(16) + b"\x82" + b"\xff" * 8, decompress="1")[2], "271")

    def test_a_batch_with_a_token_counts_once_also_after_a_kill(self) -> None:
        self.table("once")
        insert = "INSERT INTO once.records FORMAT TSV"
        for _ in range(2):
            self.assertEqual(self.send(insert, b"1\ta\n2\tb\n", insert_deduplication_token="batch-1")[0], 200)
        # Other rows under the same token are the same batch; the same rows under another token are not.
        self.send(insert, b"3\tc\n", insert_deduplication_token="batch-1")
        self.assertEqual(self.text("SELECT count() FROM once.records"), "2\n")
        self.send(insert, b"1\ta\n2\tb\n", insert_deduplication_token="batch-2")
        self.assertEqual(self.text("SELECT count() FROM once.records"), "4\n")
        self.program.stop(signal.SIGKILL)
        self.begin()
        self.send(insert, b"1\ta\n2\tb\n", insert_deduplication_token="batch-2")
        self.assertEqual(self.text("SELECT count() FROM once.records"), "4\n")
        self.assertEqual(self.program.stop(), 0)
        self.begin()
        self.send(insert, b"1\ta\n2\tb\n", insert_deduplication_token="batch-1")
        self.assertEqual(self.text("SELECT count(), max(text) FROM once.records"), "4\tb\n")

    def test_problems_at_the_start_are_one_line(self) -> None:
        python = fixtures.interpreter("clickhouse")
        address = f"127.0.0.1:{self.program.port}"
        taken = fixtures.run("clickhouse.py", "--listen", address, "--data", self.folder.name + "/other", python=python)
        self.assertEqual(taken.returncode, 1)
        self.assertEqual(taken.stderr, f"error: cannot listen on {address}: Address already in use\n")
        file = Path(self.folder.name, "file")
        file.touch()
        wrong = fixtures.run("clickhouse.py", "--listen", "127.0.0.1:0", "--data", str(file), python=python)
        self.assertEqual((wrong.returncode, wrong.stderr.count("\n")), (1, 1), wrong.stderr)


if __name__ == "__main__":
    unittest.main()

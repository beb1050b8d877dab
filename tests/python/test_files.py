"""Both Python connectors, unmodified, carry files to and from the emulated Snowflake's storage.

They find the storage's names by a proxy: nothing else on the loopback can lead them there.
"""

from __future__ import annotations

import json
import os
import tempfile
import unittest
from pathlib import Path
from typing import Any, ClassVar

import fixtures
from fixtures import CLOUD_HOSTS, HOST, PASSWORD, Program, Upstream

MEBIBYTE = 1024 * 1024
CLOUDS = ("/* on s3 */", "/* on azure */", "/* on gcs */")
ROWS = 70_000


class Files(unittest.TestCase):
    """The tests, once for each connector."""

    environment: ClassVar[str]
    # Where the same connector has pandas beside it.
    with_pandas: ClassVar[str]
    upstream: ClassVar[Upstream]
    proxy: ClassVar[Program]
    folder: ClassVar[tempfile.TemporaryDirectory[str]]
    number: ClassVar[int] = 0

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        path = Path(cls.folder.name)
        cls.upstream = Upstream(path)
        hosts = [word for host in CLOUD_HOSTS for word in ("--host", f"{host}=127.0.0.1:{cls.upstream.port}")]
        listen = ("--http", "127.0.0.1:0", "--socks", "127.0.0.1:0")
        cls.proxy = fixtures.start("forward_proxy.py", *listen, *hosts, log=path / "proxy.err")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.proxy.stop()
        cls.upstream.program.stop()
        cls.folder.cleanup()

    def drive(self, *steps: list[Any], environment: str | None = None) -> list[Any]:
        """What becomes of the steps."""
        connect = {"account": HOST, "host": HOST, "port": self.upstream.port, "login_timeout": 20}
        connect |= {"database": "SANDBOX", "schema": "PUBLIC", "warehouse": "WH", "paramstyle": "qmark"}
        connect |= {"user": "SVC_AGENTS", "password": PASSWORD}
        proxy = f"http://127.0.0.1:{self.proxy.port}"
        result = fixtures.drive(
            environment or self.environment, self.upstream, connect, list(steps), HTTPS_PROXY=proxy, NO_PROXY=HOST
        )
        outcomes: list[Any] = result["outcomes"]
        return outcomes

    def place(self) -> str:
        """A new folder, and the name of its own in the user's stage."""
        type(self).number += 1
        path = Path(self.folder.name) / f"{self.environment}{self.number}"
        path.mkdir()
        return str(path)

    def file(self, size: int, name: str = "file.bin") -> tuple[str, bytes]:
        """A new folder with a file of random bytes in it."""
        folder, data = self.place(), os.urandom(size)
        (Path(folder) / name).write_bytes(data)
        return folder, data

    def round_trips(self, trips: list[tuple[int, str]]) -> None:
        """Files of these sizes go up and come down, with these words in both statements."""
        sent: list[tuple[Path, bytes]] = []
        steps: list[list[Any]] = []
        for size, words in trips:
            folder, data = self.file(size, "a file.bin")
            (Path(folder) / "down").mkdir()
            target = f"@~/{Path(folder).name}/"
            steps.append(["execute", f"put 'file://{folder}/a file.bin' '{target}' auto_compress = false {words}"])
            steps.append(["execute", f"get '{target}' file://{folder}/down {words}"])
            sent.append((Path(folder) / "down/a file.bin", data))
        outcomes = self.drive(*steps)
        for trip, put, got, (path, data) in zip(trips, outcomes[::2], outcomes[1::2], sent):
            with self.subTest(trip):
                self.assertEqual(put["rows"][0][6] if "rows" in put else put, "UPLOADED")
                self.assertEqual(got["rows"][0][2] if "rows" in got else got, "DOWNLOADED")
                self.assertEqual(path.read_bytes(), data)

    def test_files_come_back_as_they_were_from_every_cloud(self) -> None:
        words = ("", "/* unencrypted */", "/* 256 bits */")
        self.round_trips([(size, f"{c} {w}") for c in CLOUDS for w in words for size in (0, 1, 16, 100_000)])

    def test_the_storage_sees_what_the_connector_encrypted_and_nothing_else(self) -> None:
        folder = self.place()
        (Path(folder) / "secret.txt").write_bytes(b"the secret of the file, which nobody is to see" * 10)
        self.drive(["execute", f"put file://{folder}/secret.txt @~/{Path(folder).name} auto_compress = false"])
        sent = [line for line in self.upstream.lines() if line["method"] == "PUT"][-1]
        self.assertIn(sent["headers"]["host"], CLOUD_HOSTS[:2])
        self.assertEqual((sent["status"], sent["body"]["size"]), (200, 464))
        names = {name for name in sent["headers"] if name.startswith("x-amz-meta-")}
        expected = {"sfc-digest", "x-amz-key", "x-amz-iv", "x-amz-matdesc"}
        self.assertEqual(names, {"x-amz-meta-" + name for name in expected})
        smk_id = json.loads(sent["headers"]["x-amz-meta-x-amz-matdesc"])["smkId"]
        self.assertGreater(int(smk_id), 2**53)

    def test_a_file_above_the_threshold_is_sent_in_parts(self) -> None:
        self.round_trips([(70 * MEBIBYTE + 5, f"{cloud} /* threshold 8 MiB */") for cloud in CLOUDS[:2]])
        queries = [line["query"] for line in self.upstream.lines()]
        self.assertTrue(any("partNumber=2" in query for query in queries))
        self.assertTrue(any("comp=blocklist" in query for query in queries))

    def test_expired_credentials_are_renewed_by_the_same_statement(self) -> None:
        folder, data = self.file(1000)
        target = f"@~/{Path(folder).name}"
        words = "overwrite = true /* on azure */ /* expired credentials once */"
        put, got = self.drive(
            ["execute", f"put file://{folder}/file.bin {target} auto_compress = false {words}"],
            ["execute", f"get {target} file://{folder}/ /* expired credentials once */"],
        )
        self.assertEqual(put["rows"][0][6], "UPLOADED")
        self.assertEqual(got["rows"][0][2], "DOWNLOADED")
        self.assertEqual((Path(folder) / "file.bin").read_bytes(), data)
        self.assertEqual(sum(words in statement for statement in self.upstream.statements()), 2)

    def test_a_list_of_files_by_pattern_and_what_is_not_there(self) -> None:
        folder = self.place()
        for name in ("a.csv", "b.csv", "c.txt"):
            (Path(folder) / name).write_text(name)
        down = self.place()
        target = f"@~/{Path(folder).name}"
        put, listed, got, removed, rest, missing = self.drive(
            ["execute", f"put 'file://{folder}/*' {target} parallel = 2"],
            ["execute", f"list {target}"],
            ["execute", f"get {target}/ 'file://{down}' pattern = '.*[.]csv[.]gz'"],
            ["execute", f"remove {target}/ pattern = '.*csv.*'"],
            ["execute", f"ls {target}"],
            ["execute", f"put file://{folder}/a.csv @no_such_stage"],
        )
        self.assertIn("rows", put, put)
        self.assertEqual(sorted(row[1] for row in put["rows"]), ["a.csv.gz", "b.csv.gz", "c.txt.gz"])
        self.assertEqual([row[0].rpartition("/")[2] for row in listed["rows"]], ["a.csv.gz", "b.csv.gz", "c.txt.gz"])
        self.assertEqual(sorted(os.listdir(down)), ["a.csv.gz", "b.csv.gz"])
        self.assertEqual(sorted(row[0] for row in got["rows"]), ["a.csv.gz", "b.csv.gz"])
        self.assertEqual({row[1] for row in removed["rows"]}, {"removed"})
        self.assertEqual(len(rest["rows"]), 1)
        self.assertEqual(missing["errno"], 2003)

    def test_csv_files_become_rows(self) -> None:
        folder = self.place()
        (Path(folder) / "rows.csv").write_text('1,"one, or so"\n2,\n3,"three"\n')
        file_format = "file_format = (type = csv field_optionally_enclosed_by = '\"')"
        outcomes = self.drive(
            ["execute", f"create or replace stage loads {file_format}"],
            ["execute", "create or replace table loaded (a int, b varchar)"],
            ["execute", f"put file://{folder}/rows.csv @loads/in"],
            ["execute", f"put file://{folder}/rows.csv @%loaded auto_compress = false"],
            ["execute", "copy into loaded from @loads/in purge = true"],
            ["execute", f"copy into loaded from @%loaded files = ('rows.csv') {file_format}"],
            ["execute", "select a, b, count(*) from loaded group by a, b order by a"],
            ["execute", "list @loads"],
            ["execute", "list @%loaded"],
        )
        for outcome in outcomes:
            self.assertIn("rows", outcome, outcome)
        self.assertEqual(outcomes[4]["rows"][0][:4], ["loads/in/rows.csv.gz", "LOADED", 3, 3])
        self.assertEqual(outcomes[6]["rows"], [[1, "one, or so", 2], [2, None, 2], [3, "three", 2]])
        self.assertEqual((len(outcomes[7]["rows"]), len(outcomes[8]["rows"])), (0, 1))

    def test_many_bindings_travel_by_a_stage(self) -> None:
        rows = [[number, None if number % 7 == 0 else f'"{number}",\n🦊', number / 4] for number in range(ROWS)]
        table = f"bound_{self.environment}"
        _, inserted, counted, few = self.drive(
            ["execute", f"create or replace table {table} (a int, b varchar, c float)"],
            ["executemany", f"insert into {table} (a, b, c) values (?, ?, ?)", rows],
            ["execute", f"select count(*), sum(a), count(b), sum(c), max(b) from {table}"],
            ["executemany", f"insert into {table} (a, b, c) values (?, ?, ?)", rows[:10]],
        )
        self.assertEqual(inserted.get("count"), ROWS, inserted)
        total = ROWS * (ROWS - 1) // 2
        self.assertEqual(counted["rows"], [[ROWS, total, ROWS - ROWS // 7, total / 4, '"9999",\n🦊']])
        self.assertEqual(few["count"], 10)
        stages = [line["body"]["bindStage"] for line in self.upstream.lines() if "bindStage" in str(line["body"])]
        self.assertEqual(len(stages), 1)

    def test_frames_of_pandas(self) -> None:
        columns = {"id": list(range(1000)), "Name": [f"n'{n}" if n % 3 else None for n in range(1000)]}
        table = f"frame_{self.environment}"
        kept = 'select count(*), sum("id"), count("Name") from '
        outcomes = self.drive(
            ["write_pandas", table, columns, {"auto_create_table": True}],
            ["execute", f'{kept} "{table}"'],
            ["write_pandas", table, columns, {"chunk_size": 300, "database": "SANDBOX", "schema": "PUBLIC"}],
            ["execute", f'{kept} "{table}"'],
            ["write_pandas", table, columns, {"overwrite": True}],
            ["write_pandas", table, columns, {"overwrite": True, "auto_create_table": True}],
            ["execute", f'{kept} "{table}"'],
            environment=self.with_pandas,
        )
        first, once, chunks, twice, emptied, replaced, again = outcomes
        self.assertEqual((first, chunks), ([True, 1, 1000], [True, 4, 1000]))
        self.assertEqual((emptied, replaced), ([True, 1, 1000], [True, 1, 1000]))
        self.assertEqual(once["rows"], [[1000, 499500, 666]])
        self.assertEqual(twice["rows"], [[2000, 999000, 1332]])
        self.assertEqual(again["rows"], [[1000, 499500, 666]])


class Files5(Files):
    """snowflake-connector-python 5.x."""

    environment = "connector5"
    with_pandas = "sqlalchemy"


class Files4(Files):
    """snowflake-connector-python 4.x."""

    environment = "connector4"
    with_pandas = "snowpark"


def load_tests(loader: unittest.TestLoader, tests: unittest.TestSuite, pattern: str | None) -> unittest.TestSuite:
    """Loads the two connectors; their base class alone is no test."""
    return unittest.TestSuite(map(loader.loadTestsFromTestCase, (Files5, Files4)))


if __name__ == "__main__":
    unittest.main()

"""Both Python connectors, unmodified, against the emulated Snowflake."""

from __future__ import annotations

import signal
import tempfile
import unittest
from pathlib import Path
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric import rsa

import fixtures
from fixtures import ACCESS_TOKEN, HOST, OAUTH_TOKEN, PASSWORD, Upstream


class Connector(unittest.TestCase):
    """The tests, once for each connector."""

    environment: ClassVar[str]
    upstream: ClassVar[Upstream]
    folder: ClassVar[tempfile.TemporaryDirectory[str]]

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        cls.upstream = Upstream(Path(cls.folder.name))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.upstream.program.stop()
        cls.folder.cleanup()

    def drive(self, *steps: list[Any], **login: Any) -> dict[str, Any]:
        """Connects by `login` and runs the steps."""
        connect = {"account": HOST, "host": HOST, "port": self.upstream.port, "login_timeout": 20}
        connect |= {"database": "SANDBOX", "schema": "PUBLIC", "warehouse": "WH"}
        connect |= login or {"user": "SVC_AGENTS", "password": PASSWORD}
        return fixtures.drive(self.environment, self.upstream, connect, list(steps))

    def test_every_credential_logs_in(self) -> None:
        logins: list[dict[str, Any]] = [
            {"user": "SVC_AGENTS", "password": PASSWORD},
            {"user": "SVC_AGENTS", "password": ACCESS_TOKEN},
            {"user": "SVC_AGENTS", "authenticator": "PROGRAMMATIC_ACCESS_TOKEN", "token": ACCESS_TOKEN},
            {"user": "SVC_AGENTS", "authenticator": "oauth", "token": OAUTH_TOKEN},
            {"authenticator": "oauth", "token": OAUTH_TOKEN},
            {
                "user": "SVC_AGENTS",
                "authenticator": "SNOWFLAKE_JWT",
                "private_key_file": str(self.upstream.folder / "user.key"),
            },
        ]
        for login in logins:
            with self.subTest(login):
                result = self.drive(["execute", "select current_user(), current_warehouse()"], **login)
                self.assertEqual(result["outcomes"][0]["rows"], [["SVC_AGENTS", "WH"]])
                logged = self.upstream.requests("/session/v1/login-request")[-1]
                data = logged["body"]["data"]
                self.assertEqual(logged["user"], "SVC_AGENTS")
                if secret := login.get("token", login.get("password")):
                    self.assertIn(secret, (data.get("TOKEN"), data.get("PASSWORD")))

    def test_wrong_credentials_are_refused(self) -> None:
        other_key = self.upstream.folder / "other.key"
        other_key.write_bytes(fixtures.private_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
        cases: list[tuple[int, dict[str, Any]]] = [
            (390100, {"user": "SVC_AGENTS", "password": "wrong"}),
            (390100, {"user": "NOBODY", "password": PASSWORD}),
            (390303, {"authenticator": "oauth", "token": "wrong"}),
            (390303, {"authenticator": "oauth", "token": ACCESS_TOKEN}),
            (
                394400,
                {"user": "SVC_AGENTS", "authenticator": "PROGRAMMATIC_ACCESS_TOKEN", "token": OAUTH_TOKEN},
            ),
            (
                390144,
                {"user": "SVC_AGENTS", "authenticator": "SNOWFLAKE_JWT", "private_key_file": str(other_key)},
            ),
        ]
        for code, login in cases:
            with self.subTest(login):
                self.assertEqual(self.drive(**login)["refused"]["errno"], code)

    def test_statements(self) -> None:
        customer = "select id, name, email, credit, vip, since, note from customers where id = {}"
        steps: list[list[Any]] = [
            ["execute", "select count(*), count(note) from customers"],
            ["execute", customer.format(2)],
            ["execute", customer.format(143)],
            ["execute", "create or replace table scratch (a int, b varchar)"],
            ["execute", "insert into scratch values (1, 'x'), (2, null), (3, '🦊')"],
            ["execute", "update scratch set b = 'y' where a < 3"],
            ["execute", "select * from scratch where a = %s", [3]],
            ["execute", "select * from scratch where a > 9"],
            ["execute", "delete from scratch"],
            ["execute", "select count(*), min(ordered_at) from orders"],
        ]
        counted, second, nulls, _, inserted, updated, bound, nothing, deleted, orders = self.drive(*steps)["outcomes"]
        self.assertEqual(counted["rows"], [[300, 100]])
        self.assertEqual(second["rows"], [[2, "李小龙 2", "customer2@example.com", "34.74", False, "2025-01-03", None]])
        self.assertEqual(nulls["rows"], [[143, "José Núñez 143", None, "2483.91", None, "2025-05-24", None]])
        self.assertEqual((inserted["count"], updated["count"], deleted["count"]), (3, 2, 3))
        self.assertEqual(bound["rows"], [[3, "🦊"]])
        self.assertEqual(nothing["rows"], [])
        self.assertEqual(orders["rows"], [[5000, "2025-01-01 00:37:00.000001"]])

    def test_an_error_is_the_drivers_usual_exception_and_the_connection_stays(self) -> None:
        missing, wrong, after = self.drive(
            ["execute", "select * from nothing_here"], ["execute", "selec 1"], ["execute", "select 7"]
        )["outcomes"]
        self.assertEqual(missing["error"], "ProgrammingError")
        self.assertEqual((missing["errno"], missing["sqlstate"]), (2003, "42S02"))
        self.assertEqual((wrong["errno"], wrong["sqlstate"]), (1003, "42000"))
        self.assertEqual(after["rows"], [[7]])

    def test_several_statements_and_background_statements(self) -> None:
        multi, mismatch, later, waited = self.drive(
            ["multi", "select 1; select 'a;b' -- c;\n; select 3;", 3],
            ["execute", "select 1; select 2"],
            ["async", "select count(*) from orders"],
            ["async", "select system$wait(1)"],
        )["outcomes"]
        self.assertEqual(multi, [[[1]], [["a;b"]], [[3]]])
        self.assertEqual((mismatch["errno"], mismatch["sqlstate"]), (8, "0A000"))
        self.assertEqual(later, [[5000]])
        self.assertEqual(waited, [["waited 1 seconds"]])

    def test_an_expired_session_is_renewed_without_notice(self) -> None:
        renewals = len(self.upstream.requests("/session/token-request"))
        first, _, second = self.drive(
            ["execute", "select 'before'"],
            ["signal", signal.SIGUSR1, self.upstream.program.process.pid],
            ["execute", "select 'after'"],
        )["outcomes"]
        self.assertEqual((first["rows"], second["rows"]), ([["before"]], [["after"]]))
        self.assertEqual(len(self.upstream.requests("/session/token-request")), renewals + 1)
        sent = [line for line in self.upstream.lines() if line["sql"] == "select 'after'"]
        self.assertEqual([line["executed"] for line in sent], [False, True])

    def test_the_log_has_every_statement_with_its_user(self) -> None:
        texts = [f"select {number}, '{self.environment}'" for number in range(50)]
        self.drive(*(["execute", text] for text in texts))
        logged = [line for line in self.upstream.lines() if line["sql"] in texts]
        self.assertEqual([line["sql"] for line in logged], texts)
        seen = {(line["user"], line["executed"], line["sni"]) for line in logged}
        self.assertEqual(seen, {("SVC_AGENTS", True, HOST)})


class Connector5(Connector):
    """snowflake-connector-python 5.x, with its core in Rust."""

    environment = "connector5"


class Connector4(Connector):
    """snowflake-connector-python 4.x, pure Python."""

    environment = "connector4"


def load_tests(loader: unittest.TestLoader, tests: unittest.TestSuite, pattern: str | None) -> unittest.TestSuite:
    """Loads the two connectors; their base class alone is no test."""
    return unittest.TestSuite(map(loader.loadTestsFromTestCase, (Connector5, Connector4)))


if __name__ == "__main__":
    unittest.main()

"""The identity provider: discovery, minting, rotation."""

from __future__ import annotations

import json
import tempfile
import unittest
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jwt

import fixtures

ISSUER = "https://idp.example/realm"


class IdentityProvider(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.key = self.folder / "idp.pem"

    def serve(self, *extra: str) -> None:
        arguments = ("serve", "--listen", "127.0.0.1:0", "--issuer", ISSUER, "--key", str(self.key), *extra)
        self.program = fixtures.start("identity_provider.py", *arguments, log=self.folder / "log")
        self.addCleanup(lambda: self.program.process.poll() is None and self.program.stop())

    def get(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.program.port}{path}", method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=fixtures.ALL_SECONDS) as answer:
            return json.load(answer)

    def mint(self, *extra: str) -> str:
        words = (
            "mint",
            "--key",
            str(self.key),
            "--issuer",
            ISSUER,
            "--audience",
            "snowfence",
            "--subject",
            "alice",
        )
        done = fixtures.run("identity_provider.py", *words, *extra)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def verify(self, token: str) -> dict[str, Any]:
        """Verifies as a relying party does: discovery, key set, key by its id."""
        discovery = self.get("/realm/.well-known/openid-configuration")
        self.assertEqual(discovery["issuer"], ISSUER)
        self.assertEqual(discovery["jwks_uri"], f"{ISSUER}/jwks")
        keys = jwt.PyJWKSet.from_dict(self.get("/realm/jwks"))
        header = jwt.get_unverified_header(token)
        key = keys[header["kid"]]
        claims: dict[str, Any] = jwt.decode(token, key, algorithms=[header["alg"]], audience="snowfence", issuer=ISSUER)
        return claims

    def test_minted_tokens_verify(self) -> None:
        self.serve()
        groups = ("--group", "analysts", "--group", "ops")
        claims = self.verify(self.mint(*groups, "--claim", "level=3", "--claim", "team=a=b"))
        self.assertEqual((claims["sub"], claims["groups"]), ("alice", ["analysts", "ops"]))
        self.assertEqual((claims["level"], claims["team"]), (3, "a=b"))
        self.assertEqual(claims["exp"] - claims["iat"], 3600)
        self.assertEqual(self.key.stat().st_mode & 0o777, 0o600)

    def test_expired_and_incomplete_tokens_can_be_made(self) -> None:
        self.serve()
        with self.assertRaises(jwt.ExpiredSignatureError):
            self.verify(self.mint("--lifetime", "-5"))
        with self.assertRaises(jwt.MissingRequiredClaimError):
            self.verify(self.mint("--claim", "aud=null"))
        with self.assertRaises(jwt.InvalidIssuerError):
            self.verify(self.mint("--claim", "iss=https://other.example"))

    def test_rotation_keeps_old_tokens_valid(self) -> None:
        self.serve()
        before = self.mint()
        rotated = self.get("/rotate", "POST")["kid"]
        after = self.mint()
        self.assertEqual(jwt.get_unverified_header(after)["kid"], rotated)
        self.assertNotEqual(jwt.get_unverified_header(before)["kid"], rotated)
        self.verify(before)
        self.verify(after)
        self.assertEqual(self.program.stop(), 0)
        self.serve()
        self.assertEqual(len(self.get("/jwks")["keys"]), 2)
        self.verify(before)

    def test_elliptic_curve_keys(self) -> None:
        self.serve("--algorithm", "ES256")
        token = self.mint("--algorithm", "ES256")
        self.assertEqual(jwt.get_unverified_header(token)["alg"], "ES256")
        self.verify(token)
        words = ("mint", "--key", str(self.key), "--issuer", ISSUER, "--audience", "a", "--subject", "s")
        wrong = fixtures.run("identity_provider.py", *words, "--algorithm", "RS256")
        self.assertEqual((wrong.returncode, wrong.stderr.count("\n")), (1, 1))

    def test_private_members_stay_private(self) -> None:
        self.serve()
        self.assertEqual(set(self.get("/jwks")["keys"][0]), {"kty", "n", "e", "kid", "use", "alg"})
        with self.assertRaises(urllib.error.HTTPError) as caught:
            self.get("/idp.pem")
        caught.exception.close()

    def test_problems_are_one_line(self) -> None:
        missing = fixtures.run(
            "identity_provider.py",
            "mint",
            "--key",
            "/nowhere",
            "--issuer",
            "i",
            "--audience",
            "a",
            "--subject",
            "s",
        )
        self.assertEqual(missing.stderr, "error: cannot read the key /nowhere: No such file or directory\n")
        self.serve()
        address = f"127.0.0.1:{self.program.port}"
        words = ("serve", "--listen", address, "--issuer", ISSUER, "--key", str(self.key))
        taken = fixtures.run("identity_provider.py", *words)
        self.assertEqual(taken.stderr, f"error: cannot listen on {address}: Address already in use\n")


if __name__ == "__main__":
    unittest.main()

"""Who may log in: passwords, programmatic access tokens, OAuth tokens and key pairs from a JSON file."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
import uuid
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

import program
from emulator.protocol import Refusal

KINDS = ("password", "programmatic_access_token", "oauth_token", "public_key")
LONGEST_JWT_SECONDS = 3600
LOGGER = logging.getLogger("upstream.credentials")


class Credentials:
    """The credentials file. It is read again at each login, so that a test can rotate a secret."""

    def __init__(self, path: Path, account: str) -> None:
        self._path = path
        self._account = account
        try:
            self._users = read(path)
        except (OSError, ValueError) as error:
            raise program.StartError(f"cannot use the credentials file {path}: {error}") from None

    def verify(self, login: dict[str, Any]) -> str:
        """The user that `login` (the `data` of a login request) proves to be; raises `Refusal` otherwise."""
        try:
            self._users = read(self._path)
        except (OSError, ValueError) as error:
            LOGGER.warning("keeping the old credentials: %s", error)
        authenticator = text(login, "AUTHENTICATOR").upper() or "SNOWFLAKE"
        if authenticator in ("SNOWFLAKE", "USERNAME_PASSWORD_MFA"):
            return self._password(login)
        if authenticator == "PROGRAMMATIC_ACCESS_TOKEN":
            return self._by_token(login, "programmatic_access_token", access_token_refusal())
        if authenticator == "OAUTH":
            return self._by_token(login, "oauth_token", Refusal("390303", "Invalid OAuth access token. " + trace()))
        if authenticator == "SNOWFLAKE_JWT":
            return self._key_pair(text(login, "TOKEN"))
        raise Refusal("390100", f"Authentication with {authenticator[:40]} is not set up for this account.", "28000")

    def _password(self, login: dict[str, Any]) -> str:
        user, password = text(login, "LOGIN_NAME").upper(), text(login, "PASSWORD")
        entry = self._users.get(user, {})
        # Snowflake takes a programmatic access token in the password's place, too.
        for kind in ("password", "programmatic_access_token"):
            if password and same(entry.get(kind), password):
                return user
        raise Refusal("390100", "Incorrect username or password was specified.", "28000")

    def _by_token(self, login: dict[str, Any], kind: str, refusal: Refusal) -> str:
        token, named = text(login, "TOKEN"), text(login, "LOGIN_NAME").upper()
        owner = next((user for user, entry in self._users.items() if token and same(entry.get(kind), token)), None)
        if owner is None:
            raise refusal
        if named and named != owner:
            raise Refusal("390309", "The user you were trying to authenticate as differs from the token's user.")
        return owner

    def _key_pair(self, token: str) -> str:
        refusal = Refusal("390144", f"JWT token is invalid. {trace()}", "28000")
        try:
            unverified = jwt.decode(token, options={"verify_signature": False})
            account, user, fingerprint = str(unverified.get("iss", "")).split(".", 2)
            key = load_pem_public_key(str(self._users[user]["public_key"]).encode())
            if not isinstance(key, RSAPublicKey):
                raise ValueError("only RSA keys can be registered")
            claims = jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                leeway=5,
                options={"require": ["iss", "sub", "iat", "exp"], "verify_aud": False},
            )
        except (jwt.PyJWTError, ValueError, KeyError, TypeError) as error:
            LOGGER.info("refused a key-pair token: %s", error)
            raise refusal from None
        right = (
            account == self._account
            and claims["sub"] == f"{account}.{user}"
            and fingerprint == key_fingerprint(key)
            and claims["exp"] - claims["iat"] <= LONGEST_JWT_SECONDS
            and claims["exp"] > time.time() - 5
        )
        if not right:
            raise refusal
        return user


def read(path: Path) -> dict[str, dict[str, str]]:
    """The file's users by upper-case name; raises `ValueError` with what is wrong."""
    users = json.loads(path.read_text("utf-8"))
    if not isinstance(users, dict):
        raise ValueError("expected an object of users")
    for name, entry in users.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{name}: expected an object")
        for kind, value in entry.items():
            if kind not in KINDS or not isinstance(value, str) or not value:
                raise ValueError(f"{name}.{kind}: expected a text for one of {', '.join(KINDS)}")
    return {name.upper(): entry for name, entry in users.items()}


def key_fingerprint(key: RSAPublicKey) -> str:
    """The fingerprint as Snowflake shows it: `SHA256:` and the base64 of the key's digest."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode()


def text(login: dict[str, Any], key: str) -> str:
    """The value of `key` when it is a text, else the empty text."""
    value = login.get(key)
    return value if isinstance(value, str) else ""


def same(expected: str | None, given: str) -> bool:
    """Compares secrets in constant time."""
    return expected is not None and hmac.compare_digest(
        expected.encode("utf-8", "surrogatepass"), given.encode("utf-8", "surrogatepass")
    )


def access_token_refusal() -> Refusal:
    """What Snowflake says to a programmatic access token that it does not know."""
    return Refusal("394400", "Programmatic access token is invalid.", "28000")


def trace() -> str:
    """The random reference that Snowflake adds to a refused login."""
    return f"[{uuid.uuid4()}]"

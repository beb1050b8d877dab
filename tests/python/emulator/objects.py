"""What lies in the storage: objects, uploads in parts, and who may touch them. The three clouds are ways in."""

from __future__ import annotations

import base64
import itertools
import secrets
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from emulator.payload import Payload, joined

CLOUDS = ("S3", "AZURE", "GCS")
LIFETIME_SECONDS = 3600


class Denied(Exception):
    """A refusal of the storage, as the real one words it."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


@dataclass
class Object:
    """Something in a bucket. `metadata` is what its writer said of it, without the cloud's prefix."""

    cloud: str
    key: str
    payload: Payload
    metadata: dict[str, str]
    headers: dict[str, str]
    etag: str
    generation: int
    modified: float = field(default_factory=time.time)
    # Its writer was not asked to encrypt it.
    plain: bool = False
    # Break off the next request for it after half of it.
    breaks: bool = False


@dataclass
class Grant:
    """Credentials for what begins with `prefix`, as they are in a PUT's or a GET's answer."""

    cloud: str
    prefix: str
    writes: bool
    expires: float = field(default_factory=lambda: time.time() + LIFETIME_SECONDS)
    # What is uploaded by it need not be encrypted.
    plain: bool = False
    # What is uploaded by it breaks off when it is first asked for.
    breaks: bool = False
    identity: str = field(default_factory=lambda: "ASIA" + secrets.token_hex(8).upper())
    secret: str = field(default_factory=lambda: base64.b64encode(secrets.token_bytes(32)).decode())
    token: str = field(default_factory=lambda: secrets.token_urlsafe(200))

    @property
    def expired(self) -> bool:
        return time.time() >= self.expires

    @property
    def signed_query(self) -> str:
        """The grant as Azure's shared access signature."""
        end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.expires))
        permissions = "racwdl" if self.writes else "rl"
        signed = {"sv": "2024-11-04", "spr": "https", "se": end, "sr": "c", "sp": permissions, "sig": self.secret}
        return urlencode(signed)

    def allows(self, key: str, writes: bool) -> bool:
        """Whether this may be done."""
        return key.startswith(self.prefix) and (self.writes or not writes)


@dataclass
class Upload:
    """An upload in parts."""

    key: str
    metadata: dict[str, str]
    headers: dict[str, str]
    grant: Grant
    parts: dict[str, Payload] = field(default_factory=dict)


class Objects:
    """All of it, in one temporary folder."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="emulator_storage_")
        self.folder = Path(self._folder.name)
        self._objects: dict[tuple[str, str], Object] = {}
        self._uploads: dict[str, Upload] = {}
        self._grants: dict[tuple[str, str], Grant] = {}
        self._generations = itertools.count(time.time_ns() // 1000)

    # Credentials

    def grant(self, grant: Grant, name: str) -> Grant:
        """Makes a grant known by `name`: what a request shows to be let in."""
        self._grants[grant.cloud, name] = grant
        return grant

    def grant_of(self, cloud: str, name: str) -> Grant | None:
        """The grant that a request shows, valid or not."""
        return self._grants.get((cloud, name))

    # Objects

    def find(self, cloud: str, key: str) -> Object | None:
        """The object under a key."""
        return self._objects.get((cloud, key))

    def under(self, prefix: str, cloud: str | None = None) -> list[Object]:
        """Objects whose key begins with `prefix`, in the order of their keys."""
        found = [it for it in self._objects.values() if it.key.startswith(prefix) and cloud in (None, it.cloud)]
        return sorted(found, key=lambda it: it.key)

    def store(
        self, grant: Grant, key: str, payload: Payload, metadata: dict[str, str], headers: dict[str, str], etag: str = ""
    ) -> Object:
        """Puts an object into the place of what was there."""
        self.remove(grant.cloud, key)
        etag = etag or f'"{payload.md5.hex()}"'
        made = Object(grant.cloud, key, payload, metadata, headers, etag, next(self._generations))
        payload.kept = True
        made.plain, made.breaks = grant.plain, grant.breaks
        self._objects[grant.cloud, key] = made
        return made

    def remove(self, cloud: str, key: str) -> bool:
        """Removes an object, if it is there."""
        gone = self._objects.pop((cloud, key), None)
        if gone is not None:
            gone.payload.discard()
        return gone is not None

    def remove_under(self, prefix: str) -> None:
        """Removes everything whose key begins with `prefix`."""
        for item in self.under(prefix):
            self.remove(item.cloud, item.key)

    # Uploads in parts

    def begin(self, upload: Upload, name: str = "") -> str:
        """Begins an upload; returns its id."""
        upload_id = name or secrets.token_hex(32)
        self._uploads.setdefault(upload_id, upload)
        return upload_id

    def upload(self, cloud: str, key: str, upload_id: str) -> Upload | None:
        """An upload that has begun and not ended."""
        upload = self._uploads.get(upload_id)
        return upload if upload is not None and (upload.grant.cloud, upload.key) == (cloud, key) else None

    def add_part(self, upload: Upload, name: str, payload: Payload) -> None:
        """Puts a part into the place of what was there."""
        if (earlier := upload.parts.get(name)) is not None:
            earlier.discard()
        payload.kept = True
        upload.parts[name] = payload

    def abandon(self, upload_id: str) -> None:
        """Forgets an upload and its parts."""
        upload = self._uploads.pop(upload_id, None)
        for part in upload.parts.values() if upload else ():
            part.discard()

    def complete(self, upload_id: str, names: list[str], etag: str = "") -> Object:
        """Makes an object of the parts that are named."""
        upload = self._uploads[upload_id]
        payload = joined([upload.parts[name] for name in names], self.folder)
        self.abandon(upload_id)
        return self.store(upload.grant, upload.key, payload, upload.metadata, upload.headers, etag)

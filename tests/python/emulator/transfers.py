"""PUT and GET: the answer that tells a driver which files to carry where, and by which credentials.

Comments in a statement's text ask for what a test needs: see `Wishes`.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from emulator import words
from emulator.encryption import Material, Unreadable
from emulator.objects import Grant, Object
from emulator.protocol import Refusal
from emulator.sessions import Session
from emulator.stages import Reference, Stages
from emulator.storage import Storage

THRESHOLD = 200 * 1024 * 1024
MEBIBYTE = 1024 * 1024
# Another file than the one that the statement names.
OTHER_FILE = "/etc/hostname"
PRESIGNED_SECONDS = 3600


@dataclass
class Wishes:
    """What a test asks for by comments."""

    cloud: str | None
    presigned: bool
    unencrypted: bool
    bits: int
    expired: bool
    # Only the first time that this text is sent in the session.
    expired_once: bool
    other_file: bool
    breaks: bool
    threshold: int

    @classmethod
    def of(cls, sql: str) -> Wishes:
        """Reads the comments."""
        said = {" ".join(text.split()).lower() for text in re.findall(r"/\*(.*?)\*/", sql, re.S)}
        clouds = {"on s3": "S3", "on azure": "AZURE", "on gcs": "GCS", "on gcs by addresses": "GCS"}
        threshold = next((int(match[1]) for text in said if (match := re.fullmatch(r"threshold (\d+) mib", text))), 0)
        return cls(
            next((clouds[text] for text in said if text in clouds), None),
            "on gcs by addresses" in said,
            "unencrypted" in said,
            256 if "256 bits" in said else 128,
            "expired credentials" in said,
            "expired credentials once" in said,
            "other file" in said,
            "breaks off" in said,
            threshold * MEBIBYTE or THRESHOLD,
        )


@dataclass
class Command:
    """A PUT or a GET, taken apart."""

    upload: bool
    local: str
    stage: str
    options: dict[str, str]


def is_transfer(sql: str) -> bool:
    """Whether this is a PUT or a GET, which is no text for a tokenizer."""
    return words.first_word(sql) in ("PUT", "GET")


def parse(sql: str, bindings: dict[str, Any]) -> Command:
    """Takes a PUT or a GET apart."""
    verb, *rest = words.words(sql)
    places = [word if word != "?" else str((bindings.get("1") or {}).get("value")) for word in rest[:2]]
    if len(places) < 2:
        raise Refusal("001003", "SQL compilation error:\nsyntax error unexpected '<EOF>'.", "42000")
    upload = verb.upper() == "PUT"
    local, stage = places if upload else reversed(places)
    local = words.unquoted(local)
    if not local.startswith("file://"):
        raise Refusal("001003", f"SQL compilation error:\nsyntax error unexpected '{local[:40]}'.", "42000")
    return Command(upload, local.removeprefix("file://"), stage, words.options(" ".join(rest[2:])))


class Transfers:
    """Answers PUT and GET."""

    def __init__(self, storage: Storage, stages: Stages) -> None:
        self._objects = storage.objects
        self._keys = storage.keys
        self._stages = stages
        self._bucket, self._region = storage.s3.bucket, storage.s3.region
        self._azure, self._gcs = storage.azure.host, storage.gcs.host
        self._seen: set[tuple[int, str]] = set()

    def answer(self, sql: str, bindings: dict[str, Any], session: Session, query_id: str) -> dict[str, Any]:
        """The answer's data."""
        command, wishes = parse(sql, bindings), Wishes.of(sql)
        if wishes.expired_once:
            wishes.expired = (session.id, sql) not in self._seen
            self._seen.add((session.id, sql))
        reference = self._stages.resolve(command.stage, session)
        answer = self._upload if command.upload else self._download
        return answer(command, wishes, reference, session, query_id)

    def _upload(
        self, command: Command, wishes: Wishes, reference: Reference, session: Session, query_id: str
    ) -> dict[str, Any]:
        path = reference.path.strip("/")
        prefix = reference.stage.prefix + (path + "/" if path else "")
        encrypted = reference.stage.encrypted and not wishes.unencrypted
        material = self._keys.make(query_id, wishes.bits) if encrypted else None
        info = self._stage_info(prefix, wishes, wishes.cloud or "S3", writes=True, encrypted=encrypted)
        if wishes.presigned:
            info["presignedUrl"] = self._presigned(prefix + command.local.rpartition("/")[2], wishes, not encrypted)
        options = command.options
        return {
            "uploadInfo": older(info),
            "src_locations": [OTHER_FILE if wishes.other_file else command.local],
            "parallel": int(options.get("PARALLEL", 4)),
            "threshold": wishes.threshold,
            "autoCompress": truth(options.get("AUTO_COMPRESS", "true")),
            "overwrite": truth(options.get("OVERWRITE", "false")),
            "sourceCompression": options.get("SOURCE_COMPRESSION", "auto_detect").lower(),
            "clientShowEncryptionParameter": True,
            "queryId": query_id,
            "encryptionMaterial": material.answer(session.smk_id_as_text) if material else None,
            "stageInfo": info,
            "command": "UPLOAD",
            "kind": None,
            "operation": "Node",
        }

    def _download(
        self, command: Command, wishes: Wishes, reference: Reference, session: Session, query_id: str
    ) -> dict[str, Any]:
        items = self._wanted(reference, command.options.get("PATTERN"))
        clouds = {item.cloud for item in items}
        cloud = wishes.cloud or (clouds.pop() if len(clouds) == 1 else "S3")
        items = [item for item in items if item.cloud == cloud]
        materials = [self._material(item, reference.stage.encrypted) for item in items]
        for item in items:
            item.breaks = item.breaks or wishes.breaks
        root = reference.stage.prefix
        encrypted = any(materials) or (not items and reference.stage.encrypted)
        info = self._stage_info(root, wishes, cloud, writes=False, encrypted=encrypted)
        addresses = [self._presigned(item.key, wishes) for item in items] if wishes.presigned else None
        text = session.smk_id_as_text
        return {
            "uploadInfo": older(info),
            "src_locations": [item.key.removeprefix(root) for item in items],
            "localLocation": command.local,
            "parallel": int(command.options.get("PARALLEL", 10)),
            "threshold": wishes.threshold,
            "autoCompress": False,
            "overwrite": False,
            "sourceCompression": "auto_detect",
            "clientShowEncryptionParameter": True,
            "queryId": query_id,
            "encryptionMaterial": [it.answer(text) if it else None for it in materials] if any(materials) else [],
            "presignedUrls": addresses,
            "stageInfo": info,
            "command": "DOWNLOAD",
            "kind": None,
            "operation": "Node",
        }

    def _wanted(self, reference: Reference, pattern: str | None) -> list[Object]:
        """The objects that a GET asks for: one of that name, or all whose names begin so."""
        items = self._objects.under(reference.prefix)
        root = reference.stage.prefix
        if pattern is not None:
            items = [item for item in items if re.fullmatch(pattern, item.key.removeprefix(root))]
        return items

    def _material(self, item: Object, encrypted: bool) -> Material | None:
        try:
            return self._keys.for_reading(item, encrypted)
        except Unreadable:
            raise unreadable(item) from None

    def _stage_info(
        self, prefix: str, wishes: Wishes, cloud: str, writes: bool, encrypted: bool
    ) -> dict[str, Any]:
        grant = Grant(cloud, prefix, writes, plain=not encrypted, breaks=wishes.breaks)
        if wishes.expired:
            grant.expires = time.time() - 60
        info: dict[str, Any] = {
            "locationType": cloud,
            "location": f"{self._bucket}/{prefix}",
            "path": prefix.partition("/")[2],
            "region": self._region,
            "storageAccount": None,
            "isClientSideEncrypted": encrypted,
            "creds": {},
            "presignedUrl": None,
            "endPoint": None,
            "useS3RegionalUrl": False,
            "useRegionalUrl": False,
            "useVirtualUrl": False,
        }
        if cloud == "S3":
            self._objects.grant(grant, grant.identity)
            names = ("AWS_KEY_ID", "AWS_SECRET_KEY", "AWS_TOKEN", "AWS_ID", "AWS_KEY")
            values = (grant.identity, grant.secret, grant.token, grant.identity, grant.secret)
            info["creds"] = dict(zip(names, values))
        elif cloud == "AZURE":
            account, _, endpoint = self._azure.partition(".")
            self._objects.grant(grant, grant.secret)
            # Go's driver takes the container from here.
            info["path"] = self._bucket
            info |= {"region": "westeurope", "storageAccount": account, "endPoint": endpoint}
            info["creds"] = {"AZURE_SAS_TOKEN": "?" + grant.signed_query}
        else:
            info |= {"region": "europe-west1", "storageAccount": ""}
            if not wishes.presigned:
                self._objects.grant(grant, "ya29." + grant.token)
                info["creds"] = {"GCS_ACCESS_TOKEN": "ya29." + grant.token}
        return info

    def _presigned(self, key: str, wishes: Wishes, plain: bool | None = None) -> str:
        """An address at Google's that is a permission by itself: to write if it says what, else to read."""
        grant = Grant("GCS", key, plain is not None, plain=bool(plain), breaks=wishes.breaks)
        if wishes.expired:
            grant.expires = time.time() - 60
        self._objects.grant(grant, grant.identity)
        return (
            f"https://{self._gcs}/{self._bucket}/{quote(key)}?X-Goog-Algorithm=GOOG4-RSA-SHA256"
            f"&X-Goog-Credential=stages&X-Goog-Expires={PRESIGNED_SECONDS}&X-Goog-SignedHeaders=host"
            f"&X-Goog-Signature={grant.identity}"
        )


def older(info: dict[str, Any]) -> dict[str, Any]:
    """The copy of the stage's description that is for drivers from before some of its fields."""
    newer = ("useS3RegionalUrl", "useRegionalUrl", "useVirtualUrl")
    return {name: value for name, value in info.items() if name not in newer}


def unreadable(item: Object) -> Refusal:
    """What the account says of a file that it cannot decrypt."""
    name = item.key.rpartition("/")[2]
    return Refusal("100064", f"Failed to decrypt. Check file is encrypted correctly. File '{name}'.", "22000")


def truth(text: str) -> bool:
    """An option's value."""
    return text.lower() == "true"

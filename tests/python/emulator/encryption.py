"""Client-side encryption as drivers do it: a key for each file, wrapped with the key of the statement that sent it."""

from __future__ import annotations

import base64
import itertools
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from emulator.objects import Object
from emulator.payload import PIECE

# More than a double can hold: a reader that takes it for one finds another key.
SMK_IDS = itertools.count(9_007_199_254_740_993, 2)
BLOCK = 16


class Unreadable(Exception):
    """A file that cannot be decrypted by what is said of it."""


@dataclass
class Material:
    """The key of a statement, by which the keys of its files are wrapped."""

    query_id: str
    key: bytes
    smk_id: int

    def answer(self, smk_id_as_text: bool) -> dict[str, Any]:
        """As it stands in an answer."""
        return {
            "queryStageMasterKey": base64.b64encode(self.key).decode(),
            "queryId": self.query_id,
            "smkId": str(self.smk_id) if smk_id_as_text else self.smk_id,
        }


class Keys:
    """Every key that was ever given out, by the query that it was given out to."""

    def __init__(self) -> None:
        self._materials: dict[str, Material] = {}

    def make(self, query_id: str, bits: int) -> Material:
        """A new key."""
        material = Material(query_id, secrets.token_bytes(bits // 8), next(SMK_IDS))
        self._materials[query_id] = material
        return material

    def for_reading(self, item: Object, encrypted: bool) -> Material | None:
        """The key to read an object by; `encrypted`: all that is not said to be plain has to have one."""
        material = self._of(item)
        if material is None and encrypted and not item.plain:
            raise Unreadable
        return material

    def _of(self, item: Object) -> Material | None:
        """The key of an object by what its writer said of it; nothing when it is not encrypted."""
        text = item.metadata.get("x-amz-matdesc") or item.metadata.get("matdesc")
        wrapped = item.metadata.get("x-amz-key") or item.metadata.get("encryptiondata")
        if text is None and wrapped is None:
            return None
        try:
            description = json.loads(text or "")
            material = self._materials[description["queryId"]]
        except (ValueError, KeyError, TypeError):
            raise Unreadable from None
        right = str(description.get("smkId")) == str(material.smk_id)
        if not right or str(description.get("keySize")) != str(len(material.key) * 8):
            raise Unreadable
        return material


def decrypt(item: Object, material: Material, target: Path) -> None:
    """Writes the plain text of an object."""
    wrapped, vector = wrapping(item)
    try:
        unwrap = Cipher(algorithms.AES(material.key), modes.ECB()).decryptor()
        file_key = unpadded(unwrap.update(wrapped) + unwrap.finalize())
        decryptor = Cipher(algorithms.AES(file_key), modes.CBC(vector)).decryptor()
        with item.payload.path.open("rb") as source, target.open("wb") as plain:
            last = b""
            while piece := source.read(PIECE):
                plain.write(last)
                last = decryptor.update(piece)
            plain.write(unpadded(last + decryptor.finalize()))
    except ValueError:
        target.unlink(missing_ok=True)
        raise Unreadable from None


def wrapping(item: Object) -> tuple[bytes, bytes]:
    """The wrapped key of a file, and the initialization vector, in the form of the cloud that it is in."""
    said = item.metadata
    try:
        if item.cloud == "S3":
            texts = said["x-amz-key"], said["x-amz-iv"]
        else:
            data = json.loads(said["encryptiondata"])
            texts = data["WrappedContentKey"]["EncryptedKey"], data["ContentEncryptionIV"]
        key, vector = (base64.b64decode(text, validate=True) for text in texts)
    except (KeyError, TypeError, ValueError):
        raise Unreadable from None
    return key, vector


def unpadded(data: bytes) -> bytes:
    """Without the padding of PKCS #7."""
    count = data[-1] if data else 0
    if not 1 <= count <= BLOCK or data[-count:] != bytes([count]) * count:
        raise ValueError("wrong padding")
    return data[:-count]

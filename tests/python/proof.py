"""Verifies a trail by the documented format alone: nothing here comes from the agent.

`proof.py journal JOURNAL KEY` reads the journal's file, `proof.py export FILE KEY` an exported session. Either prints one
line of JSON: how many records are proven, and what is wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import sys
from collections.abc import Iterator
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TABLES = ("sessions", "statements", "approvals", "running", "outcomes", "events", "payloads", "checkpoints")
LISTS = ("actions", "features", "groups", "objects")
Record = dict[str, Any]


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def canonical(record: Record) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def leaf(record: Record) -> bytes:
    return sha256(b"\0", canonical(record))


def root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    middle = 1 << ((len(leaves) - 1).bit_length() - 1)
    return sha256(b"\1", root(leaves[:middle]), root(leaves[middle:]))


def root_by_path(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """RFC 9162, 2.1.3.2."""
    last = size - 1
    for beside in path:
        assert last > 0, "the path is too long"
        if index % 2 == 1 or index == last:
            leaf = sha256(b"\1", beside, leaf)
            while index % 2 == 0 and index != 0:
                index, last = index >> 1, last >> 1
        else:
            leaf = sha256(b"\1", leaf, beside)
        index, last = index >> 1, last >> 1
    assert last == 0, "the path is too short"
    return leaf


def is_signed(checkpoint: Record, key: str) -> bool:
    signed = {name: value for name, value in checkpoint.items() if name not in ("seq", "signature")}
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(
            bytes.fromhex(checkpoint["signature"]), canonical(signed)
        )
    except (InvalidSignature, ValueError):
        return False
    return checkpoint["key"] == key


def signed_digest(checkpoint: Record) -> str:
    signed = {name: value for name, value in checkpoint.items() if name not in ("seq", "signature")}
    return sha256(canonical(signed)).hex()


def rows(connection: sqlite3.Connection, journal: str) -> Iterator[tuple[Record, str]]:
    """Each record in its canonical form, and for a checkpoint the leaves."""
    for table in TABLES:
        for row in connection.execute(f"SELECT * FROM {table}"):
            record: Record = {"table": table, "journal": journal}
            for name in row.keys():
                value = row[name]
                if name in LISTS and value is not None:
                    value = json.loads(value)
                if name == "describe_only":
                    value = bool(value)
                if value is not None and value != [] and name != "digests":
                    record[name] = value
            yield record, row["digests"] if table == "checkpoints" else ""


def verify_journal(path: str, key: str) -> dict[str, Any]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    (journal,) = connection.execute("SELECT id FROM journal").fetchone()
    records = {record["seq"]: (record, digests) for record, digests in rows(connection, journal)}
    wrong: list[str] = []
    proven = next_seq = 0
    previous = "0" * 64
    checkpoints = [(r, d) for _, (r, d) in sorted(records.items()) if r["table"] == "checkpoints"]
    for number, (checkpoint, digests) in enumerate(checkpoints, 1):
        first, last = checkpoint["first_seq"], checkpoint["last_seq"]
        name = f"checkpoint {checkpoint['number']}"
        if checkpoint["number"] != number or first != next_seq + 1:
            wrong.append(f"{name} is out of its order")
        if checkpoint["previous"] != previous:
            wrong.append(f"{name} does not follow the one before it")
        if not is_signed(checkpoint, key):
            wrong.append(f"{name} is forged")
        leaves = [bytes.fromhex(digests[at : at + 64]) for at in range(0, len(digests), 64)]
        if len(leaves) != last - first + 1 or root(leaves).hex() != checkpoint["root"]:
            wrong.append(f"{name} has other digests")
        for seq, expected in zip(range(first, last + 1), leaves):
            if seq not in records:
                wrong.append(f"record {seq} is missing")
            elif leaf(records[seq][0]) != expected:
                wrong.append(f"record {seq} was changed")
            else:
                proven += 1
        next_seq, previous = last, signed_digest(checkpoint)
    return {"proven": proven, "wrong": wrong}


def verify_export(path: str, key: str) -> dict[str, Any]:
    wrong: list[str] = []
    checkpoints: dict[int, Record] = {}
    payloads: dict[str, tuple[Record, list[bytes]]] = {}
    proven = last = 0
    with open(path, encoding="utf-8") as file:
        head = json.loads(next(file))
        assert head["snowfence_export"] == 1
        for line in map(json.loads, file):
            match line:
                case {"checkpoint": checkpoint}:
                    if not is_signed(checkpoint, key):
                        wrong.append(f"checkpoint {checkpoint['number']} is forged")
                    checkpoints[checkpoint["number"]] = checkpoint
                case {"record": record, "proof": {"checkpoint": number, "path": path_of}}:
                    checkpoint = checkpoints[number]
                    first, size = checkpoint["first_seq"], checkpoint["last_seq"] - checkpoint["first_seq"] + 1
                    way = [bytes.fromhex(digest) for digest in path_of]
                    if root_by_path(leaf(record), record["seq"] - first, size, way).hex() != checkpoint["root"]:
                        wrong.append(f"record {record['seq']} was changed")
                        continue
                    proven += 1
                    if record["table"] in ("sessions", "statements", "payloads"):
                        if record.get("previous", 0) != last:
                            wrong.append(f"record {record['seq']} does not follow record {last}")
                        last = record["seq"]
                    if record["table"] == "payloads":
                        payloads[record["id"]] = (record, [])
                case {"record": record, "proof": None}:
                    wrong.append(f"record {record['seq']} is not signed")
                case {"payload": payload, "piece": piece}:
                    entry = base64.b64decode(piece)
                    head_of, sealed = entry[:72], entry[104:]
                    digest = sha256(head_of, sealed)
                    if digest != entry[72:104]:
                        wrong.append(f"a piece of payload {payload} was changed")
                    payloads[payload][1].append(digest)
    for payload, (record, digests) in payloads.items():
        if sha256(*digests).hex() != record["digest"]:
            wrong.append(f"payload {payload} was changed")
    if proven < head["records"]:
        wrong.append(f"{head['records'] - proven} records are missing, or not proven")
    return {"proven": proven, "payloads": len(payloads), "wrong": wrong}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["journal", path, key]:
            print(json.dumps(verify_journal(path, key)))
        case ["export", path, key]:
            print(json.dumps(verify_export(path, key)))
        case _:
            sys.exit(__doc__)

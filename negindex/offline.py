"""Check a receipt of negindex offline, by the standard library alone: what holds, what does not, what cannot be told.

    python offline.py receipt.json --log log.jsonl --checkpoint kept.json --public holder.key.pub --image a.png

A receipt says which sets stood behind one image, at which versions, and which of their rows weighed most. A log
(`negindex log SET --json`) has one record a version, one a line; each names the hash of the one before. A checkpoint
is the one hash over a log up to a version: a log that fits it goes on from the log of then, and changed nothing in it.

Exit code: 0 all of it holds; 3 nothing is false, and something cannot be told; 13 something is false, or a file cannot
be read; 10 a file is not there. Sources: RFC 6962, section 2.1 (the hash over a log); RFC 8032 (Ed25519).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

HOLDS, FALSE, UNTOLD = "holds", "FALSE", "cannot tell"
CODES = {FALSE: 13, UNTOLD: 3, HOLDS: 0}
Line = tuple[str, str]  # a verdict, and what it is of
CLOCKS_APART = 60  # seconds that the clocks of two machines may differ

# What is read of each file: {name: type}, [type of each], (one type or another).
RUNS = [[int]]  # first and last of each run of row ids, both included
SIGNED = {"signature": str, "public_key": str}
CHECKPOINT = {"set_id": str, "version": int, "root": str, "at": str, **SIGNED}
STATED = {"set_id": str, "version": int, "rows": int, "checkpoint": (None, CHECKPOINT)}
STEP = {"heaviest": [{"set_id": str, "id": int}]}
RECEIPT = {"made": str, "sets": [STATED], "reference": [STATED], "steps": [STEP], "image_sha256": (None, str), **SIGNED}
MOVES = ("entered", "left", "erased")
RECORD = {"version": int, "at": str, "in_force": int, "previous": str, "about": str, **dict.fromkeys(MOVES, RUNS)}


class CannotRead(Exception):
    """A file is not what it was given for."""


# -- files: JSON, each value in one spelling -------------------------------------------------------


def read(data: str | bytes, name: str, shape: Any) -> Any:
    """JSON of a shape; names given twice, NaN and text that is no Unicode are refused."""
    try:
        value = json.loads(data, object_pairs_hook=_distinct)
        canonical(value)
    except (ValueError, RecursionError) as error:
        raise CannotRead(f"{name} is not JSON as negindex writes it ({error})") from error
    if not _fits(value, shape):
        raise CannotRead(f"{name} lacks a part, or a part is of another type; give the file as negindex wrote it")
    return value


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(name in value and _fits(value[name], shape[name]) for name in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(inner, shape[0]) for inner in value)
    if isinstance(shape, tuple):
        return any(_fits(value, one) for one in shape)
    if shape is int:
        return type(value) is int and abs(value) < 1 << 63
    return value is None if shape is None else type(value) is shape


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


# -- signatures ------------------------------------------------------------------------------------


def signed_bytes(thing: Mapping[str, Any], kind: str) -> bytes:
    """What a signature is over: the kind, and all but the signature itself and the names of rows' sources."""
    said = {name: value for name, value in thing.items() if name not in SIGNED}
    if kind == "receipt":
        said["steps"] = [{**_floats(step), "heaviest": _nameless(step["heaviest"])} for step in thing["steps"]]
    return f"negindex {kind} 1\n".encode() + canonical(said)


def _nameless(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**_floats(row), "id": row["id"], "source_key": None} for row in rows]


def _floats(part: Mapping[str, Any]) -> dict[str, Any]:
    """1 as 1.0: programs that pass a file on write either."""
    return {name: float(v) if type(v) is int and abs(v) < 1 << 53 else v for name, v in part.items()}


def signature(thing: Mapping[str, Any], kind: str, name: str, public: Mapping[str, str]) -> Line:
    """Who signed. public: {file: key as text}, of those whom the reader knows."""
    if not thing["signature"]:
        return UNTOLD, f"{name}: who made it; nobody signed it"
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        return UNTOLD, f"{name}: signature not checked: install cryptography"
    try:
        raw = _decoded(thing["public_key"], "ed25519:")
        Ed25519PublicKey.from_public_bytes(raw).verify(_decoded(thing["signature"]), signed_bytes(thing, kind))
    except (ValueError, InvalidSignature):
        return FALSE, f"{name}: the signature does not fit; something was changed since"
    key = hashlib.sha256(raw).hexdigest()[:16]
    known = [file for file, text in public.items() if text == thing["public_key"]]
    if not known:
        return UNTOLD, f"{name}: who signed it; unchanged since key {key} did, but that key was not given (--public)"
    return HOLDS, f"{name}: signed by {known[0]} (key {key}), and unchanged since"


def _decoded(text: str, kind: str = "") -> bytes:
    raw = base64.b64decode(text.removeprefix(kind), validate=True)
    if kind + base64.b64encode(raw).decode() != text:
        raise ValueError("another spelling of the same bytes")
    return raw


# -- the log ---------------------------------------------------------------------------------------


def root(hashes: Sequence[bytes]) -> bytes:
    """The one hash over a log, from those of its records."""
    if len(hashes) == 1:
        return hashes[0]
    half = 1 << ((len(hashes) - 1).bit_length() - 1)  # the largest power of two below
    return hashlib.sha256(b"\x01" + root(hashes[:half]) + root(hashes[half:])).digest()


class Log:
    """The exported log of one set. Raises CannotRead."""

    def __init__(self, data: bytes, name: str) -> None:
        lines = data.removesuffix(b"\n").split(b"\n")
        self.records = [read(line, f"{name}, line {n},", RECORD) for n, line in enumerate(lines, 1)]
        self.hashes = [hashlib.sha256(b"\x00" + line).digest() for line in lines]
        self.last = len(lines) - 1
        about = next((record["about"] for record in self.records if record["about"]), "")
        self.set_id: str = read(about, f"{name}, where its first record names the set,", {"set_id": str})["set_id"]
        history = [(v, what, record[what]) for v, record in enumerate(self.records) for what in MOVES]
        self.moves = [(version, what, run) for version, what, runs in history for run in runs]
        if any(len(run) != 2 for _, _, run in self.moves):
            raise CannotRead(f"{name} has a run of rows without two ends")

    def breaks(self) -> Iterator[str]:
        """Where records do not follow one another."""
        previous, rows = "", 0
        for place, (record, own) in enumerate(zip(self.records, self.hashes, strict=True)):
            if record["version"] != place:
                yield f"record {record['version']} stands where record {place} belongs: taken out, put in or reordered"
                return
            if record["previous"] != previous:
                yield f"record {place} does not follow record {place - 1}: one of the two was changed"
            rows += sum(b - a + 1 for a, b in record["entered"]) - sum(b - a + 1 for a, b in record["left"])
            if record["in_force"] != rows:
                yield f"record {place} counts {record['in_force']} rows in force; its changes leave {rows}"
            previous, rows = own.hex(), record["in_force"]

    def extends(self, point: Mapping[str, Any], name: str) -> Line:
        """Whether this log is that of a checkpoint, or goes on from it."""
        version = point["version"]
        if version > self.last:
            return FALSE, f"{name}: the log ends at version {self.last}; it was cut off, or the set rolled back"
        if version < 0 or root(self.hashes[: version + 1]).hex() != point["root"]:
            return FALSE, f"{name}: the log's records up to version {version} are not those of then"
        return HOLDS, f"{name}: the log, now at version {self.last}, extends it"

    def of_row(self, row: int) -> list[tuple[int, str]]:
        """The versions at which a row entered, left and was erased."""
        return [(version, what) for version, what, run in self.moves if run[0] <= row <= run[1]]

    def in_force(self, row: int, version: int) -> bool:
        return version <= self.last and [what for at, what in self.of_row(row) if at <= version] == ["entered"]


# -- the findings ----------------------------------------------------------------------------------


def check(
    receipt: Mapping[str, Any],
    logs: Sequence[Log] = (),
    kept: Mapping[str, Mapping[str, Any]] | None = None,
    public: Mapping[str, str] | None = None,
    image: Path | None = None,
    rows: Iterable[int] = (),
) -> list[Line]:
    """All that can be said of a receipt. kept: {file: checkpoint that was kept elsewhere}. rows: asked for by id."""
    kept, public = kept or {}, public or {}
    lines = [signature(receipt, "receipt", "receipt", public), of_image(receipt["image_sha256"], image)]
    for log in logs:
        name = f"log of set {log.set_id}"
        broken = [(FALSE, f"{name}: {said}") for said in log.breaks()]
        lines += broken or [(HOLDS, f"{name}: records 0 to {log.last} follow one another")]
        if not any(point["set_id"] == log.set_id for point in kept.values()):
            lines.append((UNTOLD, f"{name}: whether it was cut off or rolled back; give a checkpoint kept elsewhere"))
    for file, point in kept.items():
        lines += of_checkpoint(point, f"checkpoint {file}, version {point['version']}", logs, public)
    for stated in (*receipt["sets"], *receipt["reference"]):
        lines += of_set(stated, receipt["made"], logs, public)
    lines += of_rows(receipt, logs, rows)
    return list(dict.fromkeys(lines))


def of_image(digest: str | None, image: Path | None) -> Line:
    """Whether these are the pixels that the receipt is bound to."""
    if image is None or digest is None:
        return UNTOLD, "image: which one it was; " + ("none was given" if digest else "the receipt is bound to none")
    try:
        from PIL import Image
    except ImportError:
        return UNTOLD, "image: not checked: install pillow"
    data = io.BytesIO(image.read_bytes())
    try:
        with Image.open(data) as opened:
            pixels: dict[str, Any] = opened.__array_interface__
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise CannotRead(f"{image} is no image that can be decoded ({error})") from error
    found = hashlib.sha256(f"{pixels['typestr']} {pixels['shape']} ".encode() + pixels["data"]).hexdigest()
    return HOLDS if found == digest else FALSE, "image: has the very pixels that the receipt speaks of"


def of_checkpoint(point: Mapping[str, Any], name: str, logs: Sequence[Log], public: Mapping[str, str]) -> list[Line]:
    """Who signed a checkpoint, and whether the log of its set extends it."""
    found = [log.extends(point, name) for log in logs if log.set_id == point["set_id"]]
    lost: Line = (UNTOLD, f"{name}: whether it stands; the log of set {point['set_id']} was not given")
    return [signature(point, "checkpoint", name, public), *(found or [lost])]


def of_set(stated: Mapping[str, Any], made: str, logs: Sequence[Log], public: Mapping[str, str]) -> Iterator[Line]:
    """A set as the receipt states it: its checkpoint, its time, its rows."""
    set_id, _, label = stated["set_id"].partition("#")
    version, point = stated["version"], stated["checkpoint"]
    name = f"set {stated['set_id']} at version {version}"
    if point is None:
        yield UNTOLD, f"{name}: which rows it held; the receipt has no checkpoint of it"
    elif (point["set_id"], point["version"]) != (set_id, version):
        yield FALSE, f"{name}: the receipt's checkpoint is of another set or version"
    else:
        yield from of_checkpoint(point, f"{name}, checkpoint in the receipt", logs, public)
    if label:
        yield UNTOLD, f"{name}: which rows stood under its label; no log says"
    for log in (log for log in logs if log.set_id == set_id):
        if not 0 <= version <= log.last:
            yield FALSE, f"{name}: the log ends at version {log.last}; it was cut off, or the set rolled back"
            continue
        at, rows = log.records[version]["at"], log.records[version]["in_force"]
        verdict = HOLDS if _seconds(at, made) > -CLOCKS_APART else FALSE
        yield verdict, f"{name}: it came to be at {at}, and not after the receipt, {made}"
        verdict = HOLDS if 0 <= stated["rows"] <= rows else FALSE
        yield verdict, f"{name}: {stated['rows']} rows were asked, of {rows} in force"


def _seconds(earlier: str, later: str) -> float:
    try:
        return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
    except (ValueError, TypeError) as error:
        raise CannotRead(f"{earlier!r} or {later!r} is no time with its zone ({error})") from error


def of_rows(receipt: Mapping[str, Any], logs: Sequence[Log], asked: Iterable[int]) -> Iterator[Line]:
    """Whether the rows that weighed most, and those that the reader asks for, were in force."""
    rows = {(row["set_id"], row["id"]) for step in receipt["steps"] for row in step["heaviest"]}
    for set_id, row in sorted(rows | {(s["set_id"], row) for s in receipt["sets"] for row in asked}):
        versions = [s["version"] for s in receipt["sets"] if s["set_id"] == set_id]
        own = [log for log in logs if log.set_id == set_id.partition("#")[0]]
        known = UNTOLD if versions and not own else FALSE  # a set that the receipt does not state has no say in it
        verdict = HOLDS if any(log.in_force(row, version) for log in own for version in versions) else known
        since = ", ".join(f"{what} at version {version}" for log in own[:1] for version, what in log.of_row(row))
        yield verdict, f"set {set_id}: row {row} was in force at version {versions} ({since or 'in no log'})"


# -- the script ------------------------------------------------------------------------------------


def public_key(path: Path) -> str:
    """The text of a .pub file."""
    text = path.read_bytes().decode("ascii", "replace").strip()
    if not text.startswith("ed25519:") or len(text) != 52:
        raise CannotRead(f"{path} holds no public key; give the .pub file that was made with the key")
    return text


def told(lines: Sequence[Line]) -> tuple[str, int]:
    """The findings as text, what is false first, and the exit code."""
    shown = [f"{verdict:12}{said}" for wanted in CODES for verdict, said in lines if verdict == wanted]
    text = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in shown)
    return text, max(CODES[verdict] for verdict, _ in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("receipt", type=Path, help="the receipt, JSON")
    parser.add_argument("--log", type=Path, action="append", default=[], help="an exported log; again for more sets")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], help="one that was kept elsewhere")
    parser.add_argument("--public", type=Path, action="append", default=[], help="a .pub file of somebody you know")
    parser.add_argument("--image", type=Path, help="the image")
    parser.add_argument("--row", type=int, action="append", default=[], help="was this row in force?")
    asked = parser.parse_args()
    try:
        receipt = read(asked.receipt.read_bytes(), str(asked.receipt), RECEIPT)
        logs = [Log(path.read_bytes(), str(path)) for path in asked.log]
        kept = {str(path): read(path.read_bytes(), str(path), CHECKPOINT) for path in asked.checkpoint}
        public = {str(path): public_key(path) for path in asked.public}
        text, code = told(check(receipt, logs, kept, public, asked.image, asked.row))
    except (CannotRead, RecursionError) as error:
        text, code = f"cannot read: {error}", 13
    except OSError as error:
        text, code = f"cannot read: {error}", 10
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())

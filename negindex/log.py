"""The log: one record a version, chained by hash and free of personal data.

A record says what happened to which rows, by number. Words and names (reasons, people, what a claim tells)
lie beside it as notes, which an erasure can take away: the record holds only their salted commitments, so
the chain stands when they are gone, and nobody can guess them from it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from json.encoder import encode_basestring
from typing import Any, get_type_hints

import numpy as np

from negindex import merkle
from negindex.errors import Damaged

SALT_BYTES = 16
ROW_FIELDS = ("source_key", "label", "sha256", "image_sha256", "pdq", "quality", "thumbnail")  # digests in hex
Ranges = tuple[tuple[int, int], ...]  # first and last of each run of ids, both included


@dataclass(frozen=True)
class Record:
    """What one version changed; ``to_json`` is the entry that is hashed."""

    version: int
    at: str  # ISO 8601, UTC
    action: str
    in_force: int  # rows in force afterwards
    previous: str  # sha256 of the record before; "" at version 0
    claim: int | None = None
    regime: str | None = None  # of the claim
    state: str | None = None  # the claim's, afterwards
    hold: str | None = None  # the claim's legal hold, afterwards
    stored: Ranges = ()  # ids of rows whose bytes came in
    stored_root: str = ""  # Merkle root over their commitments, in order
    entered: Ranges = ()  # rows in force from this version on
    left: Ranges = ()  # rows out of force from this version on
    linked: Ranges = ()  # rows that the claim names from this version on
    unlinked: Ranges = ()
    dropped: Ranges = ()  # bytes given up without an erasure
    erased: Ranges = ()
    kept_out: str = ""  # Merkle root over the keyed fingerprints that an erasure left, in order
    note: str = ""  # commitment to the words
    person: str = ""  # commitment to the claimant's own details
    about: str = ""  # version 0: what the collection is, as JSON

    def to_json(self) -> str:
        """Sorted keys, no spaces: the same text for the same record."""
        return canonical(vars(self))  # dataclasses.asdict would copy every number

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record that ``to_json`` wrote; raises Damaged for anything else."""
        try:
            read = json.loads(text)
            record = cls(**{name: _frozen(value) for name, value in read.items()})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise Damaged(f"a log record that cannot be read ({error}); restore it from a backup") from error
        if record.to_json() != text or not _typed(record):
            raise Damaged("a log record that is not in its canonical form; restore it from a backup")
        return record

    @property
    def digest(self) -> str:
        """sha256 of the record as a leaf of the log's Merkle tree, hex; the next record names it."""
        return merkle.leaf_hash(self.to_json().encode()).hex()

    @property
    def changed(self) -> int:
        """How many rows entered or left."""
        return count(self.entered) + count(self.left)


def ranges(ids: Iterable[int]) -> Ranges:
    """Ascending ids as runs.

    >>> ranges([7, 1, 2, 3])
    ((1, 3), (7, 7))
    """
    ordered = np.sort(np.fromiter(ids, np.int64))
    runs = np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1)
    return tuple((int(run[0]), int(run[-1])) for run in runs if len(run))


def count(runs: Ranges) -> int:
    """How many ids runs stand for."""
    return sum(last - first + 1 for first, last in runs)


def ids(runs: Ranges) -> list[int]:
    """The ids that runs stand for, ascending.

    >>> ids(((1, 3), (7, 7)))
    [1, 2, 3, 7]
    """
    return [i for first, last in runs for i in range(first, last + 1)]


def canonical(value: Any) -> str:
    """JSON with one spelling for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def new_salt() -> bytes:
    """What makes a commitment unguessable; erased together with what it covers."""
    return secrets.token_bytes(SALT_BYTES)


def new_salts(count: int) -> list[bytes]:
    """As many."""
    drawn = secrets.token_bytes(count * SALT_BYTES)
    return [drawn[start : start + SALT_BYTES] for start in range(0, len(drawn), SALT_BYTES)]


def commitment(salt: bytes, content: Any) -> str:
    """Binds to ``content`` (anything that JSON holds) without telling it: sha256 of salt and canonical JSON, hex."""
    return hashlib.sha256(salt + canonical(content).encode()).hexdigest()


def row_commitment(salt: bytes, row: Mapping[str, Any]) -> str:
    """A row's: over its key, its label, and what is kept of its source image (``ROW_FIELDS``)."""
    return commitment(salt, {name: row[name] for name in ROW_FIELDS})


def bare_commitment(salt: bytes, key: str, label: str | None, digest: str) -> str:
    """``row_commitment`` where nothing is kept of a source image; its JSON is spelt out, which is faster.

    digest: hex, which needs no escapes.
    """
    said = "null" if label is None else encode_basestring(label)
    text = (
        f'{{"image_sha256":null,"label":{said},"pdq":null,"quality":null,"sha256":"{digest}",'
        f'"source_key":{encode_basestring(key)},"thumbnail":null}}'
    )
    return hashlib.sha256(salt + text.encode()).hexdigest()


def root_of(commitments: Sequence[str]) -> str:
    """Merkle root over commitments, hex."""
    return merkle.root([bytes.fromhex(one) for one in commitments]).hex()


def _frozen(value: Any) -> Any:
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value


def _typed(record: Record) -> bool:
    """Whether each field is of the type that it says."""
    return all(_is(kind, getattr(record, name)) for name, kind in _kinds().items())


@cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(Record)


def _is(kind: Any, value: Any) -> bool:
    if kind is int or kind is str:
        return type(value) is kind
    if kind == Ranges:
        return isinstance(value, tuple) and all(
            isinstance(run, tuple) and len(run) == 2 and all(type(i) is int for i in run) for run in value
        )
    return value is None or type(value) in (int, str)

"""The log of a catalogue, checked: its records, its tree, its checkpoints and the words beside it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from negindex import merkle
from negindex.audit import Faults, Growing, Tables, matched, raw
from negindex.change import about
from negindex.checkpoint import Checkpoint
from negindex.errors import Damaged, InvalidInput
from negindex.keys import PublicKey
from negindex.ledger import History
from negindex.log import SALT_BYTES, Record
from negindex.schema import PLACE
from negindex.states import Meta

_COLUMNS = ("at", "action", "claim", "changed", "in_force")  # of a version, beside its record
_WORDS = {"notes": "note", "persons": "person"}  # table: the record's commitment to what is in it


class Sealed(NamedTuple):
    """What a record says that other tables are held to."""

    at: str
    action: str
    claim: int | None
    note: str
    person: str
    stored_root: str
    kept_out: str


class Log(Tables):
    """The records and what hangs on them; ``history`` is what they leave standing."""

    def __init__(self, db: sqlite3.Connection, faults: Faults) -> None:
        super().__init__(db, faults)
        self.roots: dict[int, str] = {}  # version: hex
        self.sealed: dict[int, Sealed] = {}  # version: what its record says
        self.lost: set[int] = set()  # versions that a restore took from the log alone
        self.hashes: dict[int, set[str]] = {}  # claim: what it named by hash when it was opened
        self.set_id, self.last, self._about = "", -1, ""
        top = 0
        with self.section("rows"):
            ((found,),) = self.ask("SELECT max(id) FROM rows")
            top = found if type(found) is int and found > 0 else 0
        self.history = History(top)

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Go through the log from its first record to its last, and hold it against checkpoints kept elsewhere."""
        for name, check in (
            ("meta", self._check_meta),
            ("versions", self._check_records),
            ("tree", self._check_end_of_tree),
            ("checkpoints", self._check_signatures),
        ):
            with self.section(name):
                check()
        for checkpoint in checkpoints:
            self._check_against(checkpoint)

    # -- the records -----------------------------------------------------------------------

    def _check_meta(self) -> None:
        found = dict(self.ask("SELECT key, value FROM meta"))
        for key, value in found.items():
            if key not in (*Meta._fields, PLACE) or not _is_json(value):
                self.faults.add("meta", ascii(key), "is not as it was written")
        try:
            told = {key: json.loads(value) for key, value in found.items()}
            meta = Meta(told["set_id"], tuple(told["shape"]), told["space"], told["dtype"], told["secret"])
            self.set_id, self._about = str(meta.set_id), about(meta)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            self.faults.add("meta", "of the set", f"does not say what it is ({error!a})")

    def _check_records(self) -> None:
        grown, previous, whole = Growing(), "", True
        sql = "SELECT version, record, root, at, action, claim, changed, in_force FROM versions ORDER BY version"
        for version, text, root, *columns in self.ask(sql):
            if version <= self.last:
                self.faults.add("record", version, "is no version of a log", "version")
                continue
            if version > self.last + 1:
                self.faults.run("record", self.last + 1, version - 1, "is missing", "version")
                previous, whole = self._bridge(grown, version) if whole else ("", False)
            self.last, leaf = version, merkle.leaf_hash(raw(text))
            if whole:
                self._check_tree(version, grown, leaf, root)
            self._check_record(version, text, columns, previous, known=whole or bool(previous))
            previous = leaf.hex()
        if self.last < 0:
            self.faults.add("record", 0, "is missing, and so is every other", "version")

    def _bridge(self, grown: Growing, version: int) -> tuple[str, bool]:
        """Go on behind missing records by the hashes that the tree has of them; the last one, and whether all are."""
        leaf = None
        while grown.size < version and (leaf := self._node(0, grown.size)) is not None:
            grown.append(leaf)
            self.roots[grown.size - 1] = grown.root().hex()
        return ("", False) if leaf is None else (leaf.hex(), True)

    def _check_tree(self, version: int, grown: Growing, leaf: bytes, root: str) -> None:
        for level, place, made in grown.append(leaf):
            if self._node(level, place) != made:
                whose = f"record of version {version}" if level == 0 else f"records up to version {version}"
                self.faults.add("tree", f"node {place} of level {level}", f"is missing, or no hash of the {whose}")
        self.roots[version] = grown.root().hex()
        if root != self.roots[version]:
            self.faults.add("record", version, "has a root beside it that is not that of the log up to it", "version")

    def _check_record(self, version: int, text: str, columns: list[Any], previous: str, known: bool) -> None:
        try:
            record = Record.from_json(text)
        except Damaged:
            self.faults.add("record", version, "is no record in its canonical form", "version")
            return
        told = [getattr(record, name) for name in _COLUMNS]
        pairs = zip(_COLUMNS, columns, told, strict=True)
        odd = [f"stands beside {name} {found!a}, and says {said!a}" for name, found, said in pairs if found != said]
        if record.version != version:
            odd.append(f"holds the record of version {record.version}")
        if known and record.previous != previous:
            odd.append("does not name the record before it by its hash")
        if version and version - 1 in self.sealed and record.at < self.sealed[version - 1].at:
            odd.append("is of an earlier time than the one before it")
        if record.about != (self._about if version == 0 else ""):
            odd.append("does not say of the set what its meta table does")
        odd += self.history.follow(record)
        for said in odd:
            self.faults.add("record", version, said, "version")
        self.sealed[version] = Sealed(
            record.at, record.action, record.claim, record.note, record.person, record.stored_root, record.kept_out
        )

    # -- the tree --------------------------------------------------------------------------

    def _node(self, level: int, place: int) -> bytes | None:
        for (found,) in self.ask("SELECT hash FROM tree WHERE level = ? AND place = ?", level, place):
            return found if isinstance(found, bytes) and len(found) == merkle.HASH_BYTES else None
        return None

    def _check_end_of_tree(self) -> None:
        """Nodes of records that are not there."""
        sql = """SELECT level, place FROM tree WHERE level NOT BETWEEN 0 AND 40 OR place < 0
                 OR place >= ((?1 + 1) >> level) ORDER BY level, place"""
        following = self.last + 1
        for level, place in self.ask(sql, self.last):
            said = f"stands for records after version {self.last}, the log's last"
            self.faults.add("tree", f"node {place} of level {level}", said)
            if (level, place) == (0, following):
                self.faults.add("record", following, "is missing; the tree has its hash", "version")
                following += 1

    def _check_signatures(self) -> None:
        for version, signature, key in self.ask("SELECT version, signature, public_key FROM checkpoints"):
            if version not in self.roots or version not in self.sealed:
                self.faults.add("checkpoint", version, "is of a version that has no record", "of version")
                continue
            made = Checkpoint(self.set_id, version, self.roots[version], self.sealed[version].at, signature, key)
            if not is_signed(made):
                self.faults.add("checkpoint", version, "is not signed by the key that it names", "of version")

    def _check_against(self, kept: Checkpoint) -> None:
        """Hold the log against a checkpoint that was kept elsewhere."""
        where = f"kept elsewhere, of version {kept.version}"
        if kept.signature and not is_signed(kept):
            self.faults.add("checkpoint", where, "is not signed by the key that it names")
        if kept.set_id != self.set_id:
            self.faults.add("checkpoint", where, f"is of the set {kept.set_id!a}, and this is {self.set_id!a}")
        elif kept.version > self.last:
            said = f"rolled back or cut short: the checkpoint names version {kept.version}, the log ends at {self.last}"
            self.faults.add("checkpoint", where, said)
        elif self.roots.get(kept.version) != kept.root:
            self.faults.add("checkpoint", where, "the log up to that version is not the one that it was made of")
        elif kept.version in self.sealed and self.sealed[kept.version].at != kept.at:
            self.faults.add("checkpoint", where, f"is of {kept.at!a}, and the version of another time")

    # -- the words beside it ---------------------------------------------------------------

    def find_lost(self) -> None:
        """Note the versions that a restore took from the log alone: their words, and the rows they stored, are lost."""
        for version, said in self.sealed.items():
            for salt, body in self.ask("SELECT salt, body FROM notes WHERE version = ?", version):
                if said.action == "restore" and _commits(said.note, salt, body):
                    self.lost.update(range(json.loads(body).get("backup_version", version) + 1, version))

    def check_words(self, taken: set[int]) -> None:
        """Notes and claimants' details against the records; those of ``taken`` claims are gone, and no others."""
        for table, name in _WORDS.items():
            with self.section(table):
                found = self.ask(f"SELECT version, salt, body FROM {table} ORDER BY version")
                for version, wanted, words in matched(self._committed(name), found):
                    if said := self._fault_of(version, wanted[0] if wanted else None, words, taken):
                        self.faults.add(name, version, said, "version")
                    elif words and name == "note" and version in self.sealed:
                        self._note_hashes(version, words[1])

    def _committed(self, name: str) -> Iterator[tuple[int, str]]:
        return ((version, getattr(said, name)) for version, said in self.sealed.items() if getattr(said, name))

    def _fault_of(self, version: int, wanted: str | None, words: tuple[Any, ...] | None, taken: set[int]) -> str:
        if version not in self.sealed:
            return ""  # the record itself is a fault
        claim = self.sealed[version].claim
        standing = self.history.claims.get(claim or 0)
        gone = standing is not None and (version < standing.forgotten or claim in taken)
        if words is None:
            return "" if gone or version in self.lost else "is missing, and no erasure explains it"
        if wanted is None:
            return "is there, and the record has none"
        if gone:
            return f"is there, and claim {claim} was erased"
        return "" if _commits(wanted, *words) else "is not the one that the record commits to"

    def _note_hashes(self, version: int, body: str) -> None:
        claim = self.sealed[version].claim
        if claim in self.history.claims and self.history.claims[claim].opened == version:
            self.hashes[claim] = set(json.loads(body).get("hashes", ()))


def _commits(commitment: str, salt: Any, body: Any) -> bool:
    """Whether a commitment is to these words under this salt."""
    whole = isinstance(salt, bytes) and len(salt) == SALT_BYTES
    return whole and hashlib.sha256(salt + raw(body)).hexdigest() == commitment


def is_signed(checkpoint: Checkpoint) -> bool:
    """Whether the key that a checkpoint names signed it."""
    try:
        return checkpoint.is_signed_by(PublicKey.from_text(checkpoint.public_key))
    except (InvalidInput, TypeError, ValueError):  # no key, or no text
        return False


def _is_json(text: Any) -> bool:
    try:
        return bool(json.dumps(json.loads(text)) == text)
    except (TypeError, ValueError, RecursionError):
        return False

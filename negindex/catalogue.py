"""The record of a collection, as it is read: which rows are in force since which version, under which claims.

SQLite; one transaction, one version, one log record. ``change`` holds what writes it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from negindex.change import Change, Nodes
from negindex.checkpoint import Checkpoint
from negindex.disk import Disk
from negindex.errors import (
    Damaged,
    Erased,
    NewerFormat,
    NoCollection,
    NotAllowed,
    UnknownClaim,
    UnknownKey,
    UnknownVersion,
)
from negindex.geometry import VIEW, item_of
from negindex.hamming import Hashes
from negindex.keys import Key
from negindex.log import Record
from negindex.merkle import Tree
from negindex.schema import (
    APPLICATION_ID,
    BY_DIGEST,
    DIGITS,
    FORMAT,
    LIVE,
    PLACE,
    READ,
    SCHEMA,
    connect,
    named,
    to_newest,
)
from negindex.states import (
    ClaimRecord,
    DerivedRecord,
    Meta,
    Note,
    Outstanding,
    Place,
    Provenance,
    RowRecord,
    SegmentRecord,
    Version,
)

_BATCH = 500  # values asked for in one statement
_BEHIND = VIEW[:-1] + chr(ord(VIEW[-1]) + 1)  # sorts behind every view's key
_PAGE = 1 << 16  # rows read at a time where a statement reads all
_LIVE = ",".join(f"'{state}'" for state in LIVE)


class Backup(NamedTuple):
    """A copy of a collection that this program made."""

    id: str
    path: str
    version: int  # that it holds
    at: str  # when it was made, ISO 8601, UTC; "" while it is not finished


class Catalogue:
    """One connection to ``catalogue.sqlite``, usable from several threads."""

    def __init__(self, path: Path, disk: Disk, key: Key | None = None) -> None:
        self._disk, self._key, self._lock = disk, key, threading.RLock()
        if not path.is_file():
            raise NoCollection(
                f"{path.parent} holds no collection ({path.name} is missing); make one with `negindex build`"
            )
        self.path = path
        with self._asking():
            self._db = connect(path)
        try:
            self._check_format()
            self.meta = self._read_meta()
        except BaseException:
            self._db.close()
            raise

    @staticmethod
    def create(path: Path, meta: Meta, key: Key | None = None) -> None:
        """Write an empty catalogue at version 0."""
        db = connect(path, mode="rwc")
        db.execute("PRAGMA journal_mode = WAL")  # the file remembers it
        db.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; BEGIN; {SCHEMA}")
        db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in meta._asdict().items()])
        Change(db, "create", Note(), key=key, meta=meta).finish()
        db.execute("COMMIT")
        db.close()

    def close(self) -> None:
        self._db.close()

    def renew(self) -> None:
        """Bring the record of an older format to the newest, in one transaction; for the only writer."""
        if self.format != FORMAT:
            with self._transaction():
                to_newest(self._db)

    @property
    def format(self) -> int:
        """Of the record, as it is now."""
        return int(self.ask("PRAGMA user_version")[0][0])

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Everything read inside belongs to one version."""
        with self._asking():
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    @contextmanager
    def change(self, action: str, note: Note) -> Iterator[Change]:
        """One transaction, one version: all of it or none."""
        with self._transaction():
            change = Change(self._db, action, note, key=self._key, meta=self.meta)
            yield change
            change.finish()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Several versions in one transaction: all of them or none."""
        with self._transaction():
            yield

    @contextmanager
    def upkeep(self) -> Iterator[Change]:
        """One transaction that moves bytes and changes no version: what was in force when stays as it is."""
        with self._transaction():
            yield Change(self._db, "", Note(), key=None, meta=self.meta)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._asking():
            if self._db.in_transaction:  # a part of ``together``
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._disk.commit(self._db)
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # -- versions --------------------------------------------------------------------------

    def newest(self) -> Version:
        """The version in force now."""
        return self._versions("ORDER BY version DESC LIMIT 1")[0]

    def number(self) -> int:
        """The version in force now, by its number alone: asked at each step of each image."""
        ((found,),) = self.ask("SELECT max(version) FROM versions")
        return int(found)

    def version(self, number: int) -> Version:
        """One version; raises UnknownVersion."""
        found = self._versions("WHERE version = ?", number)
        if not found:
            raise UnknownVersion(f"version {number}; the collection has versions 0 to {self.newest().version}")
        return found[0]

    def version_at(self, at: str) -> Version:
        """The version in force at a moment (ISO 8601, UTC); raises UnknownVersion before the first."""
        found = self._versions("WHERE at <= ? ORDER BY version DESC LIMIT 1", at)
        if not found:
            raise UnknownVersion(f"at {at} the collection did not exist; it was made at {self.version(0).at}")
        return found[0]

    def versions(self, claim: int | None = None) -> list[Version]:
        """The whole history, or one claim's, oldest first."""
        return self._versions("WHERE ?1 IS NULL OR claim = ?1 ORDER BY version", claim)

    def records(self, start: int = 0, stop: int | None = None) -> list[Record]:
        """The log from ``start`` on, up to ``stop`` (left out)."""
        sql = "SELECT record FROM versions WHERE version >= ? AND (?2 IS NULL OR version < ?2) ORDER BY version"
        return [Record.from_json(text) for (text,) in self.ask(sql, start, stop)]

    def checkpoint(self, version: int) -> Checkpoint:
        """The log's root at a version, with its signature where somebody signed it; raises UnknownVersion."""
        at = self.version(version).at
        sql = """SELECT root, coalesce(signature, ''), coalesce(public_key, '') FROM versions
                 LEFT JOIN checkpoints USING (version) WHERE version = ?"""
        root, signature, public_key = self.ask(sql, version)[0]
        return Checkpoint(self.meta.set_id, version, root, at, signature, public_key)

    def tree(self) -> Tree:
        """The log's Merkle tree, for proofs."""
        return Tree(Nodes(self._db), self.newest().version + 1)

    def note(self, version: int) -> dict[str, Any]:
        """The words beside a version's record; {} where an erasure took them."""
        return _body(self.ask("SELECT body FROM notes WHERE version = ?", version))

    def person(self, version: int) -> dict[str, Any]:
        """What a version's record says of the claimant; {} where there is nothing, or no longer."""
        return _body(self.ask("SELECT body FROM persons WHERE version = ?", version))

    # -- rows ------------------------------------------------------------------------------

    def check_readable(self, version: int) -> None:
        """Raise Erased when bytes that the version needs are gone."""
        found = self.ask(
            "SELECT max(erased) FROM rows WHERE segment IS NULL AND added <= ?1 AND withdrawn > ?1 HAVING count(*)",
            version,
        )
        if found and found[0][0] is not None:
            raise Erased(
                f"version {version} held rows that were erased at version {found[0][0]}; it can no longer be "
                "opened, and its receipts still verify; open a later one"
            )
        if found:
            raise Erased(
                f"version {version} held withdrawn rows that compaction has given up since; its receipts still "
                "verify; open a later one"
            )

    def segments(self, version: int | None = None) -> list[SegmentRecord]:
        """The sealed files that hold rows of a version (all files when None)."""
        sql = "SELECT * FROM segments WHERE ?1 IS NULL OR first <= ?1 ORDER BY segment"
        return [SegmentRecord(*row) for row in self.ask(sql, version)]

    def place(self) -> Place:
        """Where new files of rows go."""
        found = self.ask("SELECT value FROM meta WHERE key = ?", PLACE)
        try:
            url, cache_bytes, stamps, moving = json.loads(found[0][0]) if found else Place()
            return Place(str(url), int(cache_bytes), tuple((str(at), str(one)) for at, one in stamps), str(moving))
        except (TypeError, ValueError) as error:
            raise Damaged(f"{self.path} does not say where rows lie ({error!r}); restore it from a backup") from error

    def put_rows_at(self, place: Place) -> None:
        """Have new files of rows go to a place."""
        with self.upkeep() as change:
            change.put_rows_at(place)

    def to_let_go(self) -> set[str]:
        """Files of rows that no rows lie in any more, and that may be there still."""
        return {one.name for one in self.outstanding() if one.what == "file"}

    def sealed_rows(self, segment: int) -> list[tuple[int, int, str]]:
        """(place, id, sha256) of the rows in a file, by place."""
        return self.ask("SELECT place, id, sha256 FROM rows WHERE segment = ? ORDER BY place", segment)

    def is_named(self, file: str) -> bool:
        """Whether rows lie in a file now."""
        return bool(self.ask("SELECT 1 FROM segments WHERE file = ?", file))

    def embedded_by(self) -> str | None:
        """What made the embeddings beside rows, by the newest note that tells; "" where none does, None without any."""
        if not any(file.embedding for file in self.segments()):
            return None
        found = self.ask(
            """SELECT json_extract(body, '$.embedded_by') AS said FROM notes WHERE said IS NOT NULL
               ORDER BY version DESC LIMIT 1"""
        )
        return str(found[0][0]) if found else ""

    def left(self, segment: int, after: int, until: int) -> list[int]:
        """Places in a segment of rows that went out of force after one version and up to another."""
        sql = "SELECT place FROM rows WHERE segment = ? AND withdrawn > ? AND withdrawn <= ?"
        return [place for (place,) in self.ask(sql, segment, after, until)]

    def proposed(self, segment: int) -> list[int]:
        """Places in a segment of rows that were never in force."""
        return [p for (p,) in self.ask("SELECT place FROM rows WHERE added IS NULL AND segment = ?", segment)]

    def entered(self, segment: int, after: int, until: int | None = None) -> list[int]:
        """Places in a segment of rows that came into force after a version (and up to another)."""
        sql = "SELECT place FROM rows WHERE segment = ? AND added > ? AND (?3 IS NULL OR added <= ?3)"
        return [place for (place,) in self.ask(sql, segment, after, until)]

    def labelled(self, label: str) -> list[int]:
        """Ids of the rows that were ever added under a label."""
        return [row_id for (row_id,) in self.ask("SELECT id FROM rows WHERE label = ? ORDER BY id", label)]

    def held(self, source_keys: Sequence[str]) -> dict[str, tuple[int, str, bool]]:
        """{source key: (id, sha256, whether in force)} for those of the keys that are in force or proposed."""
        sql = "SELECT source_key, id, sha256, added IS NOT NULL FROM rows WHERE withdrawn IS NULL AND source_key IN"
        return {key: (row_id, digest, bool(live)) for key, row_id, digest, live in self._each(sql, source_keys)}

    def family(self, source_keys: Sequence[str], ever: bool = False) -> list[str]:
        """Keys with those of all views of the same images in force or proposed; with ``ever`` of withdrawn rows too."""
        if not self.meta.geometry.is_many:
            return list(source_keys)
        halves = ("IS", "IS NOT") if ever else ("IS",)  # an index for each
        found = dict.fromkeys(source_keys)
        for item in dict.fromkeys(map(item_of, source_keys)):
            for half in halves:
                sql = f"""SELECT source_key FROM rows WHERE withdrawn {half} NULL AND (source_key = ?1
                          OR source_key >= ?2 AND source_key < ?3) ORDER BY 1"""
                found |= dict.fromkeys(key for (key,) in self.ask(sql, item, item + VIEW, item + _BEHIND))
        return list(found)

    def made_of(self, ids: Sequence[int]) -> list[tuple[int, str, str | None, int]]:
        """(id, sha256, sha256 of its source image, version that it came into force at) of rows."""
        return list(self._each("SELECT id, sha256, image_sha256, added FROM rows WHERE id IN", ids))

    def ids_under(self, source_keys: Sequence[str]) -> dict[str, list[int]]:
        """{source key: ids of every row that has it}, in force or not."""
        sql = "SELECT source_key, id FROM rows WHERE withdrawn IS {} NULL AND source_key IN"  # an index for each half
        return _grouped(sorted(pair for part in ("", "NOT") for pair in self._each(sql.format(part), source_keys)))

    def keys_in_force(self, label: str | None = None) -> list[str]:
        """All source keys in force, or those under one label, sorted."""
        sql = """SELECT source_key FROM rows WHERE withdrawn IS NULL AND added IS NOT NULL
                 AND (?1 IS NULL OR label = ?1) ORDER BY 1"""
        return [key for (key,) in self.ask(sql, label)]

    def in_force_at(self, version: int) -> list[tuple[int, str | None]]:
        """(id, source key) of the rows in force at a version; the key is None once the row is erased."""
        sql = """SELECT id, source_key FROM rows WHERE added <= ?1 AND (withdrawn IS NULL OR withdrawn > ?1)
                 ORDER BY id"""
        return self.ask(sql, version)

    def not_in_force(self, ids: Sequence[int], version: int) -> list[int]:
        """Those of the ids that stand for no row in force at a version."""
        number = int(version)
        sql = f"SELECT id FROM rows WHERE added <= {number} AND (withdrawn IS NULL OR withdrawn > {number}) AND id IN"
        return sorted(set(ids) - {row_id for (row_id,) in self._each(sql, ids)})

    def source_keys(self, ids: Sequence[int]) -> dict[int, str]:
        """{id: source key}, also of rows that were withdrawn since; an erased row has none."""
        sql = "SELECT id, source_key FROM rows WHERE source_key IS NOT NULL AND id IN"
        return dict(self._each(sql, ids))

    def digests(self, ids: Sequence[int]) -> dict[int, str]:
        """{id: sha256 of the row's stored bytes}."""
        return dict(self._each("SELECT id, sha256 FROM rows WHERE id IN", ids))

    def ids_with(self, digests: Sequence[str]) -> dict[str, list[int]]:
        """{sha256: ids of the rows, in force or not, whose stored bytes have it}."""
        wanted = set(digests)
        found = self._each(f"SELECT sha256, id FROM rows WHERE {BY_DIGEST} IN", sorted({d[:DIGITS] for d in wanted}))
        return _grouped((digest, row_id) for digest, row_id in found if digest in wanted)

    def placed(self, ids: Sequence[int]) -> dict[int, tuple[int, int]]:
        """{id: (segment, place)} of the rows whose bytes are there."""
        sql = "SELECT id, segment, place FROM rows WHERE segment IS NOT NULL AND id IN"
        return {row_id: (segment, place) for row_id, segment, place in self._each(sql, ids)}

    def content_of(self, ids: Sequence[int]) -> list[str]:
        """sha256 of the rows' stored bytes and of their source images, as far as they are known."""
        found = self._each("SELECT sha256, image_sha256 FROM rows WHERE id IN", ids)
        return [digest for pair in found for digest in pair if digest]

    def provenance(self, row_id: int) -> Provenance:
        """What is kept of a row's source image."""
        sql = """SELECT image_sha256, pdq, quality, png FROM rows LEFT JOIN thumbnails ON row = id WHERE id = ?"""
        return Provenance(*self.ask(sql, row_id)[0])

    def row(self, row_id: int) -> RowRecord:
        """One row, whatever became of it; raises UnknownKey."""
        sql = """SELECT id, source_key, label, sha256, added, withdrawn, erased, segment IS NOT NULL FROM rows
                 WHERE id = ?"""
        found = self.ask(sql, row_id)
        if not found:
            raise UnknownKey(f"no row has the number {row_id}; `negindex status --keys` lists what is in force")
        key, label, digest, added, withdrawn, erased, stored = found[0][1:]
        return RowRecord(row_id, key, label, digest, added, withdrawn, erased, bool(stored))

    def standing(self, ids: Sequence[int], ever: bool = False) -> dict[int, tuple[str, bool]]:
        """{id: (source key, whether in force)} of those in force or proposed; with ``ever`` of all that have a key."""
        sql = f"""SELECT id, source_key, added IS NOT NULL AND withdrawn IS NULL FROM rows
                  WHERE source_key IS NOT NULL AND {_held(ever)} AND id IN"""
        return {row_id: (key, bool(live)) for row_id, key, live in self._each(sql, ids)}

    def described(self, ids: Sequence[int]) -> dict[int, tuple[str, str | None, str, str | None]]:
        """{id: (source key, label, sha256, sha256 of its source image)} of those of the rows that are in force."""
        sql = """SELECT id, source_key, label, sha256, image_sha256 FROM rows
                 WHERE added IS NOT NULL AND withdrawn IS NULL AND id IN"""
        return {row: (key, label, digest, image) for row, key, label, digest, image in self._each(sql, ids)}

    def kept(self, ids: Sequence[int]) -> dict[int, tuple[str, str | None, str, Provenance]]:
        """{id: (source key, label, sha256, what is kept of its source image)} of rows; an erased row is left out."""
        sql = """SELECT id, source_key, label, sha256, image_sha256, pdq, quality, png FROM rows LEFT JOIN thumbnails
                 ON row = id WHERE source_key IS NOT NULL AND id IN"""
        return {row: (key, label, digest, Provenance(*kept)) for row, key, label, digest, *kept in self._each(sql, ids)}

    def with_content(self, digests: Sequence[str]) -> dict[str, list[int]]:
        """{sha256: ids of the rows, in force or not, whose stored bytes or source image have it}."""
        found = self.ids_with(digests)
        for digest, row_id in self._each("SELECT image_sha256, id FROM rows WHERE image_sha256 IN", digests):
            found.setdefault(digest, []).append(row_id)
        return found

    def twins(self, ever: bool = False) -> list[list[int]]:
        """Ids of rows with the same stored bytes, and of those with the same source image, two or more each."""
        sql = """SELECT {0}, id FROM rows WHERE {2} AND {1} IN (SELECT {1} FROM rows WHERE {0} IS NOT NULL AND {2}
                 GROUP BY {1} HAVING count(*) > 1) ORDER BY id"""
        kinds = (("sha256", BY_DIGEST), ("image_sha256", "image_sha256"))
        found = [_grouped(self.ask(sql.format(*kind, _held(ever)))) for kind in kinds]
        return [ids for groups in found for ids in groups.values() if len(ids) > 1]

    def pdqs(self, ids: Sequence[int] | None = None, ever: bool = False) -> tuple[Hashes, NDArray[np.int64]]:
        """PDQ hashes under their rows' ids, and their qualities (100 where nobody told), of some rows or of all.

        Of those in force or proposed; with ``ever`` of all on record. Cost: about a second a million rows.
        """
        sql = f"SELECT id, coalesce(quality, 100), pdq FROM rows WHERE pdq IS NOT NULL AND {_held(ever)}"
        pages = self._pages(sql) if ids is None else iter([list(self._each(f"{sql} AND id IN", ids))])
        parts = [
            (np.array([row[:2] for row in page], np.int64).reshape(-1, 2), b"".join(pdq for *_, pdq in page))
            for page in pages
        ]
        known = np.concatenate([np.zeros((0, 2), np.int64), *(some for some, _ in parts)])
        bits = np.frombuffer(b"".join(some for _, some in parts), np.uint8).reshape(-1, 32)
        return Hashes(bits, known[:, 0]), known[:, 1]

    def next_id(self) -> int:
        """The first id that no row ever had."""
        found = self.ask("SELECT seq FROM sqlite_sequence WHERE name = 'rows'")
        return int(found[0][0]) + 1 if found else 1

    # -- claims ----------------------------------------------------------------------------

    def claim(self, number: int) -> ClaimRecord:
        """One claim; raises UnknownClaim."""
        found = self.ask("SELECT claim, regime, state, hold FROM claims WHERE claim = ?", number)
        if not found:
            raise UnknownClaim(f"claim {number}; `negindex claim list` shows those that there are")
        return ClaimRecord(*found[0])

    def claims(self, state: str | None = None, regime: str | None = None) -> list[ClaimRecord]:
        """All claims, or those in a state or under a regime, by number."""
        sql = """SELECT claim, regime, state, hold FROM claims
                 WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR regime = ?2) ORDER BY claim"""
        return [ClaimRecord(*row) for row in self.ask(sql, state, regime)]

    def rows_of(self, claim: int, closed: bool = False) -> list[int]:
        """Ids of the rows that a claim names; with ``closed`` those that it named before too."""
        sql = "SELECT row FROM claim_rows WHERE claim = ?1 AND closed IS NULL"  # each half has an index of its own
        sql += " UNION SELECT row FROM claim_rows WHERE claim = ?1 AND closed IS NOT NULL" if closed else ""
        return [row for (row,) in self.ask(f"{sql} ORDER BY row", claim)]

    def claims_on(self, ids: Sequence[int], ever: bool = False) -> dict[int, list[ClaimRecord]]:
        """{row id: the live claims that name it}; with ``ever`` all claims that do, or did."""
        live = "" if ever else f"closed IS NULL AND state IN ({_LIVE}) AND"
        sql = f"""SELECT row, claim, regime, state, hold FROM claim_rows JOIN claims USING (claim)
                  WHERE {live} row IN"""
        return _grouped((row, ClaimRecord(*claim)) for row, *claim in self._each(sql, ids))

    def claims_by_hash(self, digests: Sequence[str]) -> dict[str, list[ClaimRecord]]:
        """{digest: the open claims that named this content by its hash}."""
        sql = """SELECT digest, claim, regime, state, hold FROM claim_hashes JOIN claims USING (claim)
                 WHERE state NOT IN ('withdrawn', 'erased') AND digest IN"""
        return _grouped((digest, ClaimRecord(*claim)) for digest, *claim in self._each(sql, digests))

    def rows_by_hash(self, ids: Sequence[int]) -> dict[int, list[int]]:
        """{open claim: those of the rows whose content it named by its hash}."""
        sql = """SELECT claim, rows.id FROM rows JOIN claim_hashes ON digest IN (sha256, image_sha256)
                 JOIN claims USING (claim) WHERE state NOT IN ('withdrawn', 'erased') AND rows.id IN"""
        return _grouped(sorted(set(self._each(sql, ids))))

    def claim_pdqs(self) -> list[tuple[bytes, ClaimRecord]]:
        """(PDQ hash, the open claim that named it), of all that did."""
        sql = """SELECT digest, claim, regime, state, hold FROM claim_hashes JOIN claims USING (claim)
                 WHERE kind = 'pdq' AND state NOT IN ('withdrawn', 'erased') ORDER BY claim, digest"""
        return [(bytes.fromhex(digest), ClaimRecord(*claim)) for digest, *claim in self.ask(sql)]

    def hashes_of(self, claim: int) -> list[tuple[str, str]]:
        """(kind, digest) that a claim names."""
        return self.ask("SELECT kind, digest FROM claim_hashes WHERE claim = ? ORDER BY kind, digest", claim)

    def keeps_out(self) -> bool:
        """Whether any claim names content by its hash, or any erasure left a fingerprint."""
        sql = "SELECT EXISTS (SELECT 1 FROM claim_hashes) OR EXISTS (SELECT 1 FROM blocked)"
        return bool(self.ask(sql)[0][0])

    def blocked(self, fingerprints: Sequence[str]) -> set[str]:
        """Those of the fingerprints that an erasure left behind to keep the content out."""
        return {f for (f,) in self._each("SELECT fingerprint FROM blocked WHERE fingerprint IN", fingerprints)}

    def outstanding(self) -> list[Outstanding]:
        """What an erasure or a compaction could not finish yet."""
        return [Outstanding(*row) for row in self.ask("SELECT version, what, name FROM outstanding ORDER BY 1, 2, 3")]

    def derived(self) -> list[DerivedRecord]:
        """Calibrations and indices, the oldest first."""
        return [DerivedRecord(*row) for row in self.ask("SELECT * FROM derived ORDER BY since, file")]

    def calibration(self, version: int) -> DerivedRecord | None:
        """The newest at a version, of those that an erasure has left."""
        found = [one for one in self.derived() if one.kind == "calibration" and one.since <= version]
        return found[-1] if found else None

    def index_of(self, kernel: str) -> DerivedRecord | None:
        """The newest index for a kernel, by its fingerprint."""
        found = [one for one in self.derived() if (one.kind, one.kernel) == ("index", kernel)]
        return found[-1] if found else None

    def added_since(self, version: int) -> int:
        """Rows in force now that were not yet at a version."""
        sql = """SELECT count(*) FROM rows WHERE withdrawn IS NULL AND added > ?1
                 AND segment IN (SELECT segment FROM segments WHERE last > ?1)"""
        return int(self.ask(sql, version)[0][0])

    def marks(self, ids: Sequence[int]) -> dict[int, tuple[int | None, int | None, str | None]]:
        """{id: (version that it came into force at, version that it left at, label)} of rows."""
        sql = "SELECT id, added, withdrawn, label FROM rows WHERE id IN"
        return {row_id: (added, withdrawn, label) for row_id, added, withdrawn, label in self._each(sql, ids)}

    def lost_since(self, version: int) -> bool:
        """Whether bytes of rows that were in force at a version are gone."""
        sql = """SELECT 1 FROM rows WHERE segment IS NULL AND added <= ?1 AND (withdrawn IS NULL OR withdrawn > ?1)
                 LIMIT 1"""
        return bool(self.ask(sql, version))

    def backups(self) -> list[Backup]:
        """Where this program put copies of the collection, the oldest first."""
        sql = "SELECT backup, path, version, at FROM backups ORDER BY version, path"
        return [Backup(*row) for row in self.ask(sql)]

    def may_hold(self, backup: Backup, ids: Sequence[int], claims: Sequence[int]) -> bool:
        """Whether any of the rows was stored, or any of the claims opened, when a backup was made."""
        if not backup.at:
            return True  # it is being made: of which version is not known yet
        sql = """SELECT json_extract(record, '$.stored[0][0]') FROM versions WHERE version > ?
                 AND json_extract(record, '$.stored[0][0]') IS NOT NULL ORDER BY version LIMIT 1"""
        later = self.ask(sql, backup.version)  # ids only grow
        if any(not later or row_id < later[0][0] for row_id in ids):
            return True
        told = self._each("SELECT version FROM versions WHERE claim IN", claims)
        return any(version <= backup.version for (version,) in told)

    def erased(self) -> tuple[dict[int, int], dict[int, int]]:
        """{row: the version that erased it}, and {claim: the newest version of those that told of it} likewise."""
        rows = dict(self.ask("SELECT id, erased FROM rows WHERE erased IS NOT NULL"))
        sql = """SELECT claims.claim, coalesce(max(version), 0) FROM claims LEFT JOIN versions USING (claim)
                 WHERE state = 'erased' GROUP BY 1"""
        return rows, dict(self.ask(sql))

    def scrub(self) -> bool:
        """Take deleted bytes out of the database and its journal; False while another program reads them."""
        with self._asking(), closing(connect(self.path)) as db:
            db.executescript("PRAGMA temp_store = DEFAULT; PRAGMA busy_timeout = 1000;")
            return self._disk.scrub(db)

    # -- asking ----------------------------------------------------------------------------

    def ask(self, sql: str, *values: Any) -> list[Any]:
        """All rows of one statement."""
        with self._asking():
            return self._db.execute(sql, values).fetchall()

    def _each(self, sql: str, values: Sequence[Any]) -> Iterator[Any]:
        """Rows of a statement that ends in IN, however many values there are."""
        for start in range(0, len(values), _BATCH):
            some = values[start : start + _BATCH]
            yield from self.ask(f"{sql} ({','.join('?' * len(some))})", *some)

    def _pages(self, sql: str) -> Iterator[list[Any]]:
        """Rows of a statement with a WHERE, a page at a time, by their ids, which come first."""
        last = -1
        while page := self.ask(f"{sql} AND id > ? ORDER BY id LIMIT {_PAGE}", last):
            yield page
            last = page[-1][0]

    def _versions(self, where: str, *values: Any) -> list[Version]:
        sql = """SELECT version, at, action, coalesce(json_extract(notes.body, '$.reason'), ''), changed, in_force,
                  claim, coalesce(json_extract(notes.body, '$.by'), '') FROM versions LEFT JOIN notes USING (version)"""
        return [Version(*row) for row in self.ask(f"{sql} {where}", *values)]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """One thread at a time; what SQLite reports is raised in this package's words."""
        with self._lock:
            try:
                yield
            except sqlite3.ProgrammingError as error:
                raise NotAllowed(f"{self.path.parent} was closed; open the collection again") from error
            except UnicodeDecodeError as error:  # what SQLite says of damage may hold the damaged text
                raise Damaged(f"{self.path} cannot be read ({error}); restore it from a backup") from error
            except sqlite3.DatabaseError as error:
                found = named(error, self.path)
                if found is None:
                    raise
                raise found from error

    def _check_format(self) -> None:
        found = self.format
        if self.ask("PRAGMA application_id") != [(APPLICATION_ID,)]:
            raise NoCollection(f"{self.path} is not a negindex catalogue; name the directory of a collection")
        if found > FORMAT:
            raise NewerFormat(
                f"{self.path.parent} has format {found}, and this negindex reads up to {FORMAT}; "
                "install a newer negindex"
            )
        if found not in READ:
            raise NotAllowed(
                f"{self.path.parent} has format {found}, from before negindex was released, and this negindex reads "
                f"{READ[0]} to {FORMAT}; build the set again from its sources"
            )

    def _read_meta(self) -> Meta:
        found = self.ask("SELECT key, value FROM meta")
        try:
            stored = {key: json.loads(value) for key, value in found}
            return Meta(stored["set_id"], tuple(stored["shape"]), stored["space"], stored["dtype"], stored["secret"])
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(
                f"{self.path} does not say what the collection is ({error!r}); restore it from a backup"
            ) from error


def _held(ever: bool) -> str:
    """Rows in force or proposed, or all that are on record."""
    return "1" if ever else "withdrawn IS NULL"


def _body(found: list[Any]) -> dict[str, Any]:
    return dict(json.loads(found[0][0])) if found else {}


def _grouped(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    """{first: every second beside it}."""
    found: dict[Any, list[Any]] = {}
    for one, other in pairs:
        found.setdefault(one, []).append(other)
    return found

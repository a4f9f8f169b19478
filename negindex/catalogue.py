"""The record of a collection: which rows are in force since which version. SQLite; one transaction, one version."""

from __future__ import annotations

import errno
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from negindex.disk import Disk
from negindex.errors import Damaged, Locked, NewerFormat, NoCollection, UnknownVersion

FORMAT = 1
_APPLICATION_ID = 0x6E656769  # "negi"
_BATCH = 500  # keys asked for in one statement
WAIT = 10.0  # seconds that another program may hold the database

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, at TEXT NOT NULL, action TEXT NOT NULL, reason TEXT NOT NULL,
    changed INTEGER NOT NULL, in_force INTEGER NOT NULL
) STRICT;
CREATE TABLE segments (
    segment INTEGER PRIMARY KEY, file TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL, added INTEGER NOT NULL REFERENCES versions
) STRICT;
CREATE TABLE rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, source_key TEXT NOT NULL, label TEXT, sha256 TEXT NOT NULL,
    segment INTEGER NOT NULL REFERENCES segments, place INTEGER NOT NULL, withdrawn INTEGER REFERENCES versions
) STRICT;
CREATE UNIQUE INDEX key_in_force ON rows (source_key) WHERE withdrawn IS NULL;
CREATE INDEX row_digest ON rows (sha256);
CREATE INDEX withdrawn_rows ON rows (withdrawn, segment, place) WHERE withdrawn IS NOT NULL;
"""


class Meta(NamedTuple):
    """What never changes about a collection."""

    set_id: str
    shape: tuple[int, ...]
    space: str
    dtype: str


class Version(NamedTuple):
    """One change of the set."""

    version: int
    at: str  # ISO 8601, UTC
    action: str  # create, add or withdraw
    reason: str
    changed: int  # rows added or withdrawn
    in_force: int  # rows in force afterwards


class SegmentRecord(NamedTuple):
    """A sealed file as the catalogue knows it."""

    segment: int
    file: str
    rows: int
    bytes: int
    sha256: str
    added: int


class NewRow(NamedTuple):
    """A row about to be put in force."""

    id: int
    source_key: str
    label: str | None
    sha256: str
    place: int


class Catalogue:
    """One connection to ``catalogue.sqlite``, usable from several threads."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._disk, self._lock = disk, threading.RLock()
        if not path.is_file():
            raise NoCollection(
                f"{path.parent} holds no collection ({path.name} is missing); make one with `negindex build`"
            )
        self._path = path
        with self._asking():
            self._db = _connect(path)
        try:
            self._check_format()
            self.meta = self._read_meta()
        except BaseException:
            self._db.close()
            raise

    @staticmethod
    def create(path: Path, meta: Meta) -> None:
        """Write an empty catalogue at version 0."""
        db = _connect(path, mode="rwc")
        db.execute("PRAGMA journal_mode = WAL")  # the file remembers it
        db.executescript(f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {FORMAT}; BEGIN; {_SCHEMA}")
        db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in meta._asdict().items()])
        db.execute("INSERT INTO versions VALUES (0, ?, 'create', '', 0, 0)", (_now(),))
        db.execute("COMMIT")
        db.close()

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Everything read inside belongs to one version."""
        with self._asking():
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    def newest(self) -> Version:
        """The version in force now."""
        with self._asking():
            row = self._db.execute("SELECT * FROM versions ORDER BY version DESC LIMIT 1").fetchone()
        return Version(*row)

    def version(self, number: int) -> Version:
        """One version; raises UnknownVersion."""
        with self._asking():
            row = self._db.execute("SELECT * FROM versions WHERE version = ?", (number,)).fetchone()
        if row is None:
            raise UnknownVersion(f"version {number}; the collection has versions 0 to {self.newest().version}")
        return Version(*row)

    def versions(self) -> list[Version]:
        """The whole history, oldest first."""
        with self._asking():
            return [Version(*row) for row in self._db.execute("SELECT * FROM versions ORDER BY version")]

    def segments(self, version: int | None = None) -> list[SegmentRecord]:
        """The files that a version reads (all files when None)."""
        with self._asking():
            rows = self._db.execute(
                "SELECT * FROM segments WHERE ?1 IS NULL OR added <= ?1 ORDER BY segment", (version,)
            ).fetchall()
        return [SegmentRecord(*row) for row in rows]

    def withdrawn(self, version: int) -> list[tuple[int, int]]:
        """(segment, place) of each row that a version leaves out."""
        with self._asking():
            return self._db.execute("SELECT segment, place FROM rows WHERE withdrawn <= ?", (version,)).fetchall()

    def labelled(self, label: str) -> list[tuple[int, int]]:
        """(segment, place) of each row that was ever added under a label."""
        with self._asking():
            return self._db.execute("SELECT segment, place FROM rows WHERE label = ?", (label,)).fetchall()

    def in_force(self, source_keys: Sequence[str]) -> dict[str, tuple[int, str]]:
        """{source key: (id, sha256)} for those of the keys that are in force."""
        sql = "SELECT source_key, id, sha256 FROM rows WHERE withdrawn IS NULL AND source_key IN"
        return {key: (row_id, digest) for key, row_id, digest in self._ask(sql, source_keys)}

    def keys_in_force(self, label: str | None = None) -> list[str]:
        """All source keys in force, or those under one label, sorted."""
        sql = "SELECT source_key FROM rows WHERE withdrawn IS NULL AND (?1 IS NULL OR label = ?1) ORDER BY 1"
        with self._asking():
            return [key for (key,) in self._db.execute(sql, (label,))]

    def source_keys(self, ids: Sequence[int]) -> dict[int, str]:
        """{id: source key}, also of rows that were withdrawn since."""
        return dict(self._ask("SELECT id, source_key FROM rows WHERE id IN", ids))

    def digests(self, ids: Sequence[int]) -> dict[int, str]:
        """{id: sha256 of the row's stored bytes}."""
        return dict(self._ask("SELECT id, sha256 FROM rows WHERE id IN", ids))

    def ids_with(self, digests: Sequence[str]) -> dict[str, list[int]]:
        """{sha256: ids of the rows, in force or not, that have it}."""
        found: dict[str, list[int]] = {}
        for row_id, digest in self._ask("SELECT id, sha256 FROM rows WHERE sha256 IN", digests):
            found.setdefault(digest, []).append(row_id)
        return found

    def next_id(self) -> int:
        """The first id that no row ever had."""
        with self._asking():
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'rows'").fetchone()
        return int(row[0]) + 1 if row else 1

    def add(self, files: Iterable[tuple[SegmentRecord, list[NewRow]]], reason: str) -> int:
        """Put sealed files in force as one new version; returns it."""
        files = list(files)
        with self._change("add", reason, sum(len(rows) for _, rows in files)) as version:
            for record, rows in files:
                cursor = self._db.execute(
                    "INSERT INTO segments (file, rows, bytes, sha256, added) VALUES (?, ?, ?, ?, ?)",
                    (record.file, record.rows, record.bytes, record.sha256, version),
                )
                self._db.executemany(
                    "INSERT INTO rows (id, source_key, label, sha256, segment, place) VALUES (?, ?, ?, ?, ?, ?)",
                    [(r.id, r.source_key, r.label, r.sha256, cursor.lastrowid, r.place) for r in rows],
                )
        return version

    def withdraw(self, ids: Sequence[int], reason: str) -> int:
        """Take rows out of force as one new version; returns it."""
        with self._change("withdraw", reason, len(ids)) as version:
            self._db.executemany("UPDATE rows SET withdrawn = ? WHERE id = ?", [(version, row_id) for row_id in ids])
        return version

    def _ask(self, sql: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Rows of a statement that ends in IN, however many values there are."""
        for start in range(0, len(values), _BATCH):
            some = values[start : start + _BATCH]
            with self._asking():
                yield from self._db.execute(f"{sql} ({','.join('?' * len(some))})", some).fetchall()

    @contextmanager
    def _change(self, action: str, reason: str, changed: int) -> Iterator[int]:
        """One transaction, one version: all of it or none."""
        with self._asking():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                last = self.newest()
                version = last.version + 1
                in_force = last.in_force + (changed if action == "add" else -changed)
                self._db.execute(
                    "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)",
                    (version, _now(), action, reason, changed, in_force),
                )
                yield version
                self._disk.commit(self._db)
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """One thread at a time; what SQLite reports is raised in this package's words."""
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                named = _named(error, self._path)
                if named is None:
                    raise
                raise named from error

    def _check_format(self) -> None:
        with self._asking():
            application, found = (
                self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
        if application != _APPLICATION_ID:
            raise NoCollection(f"{self._path} is not a negindex catalogue; name the directory of a collection")
        if found > FORMAT:
            raise NewerFormat(
                f"{self._path.parent} has format {found}, and this negindex reads up to {FORMAT}; "
                "install a newer negindex"
            )

    def _read_meta(self) -> Meta:
        with self._asking():
            found = self._db.execute("SELECT key, value FROM meta").fetchall()
        try:
            stored = {key: json.loads(value) for key, value in found}
            return Meta(stored["set_id"], tuple(stored["shape"]), stored["space"], stored["dtype"])
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(
                f"{self._path} does not say what the collection is ({error!r}); restore it from a backup"
            ) from error


def _named(error: sqlite3.DatabaseError, path: Path) -> Exception | None:
    """What the caller can do something about; None for a mistake in this module."""
    primary = getattr(error, "sqlite_errorcode", -1) & 0xFF  # the rest says where in SQLite it happened
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):  # bytes, or tables, not ours
        return Damaged(f"{path} cannot be read ({error}); restore it from a backup")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Locked(f"{path} is held by another program ({error}); try again when it is done")
    if primary == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, f"{error}; make room, then try again", str(path))
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return OSError(errno.EIO, f"{error}; check the disk and its permissions, then try again", str(path))
    return None


def _connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=WAIT, check_same_thread=False
    )
    try:
        db.executescript("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

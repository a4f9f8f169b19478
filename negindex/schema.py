"""The tables of ``catalogue.sqlite``, and how it is opened."""

from __future__ import annotations

import errno
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from negindex.claim_rules import LIVE
from negindex.errors import Damaged, Locked

FORMAT = 5
READ = (4, FORMAT)  # formats that can be read as they are; a set that is opened is brought to the newest
APPLICATION_ID = 0x6E656769  # "negi"
WAIT = 10.0  # seconds that another program may hold the database

__all__ = [
    "APPLICATION_ID",
    "BY_DIGEST",
    "CLOSED",
    "DIGITS",
    "FORMAT",
    "IN_HOUSE",
    "LIVE",
    "PLACE",
    "READ",
    "SCHEMA",
    "connect",
    "named",
    "now",
    "schema_of",
    "to_newest",
]
CLOSED = ("withdrawn", "erased")
PLACE = "place"  # of the meta table: where rows lie, which is no part of what the set is
IN_HOUSE = "in-house"  # the regime of claims that ``add`` opens by itself

DIGITS = 8  # of a digest that its index holds: all 64 would be half of what an addition writes into the record
BY_DIGEST = f"substr(sha256, 1, {DIGITS})"  # what the index is over; statements must say it in these words
_DIGESTS = {4: "CREATE INDEX row_digest ON rows (sha256)", FORMAT: f"CREATE INDEX row_digest ON rows ({BY_DIGEST})"}

SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, at TEXT NOT NULL, action TEXT NOT NULL, claim INTEGER,
    changed INTEGER NOT NULL, in_force INTEGER NOT NULL, record TEXT NOT NULL, root TEXT NOT NULL
) STRICT;
CREATE INDEX claim_history ON versions (claim, version) WHERE claim IS NOT NULL;
CREATE TABLE tree (level INTEGER, place INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, place)) STRICT, WITHOUT ROWID;
CREATE TABLE notes (version INTEGER PRIMARY KEY REFERENCES versions, salt BLOB NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TABLE persons (version INTEGER PRIMARY KEY REFERENCES versions, salt BLOB NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TABLE checkpoints (
    version INTEGER PRIMARY KEY REFERENCES versions, signature TEXT NOT NULL, public_key TEXT NOT NULL
) STRICT;
CREATE TABLE segments (
    segment INTEGER PRIMARY KEY AUTOINCREMENT, file TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL, embedding INTEGER NOT NULL, first INTEGER, last INTEGER
) STRICT;
CREATE TABLE rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, source_key TEXT, label TEXT, sha256 TEXT, image_sha256 TEXT,
    pdq BLOB, quality INTEGER, salt BLOB, commitment TEXT NOT NULL,
    segment INTEGER REFERENCES segments, place INTEGER,
    added INTEGER,
    withdrawn INTEGER,
    erased INTEGER
) STRICT;
CREATE UNIQUE INDEX key_held ON rows (source_key) WHERE withdrawn IS NULL;
CREATE INDEX row_key ON rows (source_key) WHERE withdrawn IS NOT NULL;
{_DIGESTS[FORMAT]};
CREATE INDEX row_image ON rows (image_sha256) WHERE image_sha256 IS NOT NULL;
CREATE INDEX row_label ON rows (label) WHERE label IS NOT NULL;
CREATE INDEX row_place ON rows (segment, place);
CREATE INDEX withdrawn_rows ON rows (segment, withdrawn, place) WHERE withdrawn IS NOT NULL;
CREATE INDEX proposed_rows ON rows (segment, place) WHERE added IS NULL;
CREATE INDEX rows_without_bytes ON rows (withdrawn, added) WHERE segment IS NULL AND added IS NOT NULL;
CREATE TABLE thumbnails (row INTEGER PRIMARY KEY REFERENCES rows, png BLOB NOT NULL) STRICT;
CREATE TABLE claims (
    claim INTEGER PRIMARY KEY AUTOINCREMENT, regime TEXT NOT NULL, state TEXT NOT NULL, hold TEXT
) STRICT;
CREATE INDEX claim_state ON claims (state);
CREATE TABLE claim_rows (
    row INTEGER REFERENCES rows, claim INTEGER REFERENCES claims, opened INTEGER NOT NULL, closed INTEGER,
    PRIMARY KEY (row, claim)
) STRICT, WITHOUT ROWID;
CREATE INDEX open_rows ON claim_rows (claim, row) WHERE closed IS NULL;
CREATE INDEX closed_rows ON claim_rows (claim, row) WHERE closed IS NOT NULL;
CREATE TABLE claim_hashes (
    claim INTEGER REFERENCES claims, kind TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (digest, kind, claim)
) STRICT, WITHOUT ROWID;
CREATE INDEX pdq_hashes ON claim_hashes (claim) WHERE kind = 'pdq';
CREATE TABLE blocked (fingerprint TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE outstanding (
    version INTEGER NOT NULL, what TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (what, name, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE derived (
    file TEXT PRIMARY KEY, kind TEXT NOT NULL, kernel TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
    covers INTEGER NOT NULL, since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE backups (backup TEXT PRIMARY KEY, path TEXT NOT NULL, version INTEGER NOT NULL, at TEXT NOT NULL) STRICT;
"""

_PRAGMAS = """
PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON; PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -32768; PRAGMA wal_autocheckpoint = 8192;
CREATE TEMP TABLE some (id INTEGER PRIMARY KEY);
"""


def schema_of(number: int) -> str:
    """The tables as a format that can be read has them."""
    return SCHEMA.replace(_DIGESTS[FORMAT], _DIGESTS[number])


def to_newest(db: sqlite3.Connection) -> None:
    """Bring the tables of an older format to the newest, within the caller's transaction."""
    db.execute("DROP INDEX row_digest")
    db.execute(_DIGESTS[FORMAT])
    db.execute(f"PRAGMA user_version = {FORMAT}")


def connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    """Open the database as every part of negindex does: durable commits, deleted bytes overwritten."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=WAIT, check_same_thread=False
    )
    try:
        db.executescript(_PRAGMAS)
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def named(error: sqlite3.DatabaseError, path: Path) -> Exception | None:
    """What the caller can do something about; None for a mistake in this package."""
    primary = getattr(error, "sqlite_errorcode", -1) & 0xFF  # the rest says where in SQLite it happened
    undecodable = not hasattr(error, "sqlite_errorcode") and "decode" in str(error)  # text that is no text any more
    if undecodable or primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return Damaged(f"{path} cannot be read ({error}); restore it from a backup")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Locked(f"{path} is held by another program ({error}); try again when it is done")
    if primary == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, f"{error}; make room, then try again", str(path))
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return OSError(errno.EIO, f"{error}; check the disk and its permissions, then try again", str(path))
    return None


def now() -> str:
    """This moment as records state it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")

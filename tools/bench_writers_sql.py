"""For ``negindex bench writers``: the catalogue's transaction alone, in SQLite as sets have it, and in PostgreSQL.

The same statements on the same tables and indices: a change takes its place in the one order of versions, writes its
record, its note and two nodes of the log's tree, and the rows that it is about. Segments are not written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from negindex.schema import BY_DIGEST, DIGITS, LIVE, SCHEMA, connect, now
from negindex.tools.bench_writers import Changing, Way

SPACE = "negindex_bench"  # the schema that is made and dropped again
_LOCK = 0x6E656769  # of the one order of versions
_RECORD = '{"action": "add", "body": "' + 300 * "x" + '"}'  # as long as a record is
_HASH = bytes(32)

Run = Callable[..., Any]  # of a statement and its values; gives the rows it found


def sqlite_way() -> Way:
    """SQLite: WAL, synchronous FULL, deleted bytes overwritten."""
    return Way("catalogue alone, SQLite", _sqlite_made, _sqlite_writer, _sqlite_left)


def postgres_way(dsn: str) -> Way:
    """PostgreSQL, as it is set up there, with synchronous_commit on."""
    return Way(
        "catalogue alone, PostgreSQL",
        partial(_postgres_made, dsn),
        partial(_postgres_writer, dsn),
        partial(_postgres_left, dsn),
    )


def schema_for_postgres() -> str:
    """The tables and indices of a set's record, in PostgreSQL's words."""
    told = re.sub(r"\bSTRICT\b,?|,?\s*WITHOUT ROWID|\bAUTOINCREMENT\b", "", SCHEMA)
    return told.replace("INTEGER", "BIGINT").replace("BLOB", "BYTEA")


def _changing(run: Run, begin: Callable[[], Any], end: Callable[[], Any], number: int) -> Changing:
    """In turn a row that comes, and the same row that goes, but for every tenth time."""
    standing: list[tuple[str, int]] = []

    def change(turn: int) -> tuple[list[str], list[str]]:
        begin()
        version, in_force = run("SELECT version, in_force FROM versions ORDER BY version DESC LIMIT 1")[0]
        version, at, gone = version + 1, now(), bool(standing)
        run(
            "INSERT INTO versions VALUES (?, ?, ?, NULL, 1, ?, ?, ?)",
            version, at, "withdraw" if gone else "add", in_force + (-1 if gone else 1), _RECORD, _HASH.hex(),
        )  # fmt: skip
        run("INSERT INTO notes VALUES (?, ?, ?)", version, _HASH, '{"reason": "benchmark"}')
        run("INSERT INTO tree VALUES (0, ?, ?)", version, _HASH)
        if version % 2:
            run("INSERT INTO tree VALUES (1, ?, ?)", version // 2, _HASH)
        if gone:
            key, row = standing.pop()
            run("UPDATE rows SET withdrawn = ? WHERE id = ?", version, row)
            run("UPDATE claim_rows SET closed = ? WHERE row = ? AND closed IS NULL", version, row)
            run(
                "UPDATE claims SET state = 'withdrawn' WHERE claim = ? AND NOT EXISTS "
                "(SELECT 1 FROM claim_rows WHERE claim = ? AND closed IS NULL)", row, row,
            )  # fmt: skip
            end()
            return [], [key]
        key, row = f"{number}-{turn}", version  # ids follow the one order too
        digest = hashlib.sha256(key.encode()).hexdigest()
        run("SELECT id FROM rows WHERE withdrawn IS NULL AND source_key = ?", key)
        run(f"SELECT id FROM rows WHERE {BY_DIGEST} = ? AND sha256 = ?", digest[:DIGITS], digest)
        run("INSERT INTO segments VALUES (?, ?, 1, 2048, ?, 0, ?, ?)", row, f"{row}.h5", digest, version, version)
        run("INSERT INTO claims VALUES (?, 'in-house', ?, NULL)", row, LIVE[0])
        run(
            "INSERT INTO rows VALUES (?, ?, NULL, ?, NULL, NULL, NULL, ?, ?, ?, 0, ?, NULL, NULL)",
            row, key, digest, _HASH, digest, row, version,
        )  # fmt: skip
        run("INSERT INTO claim_rows VALUES (?, ?, ?, NULL)", row, row, version)
        end()
        if turn % 20:
            standing.append((key, row))
        return [key], []

    return change


_FIRST = "INSERT INTO versions VALUES (0, '', 'create', NULL, 0, 0, '', '')"
_LEFT = "SELECT source_key FROM rows WHERE withdrawn IS NULL"


@contextmanager
def _sqlite_made(place: Path) -> Iterator[None]:
    with closing(connect(place / "catalogue.sqlite", mode="rwc")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"{SCHEMA}; {_FIRST}")
    yield


@contextmanager
def _sqlite_writer(place: Path, number: int) -> Iterator[Changing]:
    from negindex.disk import writer_lock

    with closing(connect(place / "catalogue.sqlite")) as db:
        taken = writer_lock(place)

        def begin() -> None:
            nonlocal taken
            taken = writer_lock(place)
            taken.__enter__()
            db.execute("BEGIN IMMEDIATE")

        def end() -> None:
            db.execute("COMMIT")
            taken.__exit__(None, None, None)

        yield _changing(lambda sql, *values: db.execute(sql, values).fetchall(), begin, end, number)


def _sqlite_left(place: Path) -> set[str]:
    with closing(connect(place / "catalogue.sqlite")) as db:
        return {key for (key,) in db.execute(_LEFT)}


@contextmanager
def _postgres_made(dsn: str, place: Path) -> Iterator[None]:
    with _postgres(dsn) as db:
        db.execute(f"DROP SCHEMA IF EXISTS {SPACE} CASCADE")
        db.execute(f"CREATE SCHEMA {SPACE}")
        db.execute(schema_for_postgres())
        db.execute(_FIRST)
    yield


@contextmanager
def _postgres_writer(dsn: str, place: Path, number: int) -> Iterator[Changing]:
    with _postgres(dsn) as db:

        def run(sql: str, *values: Any) -> Any:
            told = db.execute(sql.replace("?", "%s"), values)
            return told.fetchall() if told.description else []

        def begin() -> None:
            db.execute("BEGIN")
            db.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))

        yield _changing(run, begin, lambda: db.execute("COMMIT"), number)


def _postgres_left(dsn: str, place: Path) -> set[str]:
    with _postgres(dsn) as db:
        left = {key for (key,) in db.execute(_LEFT).fetchall()}
        db.execute(f"DROP SCHEMA {SPACE} CASCADE")
    return left


@contextmanager
def _postgres(dsn: str) -> Iterator[Any]:
    try:
        import psycopg
    except ImportError as error:
        from negindex.errors import NotThere

        raise NotThere("psycopg is not installed; `pip install psycopg[binary]`, or leave --postgres out") from error
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("SET client_min_messages = warning")
        db.execute("SET synchronous_commit = on")
        db.execute(f"SET search_path = {SPACE}")
        yield db

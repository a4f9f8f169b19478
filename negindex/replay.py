"""A log that goes on where a backup ends, and what of it can be done again: all but rows' bytes and people's words.

A record names rows and claims by number, so their states, links, withdrawals and erasures follow from it. What
it does not hold is lost: the bytes and keys of rows that were stored later, and the notes of later versions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from negindex.change import Change
from negindex.errors import Damaged, NotAllowed, NotThere
from negindex.keys import Key
from negindex.log import Record, ids
from negindex.schema import IN_HOUSE, LIVE
from negindex.states import Meta, Note

LOST = ""  # the commitment of a row that was stored after the backup: the log holds only their Merkle root

_LIVE = ",".join(f"'{state}'" for state in LIVE)
_SOME = "(SELECT id FROM temp.some)"
_NOT_OPEN = """NOT EXISTS (SELECT 1 FROM claim_rows JOIN claims USING (claim)
               WHERE row = rows.id AND closed IS NULL AND state NOT IN ('withdrawn', 'erased'))"""


def read_log(path: Path) -> list[Record]:
    """The records in a file, one canonical JSON a line, as `negindex log SET --json` prints them.

    Raises NotThere, and Damaged that names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise NotThere(f"{path} is not there; name a file that `negindex log SET --json` wrote") from None
    except UnicodeDecodeError as error:
        raise Damaged(f"{path} is no log ({error}); name a file that `negindex log SET --json` wrote") from error
    records = []
    for number, line in enumerate(filter(None, lines), 1):
        try:
            records.append(Record.from_json(line))
        except Damaged as error:
            raise Damaged(f"{path}, line {number}: {error}") from error
    return records


def later(records: Sequence[Record], old: Sequence[Record]) -> list[Record]:
    """Those of ``records`` that come after ``old``, the whole log of a backup; they must go on where it ends.

    Raises NotAllowed that names the first version that differs or does not follow.
    """
    known, before, found = {record.version: record for record in old}, old[-1], []
    for record in records:
        if record.version in known and record != known[record.version]:
            raise NotAllowed(f"the log is not of this backup: version {record.version} differs; give the set's own log")
        if record.version in known:
            continue
        if (record.version, record.previous) != (before.version + 1, before.digest):
            raise NotAllowed(
                f"the log does not go on where the backup does: version {record.version} does not follow version "
                f"{before.version}; give the set's own log, whole"
            )
        found.append(record)
        before = record
    return found


def bytes_gone(records: Iterable[Record]) -> set[int]:
    """Rows whose bytes records say were erased or given up."""
    return {i for record in records for i in (*ids(record.erased), *ids(record.dropped))}


class Replay(Change):
    """A version that happened before, or the ``restore`` that closes the list of them."""

    def again(self, record: Record) -> None:
        """Do what a record says, and write it as it was."""
        self._db.executemany("INSERT INTO rows (id, commitment) VALUES (?, ?)", [(i, LOST) for i in ids(record.stored)])
        if record.claim is not None:
            self._bring_claim(record, record.claim)
        self._bring_links(record)
        self._set(ids(record.entered), "added = ?", self.version)
        self._leave(ids(record.left))
        self._refuse(record)
        self._mark_files(ids(record.entered))
        self._leave(ids(record.dropped))
        self.drop(ids(record.dropped))
        if record.erased:
            self.erase(ids(record.erased))
        self._write(record)

    def lose(self, rows: Sequence[int]) -> None:
        """Take rows out whose bytes are lost; no claim names them any more, and their numbers stay."""
        self._choose(rows)
        self._note("left", self._ids(f"id IN {_SOME} AND added IS NOT NULL AND withdrawn IS NULL"))
        self._note("unlinked", self._ids(f"id IN {_SOME} AND id IN (SELECT row FROM claim_rows WHERE closed IS NULL)"))
        self._leave(rows)
        self.drop(rows)
        self._unlink_all(rows)

    # -- inside ----------------------------------------------------------------------------

    def _bring_claim(self, record: Record, claim: int) -> None:
        self._db.execute(
            """INSERT INTO claims VALUES (?, ?, ?, ?)
               ON CONFLICT (claim) DO UPDATE SET state = excluded.state, hold = excluded.hold""",
            (claim, record.regime, record.state, record.hold),
        )
        if record.state == "erased":
            self.forget_claim(claim)

    def _bring_links(self, record: Record) -> None:
        unlinked = ids(record.unlinked)
        if record.action == "restore":
            self._unlink_all(unlinked)
        elif record.claim is None:
            self.close_in_house(unlinked)
        else:
            self.unlink(record.claim, unlinked)
        if record.claim is not None:
            self.link(record.claim, ids(record.linked))

    def _unlink_all(self, rows: Sequence[int]) -> None:
        """Have no claim name the rows; an in-house claim on nothing else is withdrawn."""
        self._choose(rows)
        sql = f"SELECT DISTINCT claim FROM claim_rows WHERE closed IS NULL AND row IN {_SOME}"
        affected = [claim for (claim,) in self._db.execute(sql)]
        self._db.execute(f"UPDATE claim_rows SET closed = ? WHERE closed IS NULL AND row IN {_SOME}", (self.version,))
        self._db.executemany(
            f"""UPDATE claims SET state = 'withdrawn' WHERE claim = ?1 AND regime = ?2 AND state IN ({_LIVE})
                AND NOT EXISTS (SELECT 1 FROM claim_rows WHERE claim = ?1 AND closed IS NULL)""",
            [(claim, IN_HOUSE) for claim in affected],
        )

    def _leave(self, rows: Iterable[int]) -> None:
        self._set(rows, "withdrawn = coalesce(withdrawn, ?)", self.version)

    def _refuse(self, record: Record) -> None:
        """Rows that were never in force, and that no open claim names any more: the log does not list them."""
        sql = "SELECT row FROM claim_rows WHERE claim = ? AND (closed IS NULL OR closed = ?)"
        named = [i for (i,) in self._db.execute(sql, (record.claim, self.version))]
        self._choose([*named, *ids(record.unlinked)])
        self._leave(self._ids(f"id IN {_SOME} AND added IS NULL AND withdrawn IS NULL AND {_NOT_OPEN}"))


def bring_up(
    db: sqlite3.Connection, meta: Meta, records: Sequence[Record], note: Note, key: Key | None = None
) -> Record:
    """In one transaction of the caller's: do what later records say, then write the version ``restore``.

    Out of force with it are rows that were stored later, whose bytes are lost, and rows that were taken out of the
    backup for an erasure that these records do not tell of. Returns its record.
    """
    sql = "SELECT what, CAST(name AS INTEGER) FROM outstanding WHERE what IN ('row', 'claim') ORDER BY 1, 2"
    taken = db.execute(sql).fetchall()
    db.execute("DELETE FROM outstanding WHERE what IN ('row', 'claim')")
    for record in records:
        Replay(db, record.action, Note(), key=None, meta=meta).again(record)
    _check_count(db, records)
    for claim in [number for what, number in taken if what == "claim" and _open(db, number)]:
        change = Replay(db, "erase", note, key=key, meta=meta)
        change.move(claim)
        change.forget_claim(claim)
        change.finish()
    change = Replay(db, "restore", note, key=key, meta=meta)
    gone = bytes_gone(records)
    change.lose([i for record in records for i in ids(record.stored) if i not in gone])
    erased = [number for what, number in taken if what == "row" and _unerased(db, number)]
    if erased:
        change.erase(erased)
    change.finish()
    return Record.from_json(db.execute("SELECT record FROM versions ORDER BY version DESC LIMIT 1").fetchone()[0])


def _open(db: sqlite3.Connection, claim: int) -> bool:
    sql = "SELECT 1 FROM claims WHERE claim = ? AND state != 'erased'"
    return db.execute(sql, (claim,)).fetchone() is not None


def _unerased(db: sqlite3.Connection, row: int) -> bool:
    return db.execute("SELECT 1 FROM rows WHERE id = ? AND erased IS NULL", (row,)).fetchone() is not None


def _check_count(db: sqlite3.Connection, records: Sequence[Record]) -> None:
    """What came of the records must be what the last of them says."""
    sql = "SELECT count(*) FROM rows WHERE added IS NOT NULL AND withdrawn IS NULL"
    (found,) = db.execute(sql).fetchone()
    if records and found != records[-1].in_force:
        raise Damaged(
            f"the log says {records[-1].in_force} rows in force at version {records[-1].version}, and what it tells "
            f"comes to {found}; export it again"
        )

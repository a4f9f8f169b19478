"""One change of a collection: what is written in one transaction, and the log record that says so."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from hashlib import sha256
from typing import Any

from negindex.binding import Binding, NewRows, root_over
from negindex.bulk import insert_rows
from negindex.checkpoint import Checkpoint
from negindex.errors import OutOfRange
from negindex.keys import Key
from negindex.log import Record, canonical, commitment, count, new_salt, ranges, root_of
from negindex.merkle import Tree
from negindex.schema import IN_HOUSE, LIVE, PLACE, now
from negindex.states import DerivedRecord, Meta, Note, Place, SegmentRecord

_LIVE = ",".join(f"'{state}'" for state in LIVE)
_LINKED = "SELECT 1 FROM claim_rows JOIN claims USING (claim) WHERE row = rows.id AND closed IS NULL AND state"
_HAS_LIVE = f"EXISTS ({_LINKED} IN ({_LIVE}))"
_HAS_OPEN = f"EXISTS ({_LINKED} NOT IN ('withdrawn', 'erased'))"
_SOME = "id IN (SELECT id FROM temp.some)"
_ORPHAN = "kind = 'index' AND kernel NOT IN (SELECT kernel FROM derived WHERE kind = 'calibration')"
_SAW = f"EXISTS (SELECT 1 FROM rows WHERE {_SOME} AND added <= covers AND (withdrawn IS NULL OR withdrawn > covers))"


class Change:
    """A transaction under way. What its methods do adds up to the version's record, which ``finish`` writes."""

    def __init__(self, db: sqlite3.Connection, action: str, note: Note, *, key: Key | None, meta: Meta) -> None:
        self._db, self._key, self._meta = db, key, meta
        self.action, self.note = action, note
        found = db.execute(
            "SELECT version, at, in_force, record FROM versions ORDER BY version DESC LIMIT 1"
        ).fetchone()
        self.version: int = found[0] + 1 if found else 0
        self.at = max(now(), found[1]) if found else now()  # a clock set back does not disorder the log
        self._in_force: int = found[2] if found else 0
        self._previous = Record.from_json(found[3]).digest if found else ""
        self._claim: int | None = None
        self._moved: dict[str, list[int]] = {}
        self._under_way: list[tuple[int, Callable[[], SegmentRecord]]] = []  # files that may be written still
        self._bindings: list[Binding] = []  # of the rows that are stored, a file's at a time

    # -- rows ------------------------------------------------------------------------------

    def store(self, sealed: Sequence[tuple[Callable[[], SegmentRecord], NewRows]], *, in_force: bool = False) -> None:
        """Take files and their rows into the record; ``finish`` waits for the files.

        in_force: from this version on, since a live claim comes to name them all in this change; else not until
        ``reckon`` finds one.
        """
        for finished, rows in sealed:
            added = self.version if in_force else None
            segment = self.place(SegmentRecord(0, f"{rows.first} under way", len(rows.source_keys), 0, "", 0))
            self._store(segment, rows, added)
            self._db.execute("UPDATE segments SET (first, last) = (?1, ?1) WHERE segment = ?2", (added, segment))
            self._under_way.append((segment, finished))
            self._note("stored", rows.ids)
            self._note("entered", rows.ids if in_force else ())

    def _store(self, segment: int, rows: NewRows, added: int | None) -> None:
        self._bindings.append(rows.binding)
        insert_rows(self._db, rows, segment, added)
        seen = zip(rows.ids, rows.sources, strict=True)
        shown = [(row, one.thumbnail) for row, one in seen if one.thumbnail is not None]
        self._db.executemany("INSERT INTO thumbnails VALUES (?, ?)", shown)

    def reckon(self, ids: Iterable[int]) -> None:
        """Bring rows in line with the claims on them: in force while one is live, stored while one is open."""
        self._choose(ids)
        entering = self._ids(f"{_SOME} AND added IS NULL AND withdrawn IS NULL AND {_HAS_LIVE}")
        leaving = self._ids(f"{_SOME} AND added IS NOT NULL AND withdrawn IS NULL AND NOT {_HAS_LIVE}")
        refused = self._ids(f"{_SOME} AND added IS NULL AND withdrawn IS NULL AND NOT {_HAS_OPEN}")
        self._set(entering, "added = ?", self.version)
        self._set(leaving + refused, "withdrawn = ?", self.version)
        self._mark_files(entering)
        self._note("entered", entering)
        self._note("left", leaving)

    def erase(self, ids: Sequence[int], fingerprints: Sequence[str] = ()) -> None:
        """Forget rows: what they were and where they lay. Their files are replaced by the caller."""
        self._choose(ids)
        self._outdate(_SAW)
        self._note("left", self._ids(f"{_SOME} AND added IS NOT NULL AND withdrawn IS NULL"))
        self._take_traces()
        self._db.execute(
            f"UPDATE rows SET withdrawn = coalesce(withdrawn, ?1), erased = ?1 WHERE {_SOME}", (self.version,)
        )
        self._db.execute(
            "UPDATE claim_rows SET closed = ? WHERE closed IS NULL AND row IN (SELECT id FROM temp.some)",
            (self.version,),
        )
        self.keep_out((f, self.version) for f in fingerprints)
        self._note("erased", ids)
        sql = "SELECT DISTINCT claim FROM claim_rows WHERE row IN (SELECT id FROM temp.some)"
        for (claim,) in self._db.execute(sql).fetchall():
            self._forget_if_empty(claim)

    def purge(self, rows: Mapping[int, int], claims: Mapping[int, int]) -> None:
        """In a backup: take away what rows and claims were, {number: the version of the set that erased it}.

        The backup's log says nothing of it, so that the set's own log still continues it; what was taken is noted
        as outstanding, for a restore to record.
        """
        self._choose(rows)
        self._outdate(_SAW)
        self._take_traces()
        for claim in claims:
            self._take_words(claim)
        for what, taken in (("row", rows), ("claim", claims)):
            for number, version in taken.items():
                self.owe(what, str(number), version)

    def drop(self, ids: Sequence[int]) -> None:
        """Give up the bytes of rows that are out of force; what they were stays on record."""
        self._choose(ids)
        self._outdate(f"kind = 'index' AND {_SAW}")
        self._set(ids, "segment = ?, place = NULL", None)
        self._note("dropped", ids)

    # -- files -----------------------------------------------------------------------------

    def place(self, file: SegmentRecord) -> int:
        """Name a sealed file in the record; returns its number."""
        cursor = self._db.execute(
            "INSERT INTO segments (file, rows, bytes, sha256, embedding) VALUES (?, ?, ?, ?, ?)",
            (file.file, file.rows, file.bytes, file.sha256, file.embedding),
        )
        return int(cursor.lastrowid or 0)

    def replace(self, old: Sequence[SegmentRecord], new: Sequence[tuple[SegmentRecord, Sequence[int]]]) -> None:
        """Have rows lie in new files, ids in order, instead of the old ones; these become outstanding."""
        for file, ids in new:
            segment = self.place(file)
            self._db.executemany(
                "UPDATE rows SET segment = ?, place = ? WHERE id = ?", [(segment, p, i) for p, i in enumerate(ids)]
            )
            self._db.execute(
                """UPDATE segments SET (first, last) = (SELECT min(added), max(added) FROM rows
                   WHERE segment = ?1) WHERE segment = ?1""",
                (segment,),
            )
        self._db.executemany("DELETE FROM segments WHERE segment = ?", [(file.segment,) for file in old])
        version = self.version if self.action else 0
        for file in old:
            self.owe("file", file.file, version)

    def put_rows_at(self, place: Place) -> None:
        """Have new files of rows go to a place."""
        if place == Place():
            self._db.execute("DELETE FROM meta WHERE key = ?", (PLACE,))
        else:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (PLACE, json.dumps(place)))

    def moved(self, files: Iterable[tuple[SegmentRecord, str]]) -> None:
        """Have files, as they are, lie under other names; what lies under the old ones becomes outstanding."""
        for file, name in files:
            self._db.execute("UPDATE segments SET file = ? WHERE segment = ?", (name, file.segment))
            self.owe("file", file.file, self.version if self.action else 0)

    def brought_home(self) -> None:
        """In a copy: have all files lie in its own folder."""
        self.put_rows_at(Place())
        for segment, file in self._db.execute("SELECT segment, file FROM segments").fetchall():
            name = file.rpartition("/")[2]
            self._db.execute("UPDATE segments SET file = ? WHERE segment = ?", (name, segment))

    def derive(self, files: Iterable[DerivedRecord]) -> None:
        """Name derived files in the record; an index takes the place of those before it."""
        for file in files:
            if file.kind == "index":
                self._outdate("kind = 'index'", 0)
            since = self.version if self.action else self.version - 1
            self._db.execute("INSERT INTO derived VALUES (?, ?, ?, ?, ?, ?, ?)", file._replace(since=since))

    def leave_out_indices(self) -> None:
        """In a copy: name no index, since their files are not copied."""
        self._db.execute("DELETE FROM derived WHERE kind = 'index'")

    def _outdate(self, which: str, version: int | None = None) -> None:
        """Name some derived files no more, nor an index whose calibration goes; they become outstanding."""
        version = (self.version if self.action else 0) if version is None else version
        for where in (which, _ORPHAN):
            for (file,) in self._db.execute(f"SELECT file FROM derived WHERE {where}").fetchall():
                self._db.execute("DELETE FROM derived WHERE file = ?", (file,))
                self.owe("derived", file, version)

    def owe(self, what: str, name: str, version: int | None = None) -> None:
        """Note something that holds erased bytes still, until ``settle`` has seen to it."""
        self._db.execute(
            "INSERT OR IGNORE INTO outstanding VALUES (?, ?, ?)",
            (self.version if version is None else version, what, name),
        )

    def settled(self, what: str, name: str) -> None:
        """Note that it is done."""
        self._db.execute("DELETE FROM outstanding WHERE what = ? AND name = ?", (what, name))

    def keep_out(self, fingerprints: Iterable[tuple[str, int]]) -> None:
        """Refuse content later by its keyed fingerprint; each with the version that erased it."""
        self._db.executemany("INSERT OR IGNORE INTO blocked VALUES (?, ?)", fingerprints)

    def backed_up(self, backup: str, path: str, version: int, at: str) -> None:
        """Note where a backup is, or will be: ``at`` is "" until it is finished."""
        self._db.execute("INSERT OR REPLACE INTO backups VALUES (?, ?, ?, ?)", (backup, path, version, at))

    def no_backup(self, backup: str, path: str) -> None:
        """Note that a backup is no more, and nothing owed to it."""
        self._db.execute("DELETE FROM backups WHERE backup = ?", (backup,))
        self.settled("backup", path)

    # -- claims ----------------------------------------------------------------------------

    def open_claim(self, regime: str, state: str, hashes: Iterable[tuple[str, str]] = ()) -> int:
        """Open a claim, and make this version its first; returns its number."""
        cursor = self._db.execute("INSERT INTO claims (regime, state) VALUES (?, ?)", (regime, state))
        self._claim = int(cursor.lastrowid or 0)
        self._db.executemany(
            "INSERT OR IGNORE INTO claim_hashes VALUES (?, ?, ?)", [(self._claim, kind, d) for kind, d in hashes]
        )
        return self._claim

    def move(self, claim: int, state: str | None = None, hold: str | None = None) -> None:
        """Make this version one of a claim's history; bring it, or its hold, into another state where one is named."""
        self._claim = claim
        if state is not None:
            self._db.execute("UPDATE claims SET state = ? WHERE claim = ?", (state, claim))
        if hold is not None:
            self._db.execute("UPDATE claims SET hold = ? WHERE claim = ?", (hold or None, claim))

    def link(self, claim: int, ids: Sequence[int]) -> None:
        """Have a claim name rows."""
        self._db.executemany(
            """INSERT INTO claim_rows (row, claim, opened) SELECT id, ?, ? FROM rows WHERE id BETWEEN ? AND ?
               ON CONFLICT (row, claim) DO UPDATE SET opened = excluded.opened, closed = NULL""",
            [(claim, self.version, first, last) for first, last in ranges(ids)],
        )
        self._note("linked", ids)

    def unlink(self, claim: int, ids: Sequence[int]) -> None:
        """Have a claim no longer name rows."""
        self._db.executemany(
            "UPDATE claim_rows SET closed = ? WHERE row = ? AND claim = ? AND closed IS NULL",
            [(self.version, i, claim) for i in ids],
        )
        self._note("unlinked", ids)

    def close_in_house(self, ids: Sequence[int]) -> None:
        """Close the in-house claims on rows; a claim that names no row any more is withdrawn."""
        self._choose(ids)
        sql = """SELECT claim FROM claims WHERE regime = ? AND claim IN (SELECT claim FROM claim_rows
                 WHERE closed IS NULL AND row IN (SELECT id FROM temp.some)) ORDER BY claim"""
        affected = [claim for (claim,) in self._db.execute(sql, (IN_HOUSE,))]
        for claim in affected:
            self._db.execute(
                """UPDATE claim_rows SET closed = ? WHERE claim = ? AND closed IS NULL AND row IN
                   (SELECT id FROM temp.some)""",
                (self.version, claim),
            )
            self._db.execute(
                """UPDATE claims SET state = 'withdrawn' WHERE claim = ?1 AND NOT EXISTS
                   (SELECT 1 FROM claim_rows WHERE claim = ?1 AND closed IS NULL)""",
                (claim,),
            )
        if len(affected) == 1:
            self._claim = affected[0]
        self._note("unlinked", ids)

    def forget_claim(self, claim: int) -> None:
        """Close a claim as erased, and take away its words: what it told, who told it, the hashes that it named."""
        self._take_words(claim)
        self._db.execute("UPDATE claims SET state = 'erased', hold = NULL WHERE claim = ?", (claim,))

    def _take_words(self, claim: int) -> None:
        for table in ("notes", "persons"):
            self._db.execute(
                f"DELETE FROM {table} WHERE version IN (SELECT version FROM versions WHERE claim = ?)", (claim,)
            )
        self._db.execute("DELETE FROM claim_hashes WHERE claim = ?", (claim,))

    def _forget_if_empty(self, claim: int) -> None:
        """A claim whose rows are all erased is erased."""
        sql = "SELECT 1 FROM claim_rows JOIN rows ON rows.id = row WHERE claim = ? AND erased IS NULL LIMIT 1"
        if self._db.execute(sql, (claim,)).fetchone() is None:
            self.forget_claim(claim)

    # -- the record ------------------------------------------------------------------------

    def finish(self) -> None:
        """Write the record, its notes, the tree and the checkpoint, once every file that it names is sealed."""
        for segment, finished in self._under_way:
            file = finished()
            self._db.execute(
                "UPDATE segments SET file = ?, bytes = ?, sha256 = ?, embedding = ? WHERE segment = ?",
                (file.file, file.bytes, file.sha256, file.embedding, segment),
            )
        root = self._write(self._record())
        for table, (salt, body) in self._kept.items():
            self._db.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", (self.version, salt, canonical(body)))
        if self._key is not None:
            signed = Checkpoint(self._meta.set_id, self.version, root, self.at).signed(self._key)
            self._db.execute(
                "INSERT INTO checkpoints VALUES (?, ?, ?)", (self.version, signed.signature, signed.public_key)
            )

    def _write(self, record: Record) -> str:
        """Put a record into the log and its tree; returns the log's root, hex."""
        said = record.to_json()
        root = Tree(Nodes(self._db), self.version).append(said.encode()).hex()
        self._db.execute(
            "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.version, record.at, record.action, record.claim, record.changed, record.in_force, said, root),
        )
        return root

    def _record(self) -> Record:
        said = {"notes": self.note.body(), "persons": dict(self.note.person)}
        self._kept = {table: (new_salt(), body) for table, body in said.items() if body}
        sealed = {table: commitment(salt, body) for table, (salt, body) in self._kept.items()}
        moved = {name: ranges(ids) for name, ids in self._moved.items() if ids}
        regime, state, hold = self._state()
        return Record(
            self.version,
            self.at,
            self.action,
            self._in_force + count(moved.get("entered", ())) - count(moved.get("left", ())),
            self._previous,
            self._claim,
            regime,
            state,
            hold,
            stored_root=root_over(self._bindings),
            kept_out=self._kept_out(),
            note=sealed.get("notes", ""),
            person=sealed.get("persons", ""),
            about=about(self._meta) if self.version == 0 else "",
            **moved,
        )

    def _state(self) -> tuple[str | None, str | None, str | None]:
        if self._claim is None:
            return None, None, None
        found = self._db.execute("SELECT regime, state, hold FROM claims WHERE claim = ?", (self._claim,)).fetchone()
        return found[0], found[1], found[2]

    def _kept_out(self) -> str:
        if "erased" not in self._moved and self.action != "restore":
            return ""
        self._db.execute("UPDATE blocked SET version = ?1 WHERE version > ?1", (self.version,))  # a backup had them
        sql = "SELECT fingerprint FROM blocked WHERE version = ? ORDER BY fingerprint"
        left = [fingerprint for (fingerprint,) in self._db.execute(sql, (self.version,))]
        return root_of(left) if left else ""

    # -- inside ----------------------------------------------------------------------------

    def _mark_files(self, entered: Sequence[int]) -> None:
        """Files know the versions at which their rows came into force."""
        self._choose(entered)
        self._db.execute(
            f"""UPDATE segments SET first = coalesce(first, ?1), last = ?1
                WHERE segment IN (SELECT segment FROM rows WHERE {_SOME})""",
            (self.version,),
        )

    def _take_traces(self) -> None:
        """Of the chosen rows, take away what they were and where they lay."""
        self._db.execute("DELETE FROM thumbnails WHERE row IN (SELECT id FROM temp.some)")
        self._db.execute(
            f"""UPDATE rows SET source_key = NULL, label = NULL, sha256 = NULL, image_sha256 = NULL, pdq = NULL,
                quality = NULL, salt = NULL, segment = NULL, place = NULL WHERE {_SOME}"""
        )

    def _choose(self, ids: Iterable[int]) -> None:
        self._db.execute("DELETE FROM temp.some")
        self._db.executemany("INSERT OR IGNORE INTO temp.some VALUES (?)", [(i,) for i in ids])

    def _ids(self, where: str) -> list[int]:
        return [i for (i,) in self._db.execute(f"SELECT id FROM rows WHERE {where} ORDER BY id")]

    def _set(self, ids: Iterable[int], what: str, value: Any) -> None:
        self._db.executemany(f"UPDATE rows SET {what} WHERE id = ?", [(value, i) for i in ids])

    def _note(self, name: str, ids: Iterable[int]) -> None:
        self._moved.setdefault(name, []).extend(ids)


def about(meta: Meta) -> str:
    """What the log's first record says: what the collection is, and the sha256 of its secret, 64 random hex digits."""
    return canonical(meta.about() | {"secret_sha256": sha256(meta.secret.encode()).hexdigest()})


class Nodes(MutableMapping[tuple[int, int], bytes]):
    """The nodes of the log's Merkle tree, kept in the table; they are never taken away."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __getitem__(self, at: tuple[int, int]) -> bytes:
        found = self._db.execute("SELECT hash FROM tree WHERE level = ? AND place = ?", at).fetchone()
        if found is None:
            raise KeyError(at)
        return bytes(found[0])

    def __setitem__(self, at: tuple[int, int], value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO tree VALUES (?, ?, ?)", (*at, value))

    def __delitem__(self, at: tuple[int, int]) -> None:
        raise OutOfRange(f"node {at}: a log only grows; restore the collection from a backup to go back")

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from self._db.execute("SELECT level, place FROM tree ORDER BY level, place")

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM tree").fetchone()[0])

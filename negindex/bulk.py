"""Many rows into the table of rows by few statements: one by one they would take twice the time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from negindex.binding import NewRows
from negindex.states import Provenance

_CELLS_AT_ONCE = 1000  # rows whose cells one statement binds; SQLite takes 32,766 values
_COLUMNS_AT_ONCE = 1 << 16  # rows whose columns it binds, which are held in memory once more
_NOTHING = Provenance()
_BARE = """
INSERT INTO rows (id, source_key, label, sha256, salt, commitment, segment, place, added)
SELECT ?1 + key, value, ?2, CAST(substr(?3, 1 + 64 * key, 64) AS TEXT), substr(?4, 1 + 16 * key, 16),
       CAST(substr(?5, 1 + 64 * key, 64) AS TEXT), ?6, ?7 + key, ?8
FROM json_each(?9)"""


def insert_rows(db: sqlite3.Connection, rows: NewRows, segment: int, added: int | None) -> None:
    """Put the rows of a file on record. added: the version that they come into force at, if they do."""
    is_plain = not any("\0" in key for key in rows.source_keys)  # SQLite ends text there that it reads from JSON
    if is_plain and len(set(rows.labels)) == 1 and rows.sources.count(_NOTHING) == len(rows.sources):
        _insert_bare(db, rows, segment, added)
    else:
        _insert_cells(db, rows, segment, added)


def _insert_bare(db: sqlite3.Connection, rows: NewRows, segment: int, added: int | None) -> None:
    """Where all have one label, and nothing is kept of a source image: each column is bound whole.

    SQLite cuts the cells, without Python's lock: a third of what an addition takes in the record is spared.
    """
    for start in range(0, len(rows.ids), _COLUMNS_AT_ONCE):
        some = slice(start, start + _COLUMNS_AT_ONCE)
        digests, commitments = ("".join(all_of[some]).encode() for all_of in (rows.digests, rows.binding.commitments))
        salts, keys = b"".join(rows.binding.salts[some]), json.dumps(rows.source_keys[some], ensure_ascii=False)
        values = (rows.first + start, rows.labels[0], digests, salts, commitments, segment, start, added, keys)
        db.execute(_BARE, values)


def _insert_cells(db: sqlite3.Connection, rows: NewRows, segment: int, added: int | None) -> None:
    """Cell by cell. A column of nothing but None is not told at all."""
    seen = rows.sources
    columns: Mapping[str, Sequence[Any]] = {
        "id": rows.ids,
        "source_key": rows.source_keys,
        "label": rows.labels,
        "sha256": rows.digests,
        "image_sha256": [one.image_sha256 for one in seen],
        "pdq": [one.pdq for one in seen],
        "quality": [one.quality for one in seen],
        "salt": rows.binding.salts,
        "commitment": rows.binding.commitments,
        "place": range(len(seen)),
    }
    told = {name: column for name, column in columns.items() if column.count(None) < len(column)}
    marks = f"(?1, ?2, {', '.join('?' * len(told))})"
    for start in range(0, len(seen), _CELLS_AT_ONCE):
        some = list(zip(*(column[start : start + _CELLS_AT_ONCE] for column in told.values()), strict=True))
        db.execute(
            f"INSERT INTO rows (segment, added, {', '.join(told)}) VALUES {', '.join([marks] * len(some))}",
            [segment, added, *chain.from_iterable(some)],
        )

"""What a check of a collection is made of: faults, tables read to the end, and a tree that grows in little memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from negindex import merkle
from negindex.schema import schema_of


class Fault(NamedTuple):
    """Something that is not as it was written."""

    what: str  # catalogue, meta, record, tree, checkpoint, note, person, row, claim, blocked, owed, segment, derived,
    # or stray
    where: str
    said: str

    def __str__(self) -> str:
        return f"{self.what} {self.where}: {self.said}"


class Faults:
    """What was found so far; neighbours of which the same is said become one."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[tuple[int, int]]] = {}

    def add(self, what: str, where: int | str, said: str, unit: str = "") -> None:
        """Note one; ``unit`` goes in front of a number, such as "version"."""
        if isinstance(where, int):
            self.run(what, where, where, said, unit)
        else:
            self._found[what, where, said] = []

    def run(self, what: str, first: int, last: int, said: str, unit: str = "") -> None:
        """Note one of each number from first to last."""
        runs = self._found.setdefault((what, unit, said), [])
        if runs and first <= runs[-1][1] + 1 and first >= runs[-1][0]:
            first, last = runs[-1][0], max(last, runs.pop()[1])
        runs.append((first, last))

    def take(self, other: Faults) -> None:
        """Note what another found."""
        for (what, unit, said), runs in other._found.items():
            self._found.setdefault((what, unit, said), []).extend(runs)

    def listed(self) -> list[Fault]:
        """All of them, in the order in which they were found."""
        return [
            Fault(what, where, said)
            for (what, unit, said), runs in self._found.items()
            for where in ([_place(unit, *run) for run in runs] or [unit])
        ]


class Growing:
    """A Merkle tree of which only the hashes that its root still needs are kept: O(log n). RFC 6962, section 2.1.

    >>> log = Growing()
    >>> for entry in (b"a", b"b", b"c"):
    ...     nodes = log.append(merkle.leaf_hash(entry))
    >>> log.root() == merkle.root([b"a", b"b", b"c"])
    True
    """

    def __init__(self) -> None:
        self._left: list[tuple[int, bytes]] = []  # (level, hash) of the complete subtrees, the largest first
        self.size = 0

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Take in a leaf's hash; returns the nodes that it completes: (level, place, hash)."""
        made, level, place = [(0, self.size, leaf)], 0, self.size
        while self._left and self._left[-1][0] == level:
            leaf = merkle.node_hash(self._left.pop()[1], leaf)
            level, place = level + 1, place >> 1
            made.append((level, place, leaf))
        self._left.append((level, leaf))
        self.size += 1
        return made

    def root(self) -> bytes:
        """The hash of all leaves so far."""
        if not self._left:
            return merkle.EMPTY_ROOT
        found = self._left[-1][1]
        for _, left in self._left[-2::-1]:
            found = merkle.node_hash(left, found)
        return found


class Tables:
    """A catalogue's tables, read to the end: what SQLite cannot read is a fault, and the next table's turn."""

    def __init__(self, db: sqlite3.Connection, faults: Faults) -> None:
        """db: within one transaction; it hands out text as ``lossless`` decodes it."""
        self.db, self.faults = db, faults

    def ask(self, sql: str, *values: Any) -> Iterator[Any]:
        """Rows of one statement, as they are read."""
        return self.db.execute(sql, values)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Go on behind it when its bytes cannot be read."""
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # what SQLite says may hold the damaged text
            self.faults.add("catalogue", name, f"cannot be read ({error!a})")

    def check_layout(self) -> None:
        """SQLite's own checks of pages, indices and references, and how the tables are defined."""
        for name in ("integrity_check", "foreign_key_check"):
            with self.section(name):
                for row in self.ask(f"PRAGMA {name}"):
                    if row != ("ok",):
                        self.faults.add("catalogue", name, " ".join(map(ascii, row)))
        sql = "SELECT name, type, tbl_name, sql FROM sqlite_schema ORDER BY name"
        with self.section("sqlite_schema"), closing(sqlite3.connect(":memory:")) as fresh:
            fresh.executescript(schema_of(next(self.ask("PRAGMA user_version"))[0]))
            for name, wanted, found in matched(fresh.execute(sql), self.ask(sql)):
                if wanted != found:
                    self.faults.add("catalogue", ascii(name), "is not defined as this format defines it")


def matched(
    wanted: Iterable[tuple[Any, ...]], found: Iterable[tuple[Any, ...]], keys: int = 1
) -> Iterator[tuple[Any, tuple[Any, ...] | None, tuple[Any, ...] | None]]:
    """Two streams in ascending order of their first column (of ``keys`` columns, as a tuple), side by side.

    >>> list(matched([(1, "a"), (2, "b")], [(2, "b"), (3, "c")]))
    [(1, ('a',), None), (2, ('b',), ('b',)), (3, None, ('c',))]
    """
    sides: list[dict[Any, tuple[Any, ...]]] = [{}, {}]
    streams = [iter(wanted), iter(found)]
    while True:
        for side, stream in zip(sides, streams, strict=True):
            if not side and (row := next(stream, None)) is not None:
                side[tuple((type(key).__name__, key) for key in row[:keys])] = row
        if not any(sides):
            return
        first = min(key for side in sides for key in side)
        one, other = (side.pop(first, None) for side in sides)
        key = tuple(value for _, value in first)
        yield key[0] if keys == 1 else key, one and one[keys:], other and other[keys:]


def lossless(text: bytes) -> str:
    """Text as SQLite holds it, also where it is no UTF-8 any more; ``raw`` gives the bytes back."""
    return text.decode("utf-8", "surrogateescape")


def raw(value: object) -> bytes:
    """The bytes of a text, or of whatever stands where a text should."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


def _place(unit: str, first: int, last: int) -> str:
    space = " " if unit else ""
    return f"{unit}{space}{first}" if first == last else f"{unit}{'s' if unit else ''}{space}{first} to {last}"

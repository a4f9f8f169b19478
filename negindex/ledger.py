"""What must stand after a log: the records replayed, by the rules that ``Change`` wrote them by.

Rows are arrays by id, so that a set of millions of rows costs a few numbers each; 0 stands for "never", since no
row can come or go at version 0. Nothing here reads a catalogue: what is on record is compared with it elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from negindex.log import Ranges, Record, count
from negindex.schema import CLOSED, IN_HOUSE, LIVE

Ids = NDArray[np.int64]
_NONE: Ids = np.empty(0, np.int64)
_NEEDS = {  # what a record says of rows: (what must be so before, what must not, what becomes so)
    "stored": ("", "stored", "stored"),
    "entered": ("stored", "added", "added"),
    "left": ("added", "withdrawn", "withdrawn"),
    "linked": ("stored", "", ""),
    "unlinked": ("stored", "", ""),
    "dropped": ("stored", "dropped", "dropped"),
    "erased": ("stored", "erased", "erased"),
}


@dataclass
class Standing:
    """A claim as the log leaves it."""

    opened: int  # the version that opened it
    regime: str | None = None
    state: str | None = None
    hold: str | None = None
    forgotten: int = 0  # the version whose erasure took its words


class Links:
    """Which claims named which rows from when to when, found by row and by claim."""

    def __init__(self, top: int) -> None:
        self._table = np.zeros((5, 16), np.int64)  # row, claim, opened, closed, the row's link before this one
        self._last = np.full(top + 1, -1, np.int64)  # (top + 1,) each row's newest link
        self._of: dict[int, list[tuple[int, int]]] = {}  # claim: runs of links
        self.count = 0

    @property
    def row(self) -> Ids:
        return self._table[0, : self.count]

    @property
    def claim(self) -> Ids:
        return self._table[1, : self.count]

    @property
    def opened(self) -> Ids:
        return self._table[2, : self.count]

    @property
    def closed(self) -> Ids:
        return self._table[3, : self.count]

    def link(self, claim: int, ids: Ids, version: int) -> None:
        """Have a claim name rows; one that it named before is opened again."""
        known = self.on(ids)
        known = known[self.claim[known] == claim]
        self.opened[known], self.closed[known] = version, 0
        self._append(claim, np.setdiff1d(ids, self.row[known]), version)

    def on(self, ids: Ids) -> Ids:
        """Places of all links on rows."""
        return _joined(self._back(ids))

    def open_on(self, ids: Ids) -> Ids:
        """Places of the links on rows that are open."""
        found = self.on(ids)
        still: Ids = found[self.closed[found] == 0]
        return still

    def rows_of(self, claim: int, closed: bool = False) -> Ids:
        """Rows that a claim names; with ``closed`` those that it named before too."""
        found = _joined(np.arange(*run) for run in self._of.get(claim, ()))
        return self.row[found if closed else found[self.closed[found] == 0]]

    def _back(self, ids: Ids) -> Iterator[Ids]:
        """Each row's newest link, then the one before it, until none is left."""
        found = self._last[ids]
        while len(found := found[found >= 0]):
            yield found
            found = self._table[4, found]

    def _append(self, claim: int, ids: Ids, version: int) -> None:
        start, end = self.count, self.count + len(ids)
        if end > self._table.shape[1]:
            grown = np.zeros((5, max(end, 2 * self._table.shape[1])), np.int64)
            grown[:, :start] = self._table[:, :start]
            self._table = grown
        self._table[:, start:end] = ids, np.full_like(ids, claim), np.full_like(ids, version), 0 * ids, self._last[ids]
        self._last[ids] = np.arange(start, end)
        self._of.setdefault(claim, []).append((start, end))
        self.count = end


class History:
    """Rows, links and claims as the records that were followed leave them."""

    def __init__(self, top: int) -> None:
        """top: the highest id of a row that is on record; rows above it that records tell of are ``beyond``."""
        self.top, self.in_force = top, 0
        self.stored, self.added, self.withdrawn, self.erased, self.dropped = np.zeros((5, top + 1), np.int64)
        self.beyond: list[tuple[int, int, int]] = []  # first, last, and the version that stored them
        self.claims: dict[int, Standing] = {}
        self.links = Links(top)

    def follow(self, record: Record) -> list[str]:
        """Take in the next record; returns, in words, what no change could have written."""
        odd = self._state(record)
        moved = {name: self._move(record, name, odd) for name in _NEEDS}
        self.in_force += count(record.entered) - count(record.left)
        if record.in_force != self.in_force:
            odd.append(f"it says {record.in_force} rows in force, and by what came and went it is {self.in_force}")
            self.in_force = record.in_force
        if record.claim in self.claims:
            self.links.link(int(record.claim or 0), moved["linked"], record.version)
        self._unlink(record, moved["unlinked"])
        self._leave(record.version, moved["dropped"])
        self._erase(record, moved["erased"])
        self._refuse(record)
        return odd

    def _state(self, record: Record) -> list[str]:
        """The claim's regime, state and hold; an erasure may close it without having named its rows."""
        if record.claim is None:
            return []
        if type(record.claim) is not int or not 0 < record.claim < 1 << 63:
            return [f"it names the claim {record.claim!a}"]
        claim = self.claims.setdefault(record.claim, Standing(record.version, record.regime))
        odd = [] if claim.regime == record.regime else [f"it moves claim {record.claim} to another regime"]
        if record.state == "erased" and claim.state != "erased":
            claim.forgotten = record.version
        claim.regime, claim.state, claim.hold = record.regime, record.state, record.hold
        return odd

    def _move(self, record: Record, name: str, odd: list[str]) -> Ids:
        """The rows, up to ``top``, of which a record says one thing, which is noted of them."""
        runs: Ranges = getattr(record, name)
        before, not_before, becomes = _NEEDS[name]
        ends = [0, *(end for first, last in runs for end in (first, last + 1))]
        if any(a >= b for a, b in pairwise(ends)):
            odd.append(f"it names rows out of order ({name})")
            return _NONE
        ids = _joined(np.arange(first, min(last, self.top) + 1) for first, last in runs if first <= self.top)
        if before and not getattr(self, before)[ids].all():
            odd.append(f"it names rows that were never {before} ({name})")
        if not_before and getattr(self, not_before)[ids].any():
            odd.append(f"it names rows that were {not_before} before ({name})")
        if name == "stored":
            self.beyond += [(max(first, self.top + 1), last, record.version) for first, last in runs if last > self.top]
        if becomes:
            getattr(self, becomes)[ids] = record.version
        return ids

    def _unlink(self, record: Record, ids: Ids) -> None:
        """A claim lets go of rows; where the record names none, in-house claims do, and after a restore all."""
        found = self.links.open_on(ids)
        claims = self.links.claim[found]
        if record.claim is not None:
            self.links.closed[found[claims == record.claim]] = record.version
            return
        house = [number for number in np.unique(claims).tolist() if self.claims[number].regime == IN_HOUSE]
        if record.action != "restore":
            found = found[np.isin(claims, house)]
        self.links.closed[found] = record.version
        for number in house:
            claim = self.claims[number]
            if not len(self.links.rows_of(number)) and (record.action != "restore" or claim.state in LIVE):
                claim.state = "withdrawn"

    def _leave(self, version: int, ids: Ids) -> None:
        """Rows whose bytes are gone are out, those too that never were in force."""
        self.withdrawn[ids] = np.where(self.withdrawn[ids] == 0, version, self.withdrawn[ids])

    def _erase(self, record: Record, ids: Ids) -> None:
        """An erased row is named by no claim, and a claim that named no other row is erased with it."""
        self._leave(record.version, ids)
        self.links.closed[self.links.open_on(ids)] = record.version
        for number in np.unique(self.links.claim[self.links.on(ids)]).tolist():
            if self.erased[self.links.rows_of(number, closed=True)].all():
                claim = self.claims[number]
                claim.state, claim.hold, claim.forgotten = "erased", None, record.version

    def _refuse(self, record: Record) -> None:
        """When a claim closes, rows that were never in force and that no open claim names are refused."""
        if record.claim not in self.claims or record.state not in CLOSED:
            return
        ids = self.links.rows_of(int(record.claim or 0))
        ids = ids[(self.added[ids] == 0) & (self.withdrawn[ids] == 0)]
        found = self.links.open_on(ids)
        held = [self.claims[number].state not in CLOSED for number in self.links.claim[found].tolist()]
        self.withdrawn[np.setdiff1d(ids, self.links.row[found[np.array(held, bool)]])] = record.version


def _joined(parts: Iterable[Ids]) -> Ids:
    return np.concatenate([_NONE, *parts])

"""Which rows in force a set could do without, because a row that stays is the same image, or nearly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from negindex.alike import MIN_QUALITY, groups_held
from negindex.catalogue import Catalogue
from negindex.hamming import NEAR, Hashes, distances_to
from negindex.schema import IN_HOUSE


class Member(NamedTuple):
    """A row of a group of near-duplicates, and what becomes of it where one image a group is kept."""

    row: int  # id
    source_key: str
    label: str | None
    stays: bool
    near: int  # id of the row that stays in its place; its own where it stays
    distance: int  # PDQ's bits from that row; 0 by bytes
    claimed: bool = False  # another claim than in-house ones keeps it in force


def duplicates(catalogue: Catalogue, *, distance: int = NEAR) -> list[list[Member]]:
    """Groups of rows in force that are near-duplicates by bytes or PDQ, two or more each, in order of their ids.

    A group hangs together link by link, so that its ends can be unlike. Hence a row goes only where one that stays is
    itself within ``distance`` of it, or the same bytes, under the same label. Rows under a claim stay, then
    the oldest.
    Cost: ``hamming.groups``, and in a group rows that stay × rows, nothing squared in memory.
    """
    groups = groups_held(catalogue, distance=distance)
    ids = [row for group in groups for row in group]
    known, claims = catalogue.described(ids), catalogue.claims_on(ids)
    claimed = {row for row, some in claims.items() if any(claim.regime != IN_HOUSE for claim in some)}
    hashes, qualities = catalogue.pdqs(ids)
    hashes = hashes.where((qualities >= MIN_QUALITY) & hashes.bits.any(axis=1))
    place = dict(zip(hashes.ids.tolist(), range(len(hashes)), strict=True))
    found = []
    for group in groups:
        rows = sorted((row for row in group if row in known), key=lambda row: (row not in claimed, row))
        if len(rows) > 1:
            found.append(_Group(rows, known, claimed, hashes, place).members(distance))
    return found


class _Group:
    """One group's rows, in the order in which they are to stay."""

    def __init__(
        self,
        rows: Sequence[int],
        known: dict[int, tuple[str, str | None, str, str | None]],
        claimed: set[int],
        hashes: Hashes,
        place: dict[int, int],
    ) -> None:
        self._rows, self._known, self._claimed = rows, known, claimed
        _, labels, contents, images = zip(*(known[row] for row in rows), strict=True)
        self._labels, self._contents, self._images = _codes(labels), _codes(contents), _codes(images)
        at = np.array([place.get(row, -1) for row in rows])
        self._hashed = at >= 0
        self._hashes = Hashes(hashes.bits[at]) if len(hashes) else Hashes(np.zeros((len(rows), 32), np.uint8))

    def members(self, distance: int) -> list[Member]:
        """Who stays, the first of those that are left each time, and who is near it, by id."""
        free = np.array([row not in self._claimed for row in self._rows])
        left = np.arange(len(self._rows))
        found = []
        while len(left):
            first, others = int(left[0]), left[1:]
            bits = self._apart(first, others)
            goes = free[others] & (bits <= distance) & (self._labels[others] == self._labels[first])
            found.append(self._member(first, first, 0))
            gone = zip(others[goes].tolist(), bits[goes].tolist(), strict=True)
            found += [self._member(one, first, far) for one, far in gone]
            left = others[~goes]
        return sorted(found)

    def _apart(self, first: int, others: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bits between one row and others (N,): 0 for the same bytes, 257 where nothing is known."""
        bits = np.full(len(others), 257)
        if self._hashed[first]:
            far = distances_to(self._hashes, self._hashes.words[first], others)
            bits = np.where(self._hashed[others], far, bits)
        image = self._images[first]
        same = (self._contents[others] == self._contents[first]) | ((self._images[others] == image) & (image >= 0))
        return np.where(same, 0, bits)

    def _member(self, at: int, kept: int, far: int) -> Member:
        row = self._rows[at]
        key, label, *_ = self._known[row]
        return Member(row, key, label, at == kept, self._rows[kept], far, row in self._claimed)


def _codes(values: Sequence[str | None]) -> NDArray[np.int64]:
    """Equal numbers for equal values, -1 for None."""
    number = {value: code for code, value in enumerate(dict.fromkeys(value for value in values if value is not None))}
    return np.array([-1 if value is None else number[value] for value in values])

"""Which 256-bit hashes are near each other in bits: exact, in blocks of bounded memory, with numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from negindex.errors import OutOfRange, ShapeMismatch

BYTES = 32
BITS = 8 * BYTES
NEAR = 31  # bits: up to here PDQ's authors speak of the same image; unrelated ones differ in about 128

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

_QUERIES, _ROWS = 16, 1 << 14  # compared at once: small enough for the processor's cache
_AT_ONCE = 1 << 20  # candidate pairs looked at together
_BANDS = 16  # of 16 bits
_LOOK_UP_COST = 8  # comparing a pair by its places costs so many times what it costs in a block


@dataclass(frozen=True, eq=False)
class Hashes:
    """N hashes of 256 bits, each with the caller's id (its place, unless told).

    Raises ShapeMismatch unless the bits are (N, 32) uint8 and the ids (N,).
    """

    bits: NDArray[np.uint8]  # (N, 32)
    ids: Ints  # (N,)

    def __init__(self, bits: NDArray[np.uint8], ids: Ints | None = None) -> None:
        if bits.ndim != 2 or bits.shape[1] != BYTES or bits.dtype != np.uint8:
            raise ShapeMismatch(f"hashes of shape {bits.shape} and type {bits.dtype}; give (N, {BYTES}) of uint8")
        ids = np.arange(len(bits)) if ids is None else np.asarray(ids, np.int64)
        if ids.shape != (len(bits),):
            raise ShapeMismatch(f"ids of shape {ids.shape} for {len(bits)} hashes; give one id a hash")
        object.__setattr__(self, "bits", np.ascontiguousarray(bits))
        object.__setattr__(self, "ids", ids)

    @classmethod
    def of(cls, hashes: Iterable[bytes], ids: Ints | None = None) -> Hashes:
        """From byte strings of 32; raises ShapeMismatch for another length, and says which it is."""
        listed = list(hashes)
        for place, one in enumerate(listed):
            if len(one) != BYTES:
                raise ShapeMismatch(f"hash {place} has {len(one)} bytes; every hash has {BYTES}")
        return cls(np.frombuffer(b"".join(listed), np.uint8).reshape(-1, BYTES), ids)

    def __len__(self) -> int:
        return len(self.bits)

    def where(self, mask: NDArray[np.bool_]) -> Hashes:
        """The hashes that the mask (N,) keeps, with their ids: those of enough quality, or those in force."""
        return Hashes(self.bits[mask], self.ids[mask])

    @property
    def words(self) -> Words:
        """(N, 4): the same bits, to be counted 64 at a time."""
        return self.bits.view(np.uint64)


class Pairs(NamedTuple):
    """P near pairs, by query, and nearest first within each."""

    query: Ints  # (P,) place among the queries
    row: Ints  # (P,) place among the hashes
    distance: Ints  # (P,) bits that differ


def within(queries: Hashes, hashes: Hashes, distance: int = NEAR) -> Pairs:
    """Every pair of a query and a hash that differ in at most ``distance`` bits.

    Cost: Q N comparisons, some milliseconds a query and million; memory: the answer's and one block's.
    Raises OutOfRange unless distance is 0 to 256.
    """
    _check(distance)
    blocks = [
        Pairs(*(np.zeros(0, np.int64) for _ in Pairs._fields)),
        *_all_pairs(queries.words, hashes.words, distance),
    ]
    query, row, bits = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    order = np.lexsort((row, bits, query))
    return Pairs(query[order], row[order], bits[order])


def distances_to(hashes: Hashes, one: Words, places: Ints | None = None) -> Ints:
    """Bits between one hash (4,) and all, or those at some places: (N,)."""
    words = hashes.words if places is None else hashes.words[places]
    return _differing(one, words).astype(np.int64)


def groups(hashes: Hashes, distance: int = NEAR) -> list[Ints]:
    """Places of hashes that hang together, link by link, by differing in at most ``distance`` bits.

    Returns groups of two or more, each ascending, in the order of their first places. A link joins neighbours:
    the ends of a long group can be farther apart than ``distance``.
    Cost: equal hashes count once; look-ups by equal bands where those are few, and otherwise N²/2 comparisons.
    Memory grows with N, never with the pairs. Raises OutOfRange unless distance is 0 to 256.
    """
    _check(distance)
    if not len(hashes):
        return []
    words, value = _distinct(hashes.words)
    return _members(_linked(len(words), _close_pairs(words, distance))[value])


def _check(distance: int) -> None:
    if not 0 <= distance <= BITS:
        raise OutOfRange(f"a distance of {distance} bits; give 0 to {BITS}, such as {NEAR} for the same image")


def _distinct(words: Words) -> tuple[Words, Ints]:
    """The different hashes (D, 4), and for each hash its place among them (N,)."""
    order = np.lexsort(words.T)
    ordered = words[order]
    fresh = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(1)])
    value = np.empty(len(words), np.int64)
    value[order] = np.cumsum(fresh) - 1
    return ordered[fresh], value


def _members(label: Ints) -> list[Ints]:
    """Places (N,) with the same label, where there are two or more."""
    shared = np.flatnonzero(np.bincount(label)[label] > 1)
    shared = shared[np.argsort(label[shared], kind="stable")]
    found = np.split(shared, np.flatnonzero(np.diff(label[shared])) + 1) if len(shared) else []
    return sorted(found, key=lambda places: int(places[0]))


# -- near pairs of one set, each at least once ---------------------------------------------------


def _close_pairs(words: Words, distance: int) -> Iterator[tuple[Ints, Ints]]:
    """By bands where that is cheaper; an adversary's set of look-alikes is compared pair by pair instead.

    Bands are exact: where at most d bits differ, they cannot be more than d // 16 in each of 16 bands.
    """
    flips = _flips(distance // _BANDS)
    if distance < 3 * _BANDS and _LOOK_UP_COST * _candidates(words, flips) < len(words) ** 2 / 2:
        for band in range(_BANDS):
            yield from _pairs_by_band(words, band, flips, distance)
    else:
        yield from ((a, b) for a, b, _ in _all_pairs(words, words, distance, later=True))


def _all_pairs(queries: Words, rows: Words, distance: int, later: bool = False) -> Iterator[Pairs]:
    """Near pairs, a block at a time. later: of one set with itself, about half of the blocks are left out."""
    for q in range(0, len(queries), _QUERIES):
        for r in range(q if later else 0, len(rows), _ROWS):
            block, some = queries[q : q + _QUERIES, None], rows[None, r : r + _ROWS]
            bits = _differing(block, some)
            query, row = np.nonzero(bits <= distance)
            if len(query):
                yield Pairs(query + q, row + r, bits[query, row].astype(np.int64))


def _differing(a: Words, b: Words) -> NDArray[np.uint16]:
    """How many bits differ, (..., 4) and (..., 4) -> (...)."""
    total = np.bitwise_count(a[..., 0] ^ b[..., 0]).astype(np.uint16)
    for word in range(1, a.shape[-1]):
        total += np.bitwise_count(a[..., word] ^ b[..., word])
    return cast(NDArray[np.uint16], total)


def _band(words: Words, band: int) -> NDArray[np.uint16]:
    """16 of each hash's bits, (N,): a diagonal of PDQ's square, since a symmetric image empties rows or columns."""
    octets = words.view(np.uint8).reshape(len(words), BYTES)
    key = np.zeros(len(words), np.uint16)
    for row in range(16):
        place = 16 * row + (row + band) % 16
        key |= (octets[:, place // 8] >> (7 - place % 8) & 1).astype(np.uint16) << row
    return key


def _flips(most: int) -> list[np.uint16]:
    """The 16-bit numbers with at most so many ones."""
    chosen = (places for count in range(min(most, 2) + 1) for places in combinations(range(16), count))
    return [np.uint16(sum(1 << place for place in places)) for places in chosen]


def _candidates(words: Words, flips: list[np.uint16]) -> float:
    """How many pairs the bands would have compared."""
    total = 0.0
    for band in range(_BANDS):
        counts = np.bincount(_band(words, band), minlength=1 << 16).astype(np.float64)
        keys = np.flatnonzero(counts).astype(np.uint16)
        total += sum(float(counts[keys] @ counts[keys ^ flip]) for flip in flips) / 2
    return total


def _pairs_by_band(words: Words, band: int, flips: list[np.uint16], distance: int) -> Iterator[tuple[Ints, Ints]]:
    """Near pairs among the hashes whose keys in one band are equal but for the flipped bits."""
    keys = _band(words, band)
    order = np.argsort(keys, kind="stable")
    keys, words = keys[order], words[order]
    ends = np.cumsum(np.bincount(keys, minlength=1 << 16))
    starts = np.concatenate([[0], ends[:-1]])
    for flip in flips:
        first = np.maximum(starts[keys ^ flip], np.arange(1, len(keys) + 1))  # each pair once, from its lower place
        for a, b in _ranges(first, ends[keys ^ flip]):
            near = _differing(words[a], words[b]) <= distance
            yield order[a[near]], order[b[near]]


def _ranges(first: Ints, end: Ints) -> Iterator[tuple[Ints, Ints]]:
    """All (place, partner) with first <= partner < end for its place, about _AT_ONCE of them at a time."""
    length = np.maximum(end - first, 0)
    before = np.cumsum(length) - length
    for places in np.split(np.arange(len(first)), np.flatnonzero(np.diff(before // _AT_ONCE)) + 1):
        place = np.repeat(places, length[places])
        shift = first[places] - before[places] + before[places[0]]
        yield place, np.arange(len(place)) + np.repeat(shift, length[places])


# -- what hangs together ---------------------------------------------------------------------------


def _linked(size: int, links: Iterable[tuple[Ints, Ints]]) -> Ints:
    """A label for each of ``size`` things, the same for those that links join: the lowest place among them."""
    label = np.arange(size)
    waiting: list[tuple[Ints, Ints]] = []
    held = 0
    for a, b in links:
        apart = label[a] != label[b]
        waiting.append((a[apart], b[apart]))
        held += len(waiting[-1][0])
        if held > _AT_ONCE:
            label, waiting, held = _joined(label, waiting), [], 0
    return _joined(label, waiting)


def _joined(label: Ints, links: list[tuple[Ints, Ints]]) -> Ints:
    """Labels after more links; each round at least halves what is yet to be joined."""
    if not links:
        return label
    a, b = (np.concatenate(ends) for ends in zip(*links, strict=True))
    while len(a):
        np.minimum.at(label, np.maximum(label[a], label[b]), np.minimum(label[a], label[b]))
        while (label[label] != label).any():
            label = label[label]
        apart = label[a] != label[b]
        a, b = a[apart], b[apart]
    return label

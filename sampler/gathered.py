"""Rows on their way into one version: gathered column by column, and made ready while the version before is written."""

from __future__ import annotations

import mmap
import time
from bisect import bisect_right
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from negindex.collection import Collection
from negindex.incoming import Incoming, finite_rows
from negindex.sampler.sources import Block, Embedded, Item
from negindex.states import Provenance


class Gathered:
    """Rows on their way into one version, column by column."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.sources: list[str] = []
        self.labels: list[str | None] = []
        self.captions: dict[int, str] = {}  # by place
        self.views: set[int] = set()  # places of further views of an image, of which nothing is told
        self.items: set[str] = set()  # keys of images
        self.kept: list[Provenance | None] = []  # None of a row that came without an image
        self.embedded: Embedded = None
        self.embeddings: list[NDArray[np.floating]] = []  # one a row, or none at all
        self.parts: list[NDArray[Any]] = []  # (n, *S) each
        self.starts: list[int] = []  # the place of each part's first row
        self.again: list[tuple[int, int, bool]] = []  # (place, of the first under the same key, same bytes)
        self.ends: dict[int, tuple[int, int, str]] = {}  # place: (row, version, sha256)
        self.since = time.monotonic()

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, item: Item, row: NDArray[Any], kept: Provenance | None, suffix: str = "") -> None:
        """suffix: what the row's key ends in, of a further view of the item's image."""
        if suffix:
            self.views.add(len(self))
        if item.caption:
            self.captions[len(self)] = item.caption
        embeddings = None if item.embedding is None else item.embedding[None]
        source, by = [item.source], item.embedded_by
        self.extend(Block([item.key + suffix], source, row[None], [kept], [item.label], embeddings, by))

    def extend(self, block: Block) -> None:
        nothing = [None] * len(block)
        self.starts.append(len(self))
        self.parts.append(block.rows)
        self.keys += block.keys
        self.sources += block.sources
        self.labels += block.labels or nothing
        self.kept += block.kept or nothing
        self.embedded = block.embedded
        self.embeddings += [] if block.embeddings is None else list(block.embeddings)

    def item(self, place: int) -> Item:
        """One of them, for people."""
        caption = self.captions.get(place, "")
        return Item(self.keys[place], self.sources[place], label=self.labels[place], caption=caption)

    def row(self, place: int) -> NDArray[Any]:
        """One of them as it came."""
        part = bisect_right(self.starts, place) - 1
        row: NDArray[Any] = self.parts[part][place - self.starts[part]]
        return row

    def stack(self, rows: NDArray[Any]) -> None:
        """Fill in the rows (N, *S) as they will be stored; what is beyond the stored type is Inf."""
        with np.errstate(over="ignore"):
            for start, part in zip(self.starts, self.parts, strict=True):
                rows[start : start + len(part)] = part


AHEAD = 2  # batches that may wait, ready or not, while one is stored


class Ready(NamedTuple):
    """A batch whose rows were looked through."""

    batch: Gathered
    places: list[int]  # of the rows that can be stored, the first under each key
    given: Incoming  # those rows
    refused: list[tuple[int, str]]  # (place, why) of rows that cannot

    def close(self) -> None:
        """Be done with them, stored or not."""
        self.given.close()


class Readying:
    """Makes batches ready in a thread of its own, one after the other, in their order, and begins their files.

    Held are the rows of three batches: of one that is made ready, of the one before, whose file is written meanwhile,
    and of the one that was taken last, until the next is.
    """

    def __init__(self, collection: Collection, label: str | None) -> None:
        """label: for all rows, instead of their own."""
        self._collection, self._label = collection, label
        self._beside = ThreadPoolExecutor(1, "negindex-ready")
        self._waiting: deque[Future[Ready]] = deque()
        self._rooms = [_room(0, collection) for _ in range(AHEAD + 1)]  # used in turns
        self._count = 0
        self._is_here = collection.rows_at is None  # files that go elsewhere are written when their turn comes
        self.begins = not len(collection)  # files: it would be in vain for rows that the set holds already

    def put(self, batch: Gathered) -> None:
        """Have a batch made ready; nobody else changes it from here on, until it is taken."""
        self._count += 1
        self._waiting.append(self._beside.submit(self._ready, batch, self._count % len(self._rooms)))

    def take(self) -> Ready:
        """The first that was put; waits until it is ready."""
        return self._waiting.popleft().result()

    def __len__(self) -> int:
        """How many were put, and not taken yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Give up what was not taken."""
        self._beside.shutdown(cancel_futures=True)
        for one in self._waiting:
            if not one.cancelled() and one.exception() is None:
                one.result().close()

    def _ready(self, batch: Gathered, turn: int) -> Ready:
        if len(self._rooms[turn]) < len(batch):
            self._rooms[turn] = _room(len(batch), self._collection)
        rows = self._rooms[turn][: len(batch)]
        batch.stack(rows)
        refused = _refused(batch, rows)
        batch.parts.clear()
        places = _firsts(batch, rows, dict(refused))
        given = self._collection.incoming(
            rows if len(places) == len(rows) else rows[places],
            [batch.keys[i] for i in places],
            label=[self._label or batch.labels[i] for i in places],
            sources=[batch.kept[i] for i in places],
            embeddings=np.stack([batch.embeddings[i] for i in places]) if batch.embedded and places else None,
            embedded_by=batch.embedded[1] if batch.embedded and places else "",
            finite=True,  # by _refused
        )
        if self.begins and self._is_here:
            given = self._collection.begun(given)
        return Ready(batch, places, given, refused)


def _room(count: int, collection: Collection) -> NDArray[Any]:
    """Memory for rows (count, *S), in pages of the common size.

    numpy would ask for pages of 2 MiB, which a virtual machine may have to get from its host first: there a whole
    build took up to a third longer.
    """
    rows = count * int(np.prod(collection.shape))
    memory = mmap.mmap(-1, max(1, rows * np.dtype(collection.dtype).itemsize))
    return np.frombuffer(memory, collection.dtype, rows).reshape(count, *collection.shape)


def _refused(batch: Gathered, rows: NDArray[Any]) -> list[tuple[int, str]]:
    """(place, why) of rows that cannot be stored."""
    finite = finite_rows(rows)
    corner = rows.reshape(len(rows), -1)[:, 0] == 0  # few rows need to be looked through for another number
    found = []
    for place in np.flatnonzero(~finite | corner).tolist():
        if not finite[place]:
            found.append((place, not_finite(batch.row(place), rows.dtype)))
        elif batch.kept[place] is None and not rows[place].any():
            found.append((place, "a row of nothing but zeros; leave it out"))
    return found


def _firsts(batch: Gathered, rows: NDArray[Any], refused: dict[int, str]) -> list[int]:
    """Places of the first rows under each key; the others are noted in the batch."""
    first: dict[str, int] = {}
    for place, key in enumerate(batch.keys):
        if place not in refused and first.setdefault(key, place) != place:
            same = rows[place].tobytes() == rows[first[key]].tobytes()
            batch.again.append((place, first[key], same))
    return list(first.values())


def not_finite(row: NDArray[Any], dtype: np.dtype[Any]) -> str:
    """Why a row that is stored as ``dtype`` is refused where it is not finite."""
    if np.isnan(row).any():
        return "a row that holds NaN; leave it out"
    if np.isinf(row).any() and row.dtype != dtype:
        return "a row that holds Inf; leave it out"
    return f"a row that holds Inf, or values beyond {dtype}'s {np.finfo(dtype).max:g}; leave it out"

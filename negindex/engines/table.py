"""The rows of one index file as an engine holds them, fetched by cluster, and none of them taken on trust.

The file on this side says which rows the engine must hold; what it gives is held to that by id. Rows of a pinned
version that do not come raise EngineBehind. Rows that come and are not in force are left out, whatever it says of them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.clusters import Clusters
from negindex.engines.link import MOST, Link, NoTable, either, page_rows
from negindex.errors import EngineBehind
from negindex.head import Stretches
from negindex.spheres import Sample, loose_squared

CACHE_ROWS = 1 << 17  # rows that are remembered of what was fetched


class _Kept(NamedTuple):
    """What was fetched of a cluster."""

    ids: NDArray[np.int64]  # ascending
    seen: NDArray[np.float32]  # (n, d + m)


class Table:
    """One generation: the rows of an index file, by its clusters. Used by several threads.

    cache_rows: rows that are remembered, the latest asked; what a row looks like to a kernel never changes.
    """

    def __init__(self, link: Link, name: str, cache_rows: int = CACHE_ROWS) -> None:
        self.link, self.name, self._cache_rows = link, name, cache_rows
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def rows_of(self, clusters: Clusters, opened: Tensor, version: int) -> tuple[Tensor, Tensor]:
        """Numbers (n,) of the live rows of some clusters, ascending, and (n, d + m) float32 what the kernel sees.

        Raises Unreachable, and EngineBehind unless every one of them came.
        """
        numbers = live_numbers(clusters, opened)
        wanted = clusters.ids[numbers].numpy()
        known, absent = self._remembered(clusters, opened)
        found = known
        if absent:
            found = _together([known, self._fetched(clusters, absent, version, strong=False)])
        place, there = _places(found.ids, wanted)
        if not there.all():  # it may only be some seconds late
            found = self._fetched(clusters, opened.tolist(), version, strong=True)
            place, there = _places(found.ids, wanted)
        if not there.all():
            raise self.behind(int(there.sum()), len(wanted), version, f"of {len(opened)} clusters that are asked ")
        seen = found.seen[place]
        self._remember(clusters, opened, wanted, seen)
        return numbers, torch.from_numpy(seen)

    def check_whole(self, clusters: Clusters, version: int) -> None:
        """Raise EngineBehind unless it holds as many rows as the index does. A search alone cannot tell."""
        whole = len(clusters.ids)
        with self.there(clusters, version):
            if self.link.count(self.name, strong=False) != whole:
                there = self.link.count(self.name, strong=True)
                if there != whole:
                    raise self.behind(there, whole, version)

    @contextmanager
    def there(self, clusters: Clusters, version: int) -> Iterator[None]:
        """What is asked inside raises EngineBehind where there is no such table."""
        try:
            yield
        except NoTable as error:
            raise self.behind(0, len(clusters.ids), version) from error

    def behind(self, there: int, wanted: int, version: int, which: str = "") -> EngineBehind:
        """The error that says what is missing."""
        return EngineBehind(
            f"{self.link.address.text} gave {there} of the {wanted} rows {which}that version {version} needs of it; "
            f"`negindex engine push SET {self.link.address.text}` brings it up, `negindex engine check SET` says more"
        )

    def within(self, point: Tensor, limit: float, version: int) -> NDArray[np.int64] | None:
        """Ids of all rows no farther than the limit from a point (d,), and perhaps more; None for too many to tell."""
        found = self.link.nearest(
            self.name, point.numpy(), _still(version), MOST, loose_squared(limit, len(point)), strong=False
        )
        return found if len(found) < MOST else None

    def closest(self, point: Tensor, rows: int, version: int) -> NDArray[np.int64]:
        """Ids of so many rows nearest to a point (d,), nearest first."""
        return self.link.nearest(self.name, point.numpy(), _still(version), rows, strong=False)

    # -- inside ----------------------------------------------------------------------------

    def _fetched(self, clusters: Clusters, some: list[int], version: int, *, strong: bool) -> _Kept:
        numbers = clusters.space.width + clusters.space.marks
        with self.there(clusters, version):
            pages = [
                self.link.seen(self.name, f"{where} and {_still(version)}", numbers, strong=strong)
                for where, _ in pages_of(clusters, some)
            ]
        return _together([_Kept(ids, seen) for ids, seen in pages])

    def _remembered(self, clusters: Clusters, opened: Tensor) -> tuple[_Kept, list[int]]:
        """What is known of some clusters, and those of which nothing is, or not enough."""
        found, absent = [], []
        with self._lock:
            for cluster in opened.tolist():
                kept = self._kept.get(cluster)
                if kept is None or len(kept.ids) < int(clusters.counts[cluster]):
                    absent.append(cluster)
                    continue
                self._kept.move_to_end(cluster)
                found.append(kept)
        width = clusters.space.width + clusters.space.marks
        return _together([_Kept(np.empty(0, np.int64), np.empty((0, width), np.float32)), *found]), absent

    def _remember(self, clusters: Clusters, opened: Tensor, ids: NDArray[np.int64], seen: NDArray[np.float32]) -> None:
        if not self._cache_rows:
            return
        stop = 0
        with self._lock:
            for cluster, count in zip(opened.tolist(), clusters.counts[opened].tolist(), strict=True):
                here = slice(stop, stop := stop + count)
                if cluster not in self._kept or len(self._kept[cluster].ids) < count:
                    order = np.argsort(ids[here])
                    self._kept[cluster] = _Kept(ids[here][order], seen[here][order])
                self._kept.move_to_end(cluster)
            held = sum(len(kept.ids) for kept in self._kept.values())
            while held > self._cache_rows:
                held -= len(self._kept.popitem(last=False)[1].ids)


class InEngine(NamedTuple):
    """A ``Finder`` that has the engine search. That it held all rows is to be checked once it has found some."""

    table: Table
    clusters: Clusters
    version: int
    numbers_of: Callable[
        [NDArray[np.int64]], NDArray[np.int64]
    ]  # a row's number in the clusters by its id; -1 for none

    def within(self, sample: Sample, limit: float) -> Tensor | None:
        found = self.table.within(sample.point, limit, self.version)
        return None if found is None else self._numbers(found).sort().values

    def closest(self, sample: Sample, k: int) -> Tensor | None:
        hidden = len(self.clusters.ids) - len(self.clusters)
        found = self._numbers(self.table.closest(sample.point, min(k + hidden, MOST), self.version))
        return found[:k] if len(found) >= k else None

    def _numbers(self, ids: NDArray[np.int64]) -> Tensor:
        """Of those that are rows in force, in their order."""
        found = torch.from_numpy(self.numbers_of(ids))
        numbers = found[found >= 0]
        return numbers if self.clusters.live is None else numbers[self.clusters.live[numbers]]


def live_numbers(clusters: Clusters, opened: Tensor) -> Tensor:
    """(n,) int64 of the live rows of some clusters (O,), ascending."""
    numbers = Stretches(clusters.offsets, opened).numbers
    return numbers if clusters.live is None else numbers[clusters.live[numbers]]


def pages_of(clusters: Clusters, some: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Filters that tell the rows of some clusters, as many as one answer may hold, and all these rows' numbers."""
    most = page_rows(clusters.space.width + clusters.space.marks)
    sizes, rows = clusters.offsets.diff().tolist(), 0
    together: list[int] = []
    for cluster in some:
        if sizes[cluster] > most:
            numbers = Stretches(clusters.offsets, torch.tensor([cluster])).numbers
            for part in numbers[clusters.ids[numbers].argsort()].split(most):
                first, last = clusters.ids[part[[0, -1]]].tolist()
                yield f"cluster == {cluster} and id >= {first} and id <= {last}", part
            continue
        if rows + sizes[cluster] > most:
            yield _page(clusters, together)
            together, rows = [], 0
        together.append(cluster)
        rows += sizes[cluster]
    if together:
        yield _page(clusters, together)


def _page(clusters: Clusters, together: list[int]) -> tuple[str, Tensor]:
    return either(together), Stretches(clusters.offsets, torch.tensor(sorted(together))).numbers


def _still(version: int) -> str:
    """The filter that tells rows not yet withdrawn at a version, as far as the engine has been told."""
    return f"added <= {version} and withdrawn > {version}"


def _together(parts: list[_Kept]) -> _Kept:
    """All of them, by ids ascending."""
    ids, seen = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(ids, kind="stable")
    return _Kept(ids[order], seen[order])


def _places(known: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where in ascending ids the wanted ones are, and whether they are there."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return place, known[place] == wanted

"""Head and tail: the rows that matter weighed one by one, the rest of a large set in closed form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from math import inf
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from negindex import spheres
from negindex.blas import one_thread
from negindex.clusters import Clusters
from negindex.exact import BLOCK_ELEMENTS, Scan
from negindex.gaussians import Told
from negindex.head import Effort, Head, weigh
from negindex.kernel import LITERAL, Kernel
from negindex.literal import ASKED, USUAL_ERROR, Answer, Sample, usual_reading
from negindex.literal import answer as read
from negindex.moments import Moments
from negindex.near import Near
from negindex.negatives import Negatives, Query, Reach, row_elements
from negindex.partial import NEG_INF, Heaviest, Origin, Partial
from negindex.projection import Space, generator
from negindex.spheres import Spheres
from negindex.stages import stage
from negindex.summed import summed
from negindex.trust import Trust

USUAL = 1  # which of them answers where no error is asked for
SCAN_ELEMENTS = 1 << 20  # a set of so few numbers is scanned: that takes about 10 ms
READ_ROWS = 1 << 13  # a set of fewer is scanned by the literal kernel: it reads a thousand of them at least
_CENTRE_ROWS = 1024
_CACHED = 1 << 18  # numbers

T = TypeVar("T")


def usual_efforts(rows: int) -> tuple[Effort, ...]:
    """What is looked at in a set of so many rows: a sixteenth of them, within bounds; less; and more."""
    return efforts_about(min(1 << 15, max(1 << 14, rows // 16)))


def efforts_about(weighed: int) -> tuple[Effort, ...]:
    """So many rows weighed one by one, a quarter as many, and four times as many, and what is read in full of them."""
    return Effort(weighed // 4, 64), Effort(weighed, 128), Effort(4 * weighed, 1024)


class Mixture(Negatives):
    """``source`` seen through one kernel in milliseconds, however many rows it has, with a stated error.

    The literal kernel is answered by the same clusters and by many rows that are read in full, if the projection is
    orthonormal, as calibrated ones are. Efforts are tried from the cheapest up until the stated error is the one
    asked for; where the last one falls short of it and k sets no limit, the source is scanned. So it is for every
    other kernel and where the set is small. An answer is a scan's or a mixture's, never a mix of both. Immutable; the
    rows stay in the source.
    """

    def __init__(
        self,
        source: Scan,
        clusters: Clusters,
        trust: Trust,
        *,
        efforts: Sequence[Effort],
        scan_elements: int = SCAN_ELEMENTS,
        around: Callable[[], Spheres] | None = None,
    ) -> None:
        """clusters: of all rows of ``source``, an immutable set. trust: learned with these efforts.

        around: spheres around the clusters, or around clusters of which these are the live rows.
        """
        self.source, self.clusters, self.trust = source, clusters, trust
        self._around = around
        self.efforts, self.scan_elements = tuple(efforts), scan_elements
        self.shape, self.space = source.shape, source.space

    @classmethod
    def build(
        cls,
        source: Scan,
        kernel: Kernel,
        *,
        efforts: Sequence[Effort] | None = None,
        scan_elements: int = SCAN_ELEMENTS,
        seed: int = 0,
    ) -> Self:
        """Cluster the rows as the kernel sees them, and learn what closed forms are worth there.

        Cost: two passes over the rows, k-means, and some thousand passes over the rows as the kernel sees them.
        Memory: 4 (d + 64) + 16 bytes a row, 12 D bytes a cluster. The same under the same seed.
        """
        places = torch.randperm(len(source), generator=generator(seed))[:_CENTRE_ROWS]
        centre = source.take(places).rows.to("cpu", torch.float64).sum(0) / max(len(places), 1)
        clusters = Clusters.build(source, Space.of(kernel, centre, seed), seed)
        efforts = usual_efforts(len(source)) if efforts is None else efforts
        trust = Trust.learn(clusters, source, efforts, seed)
        return cls(source, clusters, trust, efforts=efforts, scan_elements=scan_elements)

    def __len__(self) -> int:
        return len(self.clusters)

    @property
    def origins(self) -> tuple[Origin, ...]:
        return self.source.origins

    @property
    def default_kernel(self) -> Kernel:
        return self.source.default_kernel

    @property
    def kernel(self) -> Kernel:
        """The kernel that is answered in milliseconds."""
        return self.clusters.space.kernel

    def answer(self, query: Query) -> Partial:
        if not self.models(query.kernel) or self._is_small:
            return self.source.answer(query)
        asked = (query.level.alpha > 0).nonzero()[:, 0]
        with one_thread:
            if 0 < len(asked) == len(query.x_t):
                told = self._modelled(query)
            else:
                told = self._plain(query)
                told = told.put(asked, self._modelled(query.some(asked))) if len(asked) else told
        missed = (told.error > (query.error or inf)).nonzero()[:, 0]
        if len(missed) and query.k is None:
            told = told.put(missed, self.source.answer(query.some(missed)).to("cpu"))
        return told.to(query.x_t.device)

    def models(self, kernel: Kernel) -> bool:
        """Whether a kernel is answered without a scan."""
        space = self.clusters.space
        by_reading = kernel == LITERAL and space.lift is not None and space.is_orthonormal and len(self) >= READ_ROWS
        return kernel == self.kernel or by_reading

    def nearest(self, reach: Reach) -> Near:
        if self._is_small:
            return self.source.nearest(reach)
        with one_thread:
            return spheres.nearest(self.source, self.clusters, spheres.InMemory(self.clusters, self.spheres), reach)

    def moments(self) -> Moments:
        return Moments(len(self), self.clusters.mean, self.clusters.rms**2 * len(self))

    def digests(self) -> dict[int, str]:
        return self.source.digests()

    def holds(self, digests: Collection[str]) -> set[str]:
        return self.source.holds(digests)

    def without(self, digests: Collection[str]) -> Mixture:
        gone = self.source.holds(digests)
        if not gone:
            return self
        ids = [row_id for row_id, digest in self.source.digests().items() if digest in gone]
        return self.over(self.source.without(digests), ids)

    def over(self, survivors: Scan, gone: Sequence[int]) -> Mixture:
        """The mixture over what is left of the source, in its order, once the rows with the ids ``gone`` are out.

        Cost: the rows that left are read once, and the moments of their clusters are made again from memory.
        """
        left = torch.isin(self.clusters.ids, torch.tensor(gone, dtype=torch.int64))
        clusters = self.clusters.without(left, self.source)
        return Mixture(survivors, clusters, self.trust, efforts=self.efforts, scan_elements=self.scan_elements)

    def close(self) -> None:
        self.source.close()

    @property
    def _is_small(self) -> bool:
        """Whether a scan is as fast."""
        return len(self) * row_elements(self.shape) <= self.scan_elements

    @cached_property
    def spheres(self) -> Spheres:
        """What says which rows can be near; made when it is first asked for."""
        return Spheres.around(self.clusters) if self._around is None else self._around()

    def _plain(self, query: Query) -> Partial:
        """The answer to pure noise: the plain mean, without a search."""
        batch = len(query.x_t)
        named = self.clusters.ids[self.clusters.first(query.named)]
        ids, log_weight = _filled(named, torch.zeros(len(named), dtype=torch.float64), query.named)
        nothing = torch.full((batch,), NEG_INF, dtype=torch.float64)
        return self._partial(
            query.kernel,
            log_norm=torch.full_like(nothing, len(self)).log(),
            mean=self.clusters.mean.repeat(batch, 1),
            log_tail=nothing,
            log_unread=nothing,
            error=torch.zeros_like(nothing),
            ids=ids.repeat(batch, 1),
            log_weight=log_weight.repeat(batch, 1),
        )

    def _modelled(self, query: Query) -> Partial:
        """Head and tail of every sample; then the rows that they need, read once for all of them."""
        if query.kernel != self.kernel:
            return self._read(query)
        heads, errors = zip(*self.heads(query), strict=True)
        named = [_filled(self.clusters.ids[head.named], head.log_weight, query.named) for head in heads]
        return self._partial(
            query.kernel,
            log_norm=torch.stack([head.log_norm for head in heads]),
            mean=self._mean(heads),
            log_tail=torch.stack([head.log_tail for head in heads]),
            log_unread=torch.stack([head.log_unread for head in heads]),
            error=torch.tensor(errors, dtype=torch.float64),
            ids=torch.stack([ids for ids, _ in named]),
            log_weight=torch.stack([log_weight for _, log_weight in named]),
        )

    def heads(self, query: Query) -> list[tuple[Head, float]]:
        """Of each sample, what memory says and which rows it needs, and the error that is stated for it."""
        points, variance = self.clusters.space.place(query.y), query.kernel.variance(query.level)
        told, s = self.clusters.gaussians.seen_from(points, variance), query.level.s.tolist()

        def head(b: int) -> tuple[Head, float]:
            return self._head(query, points[b], variance[b], told.about(b), s[b])

        return _each(head, len(s))

    def readings(self, query: Query) -> list[Answer]:
        """Of each sample, what the literal kernel says; rows are read for each alone."""
        y, points, variance = query.y.cpu(), self.clusters.space.place(query.y), query.kernel.variance(query.level)
        most = query.k or usual_reading(len(self)) * (1 if query.error is None else ASKED)
        error = USUAL_ERROR if query.error is None else query.error

        def one(b: int) -> Answer:
            sample = Sample.of(self.clusters, y[b], points[b], variance[b])
            return read(self.clusters, self.source, sample, most, error, min(query.named, most))

        return _each(one, len(y))

    def _read(self, query: Query) -> Partial:
        """The literal kernel's answer."""
        answers = self.readings(query)
        named = [_filled(self.clusters.ids[one.named], one.log_weight, query.named) for one in answers]
        return self._partial(
            query.kernel,
            log_norm=torch.stack([one.log_norm for one in answers]),
            mean=torch.stack([one.mean for one in answers]),
            log_tail=torch.full((len(answers),), NEG_INF, dtype=torch.float64),
            log_unread=torch.stack([one.log_unread for one in answers]),
            error=torch.tensor([one.error for one in answers], dtype=torch.float64),
            ids=torch.stack([ids for ids, _ in named]),
            log_weight=torch.stack([log_weight for _, log_weight in named]),
        )

    def _head(self, query: Query, point: Tensor, variance: Tensor, told: Told, s: float) -> tuple[Head, float]:
        """Of the efforts, the cheapest that reaches the error asked for, or the last; and its stated error."""
        for number in self.tried(query):
            effort = self.efforts[number]._replace(read=query.k or self.efforts[number].read)
            lean = self.trust.lean(s, number)
            head = weigh(self.clusters, point, variance, told, effort, query.named, lean)
            error = self.trust.error(head, s, number, self.clusters.rms)
            if query.error is not None and error <= query.error:
                break
        return head, error

    def tried(self, query: Query) -> Sequence[int]:
        """The efforts that the query may take, the cheapest first."""
        return range(len(self.efforts)) if query.error is not None else [min(USUAL, len(self.efforts) - 1)]

    def _mean(self, heads: Sequence[Head]) -> Tensor:
        """(B, D) float64: inside the kernel as the heads say, outside it of the rows read and of clusters' means."""
        clusters, space = self.clusters, self.clusters.space
        readings = [head.reading for head in heads]
        rows, place = torch.cat([reading.rows for reading in readings]).unique(return_inverse=True)
        owner = torch.arange(len(heads)).repeat_interleave(torch.tensor([len(reading.rows) for reading in readings]))
        weight = torch.zeros(len(heads), len(rows), dtype=torch.float64)
        weight[owner, place] = torch.cat([reading.row_weight for reading in readings])
        places = clusters.places[rows]
        ranks = (places.numpy(), weight.abs().argmax(0).numpy())  # most rows are read for one sample: its own together
        order = torch.from_numpy(np.lexsort(ranks))
        rows, places, weight = rows[order], places[order], weight[:, order]
        inside = torch.stack([head.inside for head in heads]) - weight @ clusters.reduced[rows].double()
        shares = torch.stack([reading.cluster_weight for reading in readings]).float() @ clusters.along
        mean = torch.addmm(space.raised(inside), shares, clusters.leading)
        for b, reading in enumerate(readings):
            mean[b] += summed(clusters.outside, reading.exact_weight.float(), reading.exact)
        with stage("gather", within="search"):
            for some in torch.arange(len(rows)).split(max(1, BLOCK_ELEMENTS // len(space.centre))):
                read = self.source.take(places[some]).rows.to("cpu")
                _add_weighted(mean, weight[:, some].float(), read, space.centre)
        return mean.double() + space.centre

    def _partial(
        self,
        kernel: Kernel,
        log_norm: Tensor,
        mean: Tensor,
        log_tail: Tensor,
        log_unread: Tensor,
        error: Tensor,
        ids: Tensor,
        log_weight: Tensor,
    ) -> Partial:
        return Partial(
            log_norm=log_norm,
            mean=mean.reshape(-1, *self.shape),
            log_tail=log_tail,
            log_unread=log_unread,
            error=error,
            heaviest=Heaviest(torch.zeros_like(ids), ids, log_weight),
            count=len(self),
            kernel=kernel,
            origins=self.origins,
        )


def _each(one: Callable[[int], T], count: int) -> list[T]:
    """Of 0 to count - 1, by as many threads as torch has; they end with the call: nothing for a fork to break."""
    workers = min(count, torch.get_num_threads())
    if workers == 1:
        return [one(b) for b in range(count)]
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(one, range(count)))


def _add_weighted(total: Tensor, weight: Tensor, rows: Tensor, centre: Tensor) -> None:
    """Add weight (B, n) @ (rows (n, D) - centre) to the total (B, D) float32, as much at a time as a cache holds."""
    apart = torch.empty(min(len(rows), max(1, _CACHED // len(centre))), len(centre))
    for some, share in zip(rows.split(len(apart)), weight.split(len(apart), 1), strict=True):
        here = apart[: len(some)].copy_(some).sub_(centre).numpy()
        for b in np.flatnonzero(share.numpy().any(1)).tolist():
            total[b] += torch.from_numpy(share[b].numpy() @ here)


def _filled(ids: Tensor, log_weight: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Ids and log-weights of some rows, with -1 and -inf in the places left over."""
    left_over = (0, places - len(ids))
    return pad(ids, left_over, value=-1), pad(log_weight, left_over, value=NEG_INF)

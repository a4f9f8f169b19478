"""What a guard is without one of its parts: to see what the part is worth."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from negindex.errors import OutOfRange
from negindex.exact import Exact
from negindex.kernel import squared_distances
from negindex.moments import Moments
from negindex.near import Near
from negindex.negatives import Negatives, Query, Reach
from negindex.partial import NEG_INF, Heaviest, Origin, Partial
from negindex.sampler.rules import View


def nothing(view: View) -> Tensor:
    """No change: everything is looked up, and nothing is done about it."""
    return torch.zeros_like(view.unsafe.mean)


@dataclass(frozen=True)
class PlainMeans:
    """pi (mean of the reference - mean of the set): the gate as it is, no look at which rows are near."""

    difference: Tensor  # S, float64

    @classmethod
    def of(cls, negatives: Negatives, reference: Negatives) -> Self:
        apart = reference.moments().mean - negatives.moments().mean
        return cls(apart.reshape(negatives.shape))

    def __call__(self, view: View) -> Tensor:
        pi = torch.sigmoid(view.log_odds)
        return pi.reshape(-1, *[1] * self.difference.dim()) * self.difference

    def __str__(self) -> str:
        return "plain means"


class NearestOnly(Negatives):
    """The k nearest rows as the kernel sees them, as if there were no others: a head without a tail.

    The count stays that of the set, so the gate divides by all rows, of which it has seen k.
    """

    def __init__(self, source: Exact, k: int) -> None:
        if k < 1:
            raise OutOfRange(f"k = {k}; read at least one row")
        self.source, self.k = source, k
        self.shape, self.space = source.shape, source.space

    def __len__(self) -> int:
        return len(self.source)

    @property
    def origins(self) -> tuple[Origin, ...]:
        return self.source.origins

    def digests(self) -> dict[int, str]:
        return self.source.digests()

    def holds(self, digests: Collection[str]) -> set[str]:
        return self.source.holds(digests)

    def without(self, digests: Collection[str]) -> NearestOnly:
        left = self.source.without(digests)
        return self if left is self.source else NearestOnly(left, self.k)

    def moments(self) -> Moments:
        return self.source.moments()

    def answer(self, query: Query) -> Partial:
        """States no error. Cost: a scan for the distances, then k rows a query."""
        whole = next(iter(self.source.blocks(len(self.source))))
        apart = squared_distances(query.kernel.reduce(query.y), query.kernel.reduce(whole.rows))  # (B, n)
        log_weight, places = (-apart * query.precision[:, None]).topk(min(self.k, len(whole.rows)), dim=1)  # (B, k)
        weight, rows = log_weight.softmax(1), whole.rows[places].to(torch.float64)  # (B, k, D)
        nought = torch.zeros(len(places), dtype=torch.float64)
        named = min(query.named, log_weight.shape[1])
        left_over = (0, query.named - named)
        return Partial(
            log_norm=log_weight.logsumexp(1),
            mean=torch.einsum("bk,bkd->bd", weight, rows).reshape(-1, *self.shape),
            log_tail=nought + NEG_INF,
            log_unread=nought + NEG_INF,
            error=nought,
            heaviest=Heaviest(
                origin=torch.zeros(len(places), query.named, dtype=torch.int64),
                ids=pad(whole.ids[places[:, :named]], left_over, value=-1),
                log_weight=pad(log_weight[:, :named], left_over, value=NEG_INF),
            ),
            count=len(self),
            kernel=query.kernel,
            origins=self.origins,
        )

    def nearest(self, reach: Reach) -> Near:
        return self.source.nearest(reach)

"""The rows nearest to a clean sample: which ones, how far, and the rows themselves."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from negindex.partial import Missing, Origin


class Near(NamedTuple):
    """Rows near to each of B samples, nearest first; the answers of any split of a set merge to the whole's.

    Of rows that are equally far the one of the lowest id comes first, set by set in the order of ``origins``.
    K is the most rows that any sample found; where a sample found fewer, the places left over hold
    id -1, distance inf and a row of zeros.
    """

    origin: Tensor  # (B, K) int64, index into ``origins``
    ids: Tensor  # (B, K) int64
    distances: Tensor  # (B, K) float64, L2 over all dimensions
    rows: Tensor  # (B, K, *S) float64
    origins: tuple[Origin, ...]
    missing: tuple[Missing, ...] = ()  # sets of the same union that are not in the answer

    @property
    def found(self) -> Tensor:
        """(B, K) bool: the places that hold a row."""
        return self.ids >= 0

    def merge(self, other: Near, k: int | None = None) -> Near:
        """What both sets of rows hold together, at most ``k`` rows a sample."""
        origins = tuple(dict.fromkeys(self.origins + other.origins))
        origin = torch.cat([_renumbered(self, origins), _renumbered(other, origins)], 1)
        ids, distances = (torch.cat(pair, 1) for pair in ((self.ids, other.ids), (self.distances, other.distances)))
        order = nearest_first(distances, origin, ids)[:, : most((ids >= 0).sum(1), k)]
        rows = torch.cat([self.rows, other.rows], 1)
        return Near(
            origin=origin.gather(1, order),
            ids=ids.gather(1, order),
            distances=distances.gather(1, order),
            rows=rows[torch.arange(len(rows), device=rows.device)[:, None], order],
            origins=origins,
            missing=tuple(dict.fromkeys(self.missing + other.missing)),
        )

    @classmethod
    def together(cls, parts: Sequence[Near]) -> Near:
        """Answers of the same sets about different samples, one after the other, as one answer about all of them."""
        width = max(part.ids.shape[1] for part in parts)
        columns = zip(*(_widened(part, width) for part in parts), strict=True)
        origin, ids, distances, rows = map(torch.cat, columns)
        missing = tuple(dict.fromkeys(one for part in parts for one in part.missing))
        return cls(origin, ids, distances, rows, parts[0].origins, missing)

    def about(self, samples: slice) -> Near:
        """The same about some of its samples."""
        columns = (self.origin[samples], self.ids[samples], self.distances[samples], self.rows[samples])
        return Near(*columns, self.origins, self.missing)

    def to(self, device: torch.device | str) -> Near:
        """The same answer with its tensors on ``device``."""
        return self._replace(
            origin=self.origin.to(device),
            ids=self.ids.to(device),
            distances=self.distances.to(device),
            rows=self.rows.to(device),
        )


def nearest_first(distances: Tensor, origin: Tensor, ids: Tensor) -> Tensor:
    """(B, K) int64, the order by distance, then by set, then by id; places that hold no row come last."""
    order = ids.where(ids >= 0, torch.iinfo(ids.dtype).max).argsort(dim=1, stable=True)
    for key in (origin, distances):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


def most(counts: Tensor, k: int | None) -> int:
    """The places that an answer needs: the largest of the counts (B,), at most ``k``; 0 for no samples."""
    largest = int(max(counts.tolist(), default=0))
    return largest if k is None else min(largest, k)


def _widened(near: Near, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Its columns, with places for as many rows as another answer has; nothing lies in them."""
    more = width - near.ids.shape[1]

    def put(part: Tensor, value: float) -> Tensor:
        left_over = part.new_full((len(part), more, *part.shape[2:]), value)
        return torch.cat([part, left_over], 1) if more else part

    return put(near.origin, 0), put(near.ids, -1), put(near.distances, inf), put(near.rows, 0)


def _renumbered(near: Near, origins: tuple[Origin, ...]) -> Tensor:
    place = torch.tensor([origins.index(o) for o in near.origins], device=near.origin.device)
    return place[near.origin]

"""The rows nearest to a clean sample: which ones, how far, and the rows themselves."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from negindex.partial import Origin


class Near(NamedTuple):
    """Rows near to each of B samples, nearest first; the answers of any split of a set merge to the whole's.

    K is the most rows that any sample found; where a sample found fewer, the places left over hold
    id -1, distance inf and a row of zeros.
    """

    origin: Tensor  # (B, K) int64, index into ``origins``
    ids: Tensor  # (B, K) int64
    distances: Tensor  # (B, K) float64, L2 over all dimensions
    rows: Tensor  # (B, K, *S) float64
    origins: tuple[Origin, ...]

    @property
    def found(self) -> Tensor:
        """(B, K) bool: the places that hold a row."""
        return self.ids >= 0

    def merge(self, other: Near, k: int | None = None) -> Near:
        """What both sets of rows hold together, at most ``k`` rows a sample."""
        origins = tuple(dict.fromkeys(self.origins + other.origins))
        distances, order = torch.cat([self.distances, other.distances], 1).sort(dim=1, stable=True)
        ids = torch.cat([self.ids, other.ids], 1).gather(1, order)
        width = most((ids >= 0).sum(1), k)
        order = order[:, :width]
        rows = torch.cat([self.rows, other.rows], 1)
        return Near(
            origin=torch.cat([_renumbered(self, origins), _renumbered(other, origins)], 1).gather(1, order),
            ids=ids[:, :width],
            distances=distances[:, :width],
            rows=rows[torch.arange(len(rows), device=rows.device)[:, None], order],
            origins=origins,
        )

    def to(self, device: torch.device | str) -> Near:
        """The same answer with its tensors on ``device``."""
        return self._replace(
            origin=self.origin.to(device),
            ids=self.ids.to(device),
            distances=self.distances.to(device),
            rows=self.rows.to(device),
        )


def most(counts: Tensor, k: int | None) -> int:
    """The places that an answer needs: the largest of the counts (B,), at most ``k``; 0 for no samples."""
    largest = int(max(counts.tolist(), default=0))
    return largest if k is None else min(largest, k)


def _renumbered(near: Near, origins: tuple[Origin, ...]) -> Tensor:
    place = torch.tensor([origins.index(o) for o in near.origins], device=near.origin.device)
    return place[near.origin]

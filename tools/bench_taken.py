"""A bench's rows from sets that exist: most of them searched, the others held out to be asked about."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from negindex.errors import OutOfRange, SpaceMismatch
from negindex.tools.bench_sets import APART
from negindex.tools.latents import BLOCK

if TYPE_CHECKING:
    from torch import Tensor

    from negindex.snapshot import Snapshot

_LEARNED = 100, 1000  # rows of each set that the simulated model has seen: one in ten, within these
_FEWEST = 800


class _Parts(NamedTuple):
    """Places of a set's rows, each in one part."""

    searched: Tensor
    asked: Tensor
    learned: Tensor

    @classmethod
    def of(cls, rows: int, asked: int, seed: int) -> _Parts:
        import torch

        if rows < _FEWEST + asked:
            raise OutOfRange(f"{rows} rows in force; measuring takes {_FEWEST + asked}: {asked} of them are held out")
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        until = asked + min(max(rows // 10, _LEARNED[0]), _LEARNED[1])
        return cls(order[until:].sort().values, order[:asked], order[asked:until])


class Taken:
    """Two sets as a bench's population: the negatives, and benign images."""

    def __init__(self, negatives: Snapshot, reference: Snapshot, asked: int, seed: int) -> None:
        """asked: held-out rows of each set that queries are made of."""
        if (negatives.shape, negatives.space) != (reference.shape, reference.space):
            raise SpaceMismatch(
                f"negatives of {negatives.shape}, {negatives.space!r}, beside a reference of {reference.shape}, "
                f"{reference.space!r}; give two sets that were built alike"
            )
        self.shape, self.space, self.seed = negatives.shape, negatives.space, seed
        self._sets = {"rows": negatives, "held out": negatives, "benign": reference}
        self._parts = {kind: _Parts.of(len(one), asked, seed) for kind, one in self._sets.items()}

    def count(self, kind: str) -> int:
        """Rows of a kind that are searched."""
        return len(self._parts[kind].searched)

    def block(self, kind: str, number: int, rows: int = BLOCK) -> Tensor:
        """Some rows of a kind, (at most ``rows``, *S) float32; those from APART on are in no set that is searched."""
        parts = self._parts[kind]
        start = 0 if number >= APART else number * BLOCK
        part = parts.searched if number < APART else parts.asked if number == APART else parts.learned
        found = self._sets[kind].take(part[start : start + rows])
        return found.rows.float().reshape(-1, *self.shape)

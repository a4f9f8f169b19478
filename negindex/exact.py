"""Every row weighed: the reference that each faster engine is measured against."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from negindex.errors import DuplicateKey, NotFinite, OutOfRange, ShapeMismatch
from negindex.kernel import squared_distances
from negindex.moments import Moments
from negindex.near import Near, most, nearest_first
from negindex.negatives import Negatives, Query, Reach, row_elements
from negindex.partial import NEG_INF, Heaviest, Origin, Partial

BLOCK_ELEMENTS = 1 << 21  # 16 MiB of float64 at a time: of 32 MiB and more the system takes back each page after use


class Block(NamedTuple):
    """Some rows in force and their ids."""

    ids: Tensor  # (n,) int64
    rows: Tensor  # (n, D) any float dtype


class Scan(Negatives):
    """Answers by one pass over all rows, block by block."""

    @abstractmethod
    def blocks(self, size: int) -> Iterable[Block]:
        """The rows in force in blocks of at most ``size`` rows. What ``without`` keeps stays in this order."""

    @abstractmethod
    def take(self, places: Tensor) -> Block:
        """The rows at these places (n,) int64, counted from 0 in the order of ``blocks``; in the order asked for.

        Raises OutOfRange for a place that no row has.
        """

    @abstractmethod
    def without(self, digests: Collection[str]) -> Scan: ...

    def answer(self, query: Query) -> Partial:
        origins = self.origins
        parts = (weigh(block, query, self.shape, origins) for block in self._all())
        return reduce(query.merge, parts).to(query.x_t.device)

    def nearest(self, reach: Reach) -> Near:
        origins = self.origins
        parts = (measure(block, reach, self.shape, origins) for block in self._all())
        return reduce(reach.merge, parts).to(reach.x.device)

    def moments(self) -> Moments:
        nothing = Moments(0, torch.zeros(row_elements(self.shape), dtype=torch.float64), 0.0)
        return reduce(Moments.merge, map(_moments_of, self._all()), nothing)

    def _all(self) -> Iterable[Block]:
        """All rows in force, in blocks that keep memory bounded."""
        return self.blocks(max(1, BLOCK_ELEMENTS // row_elements(self.shape)))


def weigh(block: Block, query: Query, shape: tuple[int, ...], origins: tuple[Origin, ...]) -> Partial:
    """The posterior over one block of rows, in float64 (Kim et al. 2025, Eq. 6).

    Cost: B n D subtractions for the weights and as many multiplications for the mean.
    """
    device = block.rows.device
    rows = block.rows.to(torch.float64)  # (n, D)
    distances = squared_distances(  # (B, n)
        query.kernel.reduce(query.y.to(device)), query.kernel.reduce(rows)
    )
    log_weight = -distances * query.precision.to(device)[:, None]
    named, place = log_weight.topk(min(query.named, len(rows)), dim=1)
    left_over = (0, query.named - named.shape[1])
    log_norm = log_weight.logsumexp(1)
    return Partial(
        log_norm=log_norm,
        mean=(log_weight.softmax(1) @ rows).reshape(-1, *shape),
        log_tail=torch.full_like(log_norm, NEG_INF),
        log_unread=torch.full_like(log_norm, NEG_INF),
        error=torch.zeros_like(log_norm),
        heaviest=Heaviest(
            origin=pad(torch.zeros_like(place), left_over),
            ids=pad(block.ids[place], left_over, value=-1),
            log_weight=pad(named, left_over, value=NEG_INF),
        ),
        count=len(rows),
        kernel=query.kernel,
        origins=origins,
    )


def measure(block: Block, reach: Reach, shape: tuple[int, ...], origins: tuple[Origin, ...]) -> Near:
    """The rows of one block within reach, nearest first. Cost: B n D subtractions in float64."""
    device = block.rows.device
    rows = block.rows.to(torch.float64)  # (n, D)
    x, radius = (part.to(device, torch.float64) for part in (reach.x.flatten(1), reach.radius))
    distances = squared_distances(x, rows).sqrt()  # (B, n)
    within = distances <= radius[:, None]
    width = most(within.sum(1), reach.k)
    value, place = distances.topk(width, dim=1, largest=False)  # (B, K)
    if width:
        alike = int((distances <= value[:, -1:]).sum(1).max())
        value, place = (value, place) if alike == width else distances.topk(alike, dim=1, largest=False)
    order = nearest_first(value, torch.zeros_like(place), block.ids[place])[:, :width]
    place = place.gather(1, order)
    found = within.gather(1, place)
    kept = torch.where(found[..., None], rows[place], 0.0)  # (B, K, D)
    return Near(
        origin=torch.zeros_like(place),
        ids=torch.where(found, block.ids[place], -1),
        distances=torch.where(found, distances.gather(1, place), float("inf")),
        rows=kept.reshape(*place.shape, *shape),
        origins=origins,
    )


def _moments_of(block: Block) -> Moments:
    rows = block.rows.to(torch.float64)
    mean = rows.mean(0)
    return Moments(len(rows), mean.cpu(), float((rows - mean).square().sum()))


class Exact(Scan):
    """Negatives over an array in memory; immutable.

    rows: (N, *S), torch or numpy, any float dtype, kept as given and not copied: leave the array as it is.
        N may be 0.
    ids: (N,) distinct integers >= 0, or None for 0 … N - 1.
    device: where the rows live and are weighed; answers come back on the query's device.

    >>> from negindex import NoiseLevel
    >>> told = Exact(torch.tensor([[0.0], [4.0]])).posterior(torch.tensor([[1.0]]), NoiseLevel(1.0, 1.0))
    >>> round(told.mean.item(), 4)  # 4 exp(-9/2) / (exp(-1/2) + exp(-9/2))
    0.0719
    """

    def __init__(
        self,
        rows: Tensor | np.ndarray,
        ids: Sequence[int] | Tensor | None = None,
        device: torch.device | str | None = None,
        *,
        space: str = "pixels",
    ) -> None:
        self._rows = torch.as_tensor(rows).detach()
        if self._rows.dim() < 2 or not self._rows.is_floating_point():
            raise ShapeMismatch(
                f"rows of shape {tuple(self._rows.shape)} and type {self._rows.dtype}; give floating-point rows (N, *S)"
            )
        self.shape, self.space = tuple(self._rows.shape[1:]), space
        row_elements(self.shape)
        bad = (~torch.isfinite(self._rows.flatten(1)).all(1)).nonzero().flatten().tolist()
        if bad:
            raise NotFinite(f"rows {bad[:10]} of {len(self._rows)} hold NaN or Inf; leave them out")
        self._rows = self._rows.to(device or self._rows.device)
        self._ids = torch.arange(len(self._rows)) if ids is None else torch.as_tensor(ids, dtype=torch.int64)
        _check_ids(self._ids, len(self._rows))
        self._ids = self._ids.to(self._rows.device)

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def origins(self) -> tuple[Origin, ...]:  # computed once: it hashes every row
        whole = hashlib.sha256(repr(self.digests()).encode())
        return (Origin(f"exact:{whole.hexdigest()[:32]}", 0),)

    def digests(self) -> dict[int, str]:
        return self._digests

    @cached_property
    def _digests(self) -> dict[int, str]:
        rows = self._rows.cpu().contiguous().flatten(1).view(torch.uint8).numpy()
        return {int(i): hashlib.sha256(row.tobytes()).hexdigest() for i, row in zip(self._ids, rows, strict=True)}

    def holds(self, digests: Collection[str]) -> set[str]:
        return set(digests) & set(self.digests().values())

    def without(self, digests: Collection[str]) -> Exact:
        gone = self.holds(digests)
        if not gone:
            return self
        keep = torch.tensor([digest not in gone for digest in self.digests().values()], dtype=torch.bool)
        return Exact(self._rows[keep], self._ids[keep], space=self.space)

    def blocks(self, size: int) -> Iterator[Block]:
        flat = self._rows.flatten(1)
        for start in range(0, len(flat), size):
            yield Block(self._ids[start : start + size], flat[start : start + size])

    def take(self, places: Tensor) -> Block:
        check_places(places, len(self))
        at = places.to(self._rows.device)
        return Block(self._ids[at], self._rows.flatten(1)[at])


def check_places(places: Tensor, rows: int) -> None:
    """Raise OutOfRange unless every place is one of 0 … rows - 1."""
    if len(places) and not 0 <= int(places.min()) <= int(places.max()) < rows:
        raise OutOfRange(
            f"places {int(places.min())} to {int(places.max())} in a set of {rows} rows; "
            f"give places from 0 to {rows - 1}"
        )


def _check_ids(ids: Tensor, rows: int) -> None:
    if ids.shape != (rows,) or (rows and int(ids.min()) < 0):
        raise ShapeMismatch(f"ids of shape {tuple(ids.shape)} for {rows} rows; give one integer >= 0 a row")
    if len(ids.unique()) != rows:
        raise DuplicateKey(f"{rows - len(ids.unique())} of {rows} ids are repeated; give each row its own")

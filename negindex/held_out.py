"""Rows held out of a set, noised and predicted from the others: how well a kernel denoises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from negindex.errors import OutOfRange
from negindex.exact import BLOCK_ELEMENTS, Scan
from negindex.kernel import Kernel
from negindex.negatives import row_elements
from negindex.projection import Space, generator

NEAR_DUPLICATE = 0.15  # of the rms radius, as for a copy gate alone: such rows are left out with the row they copy
HEAD = 64  # leading directions that an error is summed over exactly; the rest of it is read off a sketch
_ALIKE = 1e-6  # rows that scatter less, relative to their mean, are one row to float32
_CHUNK = 1 << 25  # weights at a time


class Predicted(NamedTuple):
    """How well a kernel predicts the held-out rows of one set."""

    error: float  # mean square over held-out rows, all dimensions, relative to the set's mean square radius
    effective: float  # rows that share the weight: median of 1 / sum of squared weights


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Q held-out rows x and the products of all N rows z with them, about a centre; no full-size row is kept.

    A query is y = x + s e, with one draw of noise e for all levels: <y, z> = <x, z> + s <e, z> from two products.
    Distances leave out ||y||², which is the same for all rows.
    """

    x: Tensor  # (Q, d) float32, as the widest projection sees it
    e: Tensor  # (Q, d) float32
    whole: Tensor  # (Q, 3) float64, ||x||², <x, e>, ||e||² in all dimensions
    wanted: Tensor  # (Q, t) float32, x in the numbers that errors are summed over
    clean: Tensor  # (Q, N) float32, <x, z>
    noise: Tensor  # (Q, N) float32, <e, z>
    kept: Tensor  # (Q, N) bool: neither x nor a near-duplicate of it
    reduced: Tensor  # (N, d) float32
    target: Tensor  # (N, t) float32: leading directions and a sketch of the rest
    norms: Tensor  # (N,) float32, ||z||²
    rms: float

    @classmethod
    def of(
        cls, rows: Scan, centre: Tensor, directions: Tensor, queries: int, seed: int, among: Tensor | None = None
    ) -> HeldOut:
        """Hold out ``queries`` rows; directions (d, D) orthonormal, leading ones first. among: places of the only rows
        that count.

        Cost: one pass over the rows for d + 64 + 2 Q products each. Memory: 4 (d + 128) + 9 Q bytes a row.
        Raises OutOfRange when every row is a near-duplicate of every other.
        """
        random, count = generator(seed), len(rows) if among is None else len(among)
        held = torch.randperm(count, generator=random)[:queries]
        x = rows.take(held if among is None else among[held]).rows.to("cpu", torch.float32) - centre
        e = torch.randn(x.shape, generator=random)
        sketcher = Space.of(Kernel(projection=directions[:HEAD]), centre, seed).sketcher
        inside = directions.T.to(torch.float32)
        columns = torch.cat([inside, sketcher, x.T, e.T], 1)  # one product of matrices goes faster than four
        parts = [inside.shape[1], sketcher.shape[1], len(x), len(x)]
        seen = x @ inside
        made = cls(
            x=seen,
            e=e @ inside,
            whole=torch.stack([(a.double() * b).sum(1) for a, b in ((x, x), (x, e), (e, e))], 1),
            wanted=torch.cat([seen[:, :HEAD], x @ sketcher], 1),
            clean=torch.empty(len(x), count),
            noise=torch.empty(len(x), count),
            kept=torch.empty(len(x), count, dtype=torch.bool),
            reduced=torch.empty(count, parts[0]),
            target=torch.empty(count, min(parts[0], HEAD) + parts[1]),
            norms=torch.empty(count),
            rms=0.0,
        )
        total, start = torch.zeros(len(centre), dtype=torch.float64), 0
        room = torch.empty(max(1, 2 * BLOCK_ELEMENTS // row_elements(rows.shape)), len(centre))  # taken again and again
        for block in rows.blocks(len(room)) if among is None else map(rows.take, among.split(len(room))):
            here = slice(start, start := start + len(block.ids))
            apart = room[: len(block.ids)].copy_(block.rows).sub_(centre)
            made.norms[here], total = apart.norm(dim=1).square_(), total.add_(apart.sum(0))
            made.reduced[here], sketch, clean, noise = (apart @ columns).split(parts, 1)
            made.target[here] = torch.cat([made.reduced[here, :HEAD], sketch], 1)
            made.clean[:, here], made.noise[:, here] = clean.T, noise.T
        spread = made.norms.double().mean() - (total / count).square().sum()
        rms = float(spread.clamp_min(0).sqrt())
        return made._leaving_out(x.square().sum(1), rms if rms > _ALIKE * float(centre.norm()) else 0.0)

    def _leaving_out(self, lengths: Tensor, rms: float) -> HeldOut:
        """Mark the rows that may predict each held-out row of squared length (Q,), and drop those that none may."""
        for q in range(len(lengths)):
            distance = self.norms - 2 * self.clean[q] + lengths[q]
            self.kept[q] = distance > (NEAR_DUPLICATE * rms) ** 2
        some = self.kept.any(1)
        if rms == 0 or not bool(some.any()):
            raise OutOfRange(
                f"each of {len(some)} rows that were held out has only near-duplicates beside it, within "
                f"{NEAR_DUPLICATE} of the rms radius {rms:g}; use the literal kernel with the copy gate"
            )
        if bool(some.all()):
            return replace(self, rms=rms)
        held = {f.name: getattr(self, f.name)[some] for f in fields(self)[:7]}
        return replace(self, rms=rms, **held)

    def distances(self, s: float, width: int | None) -> Tensor:
        """||P (y - z)||² less the least of them, (Q, N) float32, inf for rows left out; None: in all dimensions."""
        near = self._shifted(s, width)
        return near.sub_(near.amin(1, keepdim=True))

    def log_means(self, s: float, width: int | None, variance: float) -> Tensor:
        """(Q,) float64: the log of the mean kernel value, log_norm - log N over the rows not left out.

        Of the squared distances, some 1e-7 is lost: nothing beside how far these values scatter.
        """
        near, shift = self._shifted(s, width), self._lengths(s, width)
        values = near.div_(-2 * variance).logsumexp(1).double() - shift / (2 * variance)
        return values - self.kept.sum(1).log()

    def _shifted(self, s: float, width: int | None) -> Tensor:
        """||P (y - z)||² - ||P y||², (Q, N) float32, inf for rows left out."""
        if width is None:
            near = self.norms - 2 * (self.clean + s * self.noise)
        else:
            rows, query = self.reduced[:, :width], self.x[:, :width] + s * self.e[:, :width]
            near = torch.addmm(rows.square().sum(1), query, rows.T, alpha=-2)
        return near.masked_fill_(~self.kept, inf)

    def _lengths(self, s: float, width: int | None) -> Tensor:
        """||P y||², (Q,) float64."""
        if width is None:
            return self.whole @ torch.tensor([1, 2 * s, s * s], dtype=torch.float64)
        return (self.x[:, :width] + s * self.e[:, :width]).double().square().sum(1)

    def predict(self, distances: Tensor, variance: float) -> Predicted:
        """Each held-out row as the weighted mean of the others; variance = h², inf for the plain mean."""
        missed, effective = [], []
        for weight, wanted in self._weights(distances, variance):
            missed.append((weight @ self.target - wanted).square().sum(1, dtype=torch.float64))
            effective.append(1 / weight.square().sum(1))
        error = torch.cat(missed).mean() / self.rms**2
        return Predicted(float(error), float(torch.cat(effective).median()))

    def _weights(self, distances: Tensor, variance: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights (q, N) float32 of some queries at a time, and what they should sum to (q, t)."""
        some = max(1, _CHUNK // distances.shape[1])
        parts = (part.split(some) for part in (distances, self.kept, self.wanted))
        for near, kept, wanted in zip(*parts, strict=True):
            log_weight = near / (-2 * variance) if variance < inf else torch.where(kept, 0.0, -inf)
            yield log_weight.softmax(1), wanted

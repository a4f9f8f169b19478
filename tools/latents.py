"""Structured latents by the million, seeded: what the benches of look-ups search, and what they ask.

A row is a smooth image, a sum of fields with a 1/f spectrum, plus white noise. The fields' weights fall in
clusters that are curved and heavy-tailed, and whose sizes follow a power law, so that no Gaussian and no mixture
of few of them is exact. Any block of rows can be made alone, and is the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from negindex.negatives import row_elements

BLOCK = 4096  # rows that are made at once
FIELDS, LOCAL = 128, 12  # smooth fields; directions in which a cluster extends
WHITE = 0.35  # rms element of the white part
BANK = 1 << 22  # white numbers, read from places drawn for each row
KINDS = ("rows", "held out", "benign")


class Latents:
    """Rows of one population.

    >>> population = Latents((4, 8, 8), clusters=10)
    >>> torch.equal(population.block("rows", 3), population.block("rows", 3))
    True
    """

    def __init__(self, shape: tuple[int, ...], clusters: int = 300, seed: int = 0) -> None:
        """clusters: of the negatives; benign images fall in as many others, in the same fields."""
        self.shape, self.seed, self.space = shape, seed, f"simulated {seed}"
        draw = np.random.default_rng(seed)
        self._fields = _smooth(shape, min(FIELDS, row_elements(shape)), draw)
        count = len(self._fields)
        spectrum = np.arange(1, count + 1) ** -0.6
        self._scale = 0.5 * np.sqrt(row_elements(shape) / (spectrum**2).sum())
        self._spectrum = spectrum
        self._centres = draw.normal(size=(2, clusters, count)) * spectrum
        self._directions = draw.normal(size=(2, clusters, LOCAL, count)) * spectrum * 0.35
        self._bends = draw.normal(size=(2, clusters, count)) * spectrum * 0.25
        sizes = draw.pareto(1.2, (2, clusters)) + 0.2
        self._shares = sizes / sizes.sum(1, keepdims=True)
        self._white = torch.from_numpy(draw.normal(size=BANK).astype(np.float32) * WHITE)

    def block(self, kind: str, number: int, rows: int = BLOCK) -> Tensor:
        """Some rows of a kind, (rows, *S) float32; of one number, always the same."""
        draw = np.random.default_rng((self.seed, KINDS.index(kind), number))
        family = int(kind == "benign")
        cluster = draw.choice(self._shares.shape[1], rows, p=self._shares[family])
        local = 0.7 * draw.standard_t(4, (rows, LOCAL))
        weights = self._centres[family][cluster]
        weights += np.einsum("nl,nlk->nk", local, self._directions[family][cluster])
        weights += (local[:, :1] ** 2 - 1) * self._bends[family][cluster]
        weights += 0.15 * self._spectrum * draw.normal(size=weights.shape)
        smooth = torch.from_numpy((weights * self._scale).astype(np.float32)) @ self._fields
        size = row_elements(self.shape)
        for row, place in enumerate(draw.integers(0, BANK - size, rows).tolist()):
            smooth[row] += self._white[place : place + size]
        return smooth.reshape(-1, *self.shape)

    def some(self, kind: str, rows: int) -> Tensor:
        """The first rows of a kind, (rows, *S) float32."""
        return torch.cat(list(self.blocks(kind, rows)))

    def blocks(self, kind: str, rows: int) -> Iterator[Tensor]:
        """The first rows of a kind, BLOCK at a time."""
        for number, start in enumerate(range(0, rows, BLOCK)):
            yield self.block(kind, number)[: rows - start]


def _smooth(shape: tuple[int, ...], count: int, draw: np.random.Generator) -> Tensor:
    """Orthonormal fields (count, D) with a 1/f spectrum over the last two axes."""
    high, wide = shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(high)[:, None], np.fft.fftfreq(wide)[None])
    loudness = np.maximum(frequency, 1 / max(high, wide)) ** -1.5
    noise = draw.normal(size=(count, *shape))
    fields = np.fft.ifft2(np.fft.fft2(noise) * loudness).real.reshape(count, -1)
    orthonormal, _ = np.linalg.qr(fields.T)
    return torch.from_numpy(np.ascontiguousarray(orthonormal.T, np.float32))

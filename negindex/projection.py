"""Where a kernel sees rows: the part of a row that it weighs by, and a sketch of the part that it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from negindex.kernel import Kernel
from negindex.summed import from_left

SKETCH = 64  # numbers that stand for a row's outside part: its squared length is then known to 18 %
_SWEEPS = 3  # of subspace iteration
_ORTHONORMAL = 1e-6  # how far products of directions may be from those of orthonormal ones
_SPARE = 16  # directions found beyond those asked for, so that the last ones asked for are good


def generator(seed: int) -> torch.Generator:
    """The source of every random choice that is made under ``seed``."""
    return torch.Generator().manual_seed(seed)


def principal_directions(rows: Tensor, weight: Tensor, width: int, seed: int) -> Tensor:
    """The ``width`` directions in which centred rows (n, D) float32 vary most: (width, D) float64, orthonormal.

    weight: (n,), what each row counts; their sum 1. The same under the same seed.
    Cost: 6 n D width multiplications (Halko, Martinsson and Tropp 2011, subspace iteration).
    """
    scale = weight.sqrt()[:, None]
    many = min(width + _SPARE, *rows.shape)
    basis = torch.randn(rows.shape[1], many, generator=generator(seed))
    for _ in range(_SWEEPS):
        basis = torch.linalg.qr(rows.T @ (scale.square() * (rows @ torch.linalg.qr(basis).Q))).Q
    seen = (scale * (rows @ basis)).to(torch.float64)
    turn = torch.linalg.eigh(seen.T @ seen).eigenvectors.flip(1)[:, :width]  # largest first
    exact: Tensor = torch.linalg.qr(basis.to(torch.float64) @ turn).Q  # float32 leaves them orthonormal to 1e-6
    return exact.T.contiguous()


@dataclass(frozen=True, eq=False)
class Space:
    """z = centre + lift P (z - centre) + outside(z), with P the kernel's projection and lift its pseudo-inverse.

    Distances do not feel the centre; it keeps float32 numbers small. A kernel without a projection sees all
    D dimensions and leaves nothing outside.
    """

    kernel: Kernel
    centre: Tensor  # (D,) float32
    lift: Tensor | None  # (D, d) float32; None stands for the identity
    columns: Tensor | None  # (D, d + m) float32: Pᵀ beside the sketch of what is outside

    @classmethod
    def of(cls, kernel: Kernel, centre: Tensor, seed: int = 0, sketch: int = SKETCH) -> Self:
        """centre: (D,). sketch: m, the numbers kept of a row's outside part."""
        centre = centre.to(torch.float32)
        if kernel.projection is None:
            return cls(kernel, centre, None, None)
        inside = kernel.projection  # (d, D)
        lift = inside.T @ torch.linalg.pinv(inside @ inside.T, hermitian=True)  # (D, d)
        random = torch.randn(inside.shape[1], sketch, generator=generator(seed), dtype=torch.float64) / sketch**0.5
        columns = torch.cat([inside.T, random - inside.T @ (lift.T @ random)], 1)
        return cls(kernel, centre, lift.float(), columns.float())

    @property
    def width(self) -> int:
        """d, the dimensions of the kernel."""
        return len(self.centre) if self.lift is None else self.lift.shape[1]

    @property
    def marks(self) -> int:
        """m, the numbers of a sketch."""
        return 0 if self.columns is None else self.columns.shape[1] - self.width

    @property
    def sketcher(self) -> Tensor:
        """(D, m) float32, what a row about the centre is multiplied by to sketch its outside part."""
        return self.centre.new_empty(len(self.centre), 0) if self.columns is None else self.columns[:, self.width :]

    @cached_property
    def stretch(self) -> tuple[float, float]:
        """By how much the kernel's projection lengthens a vector at most, and that of its numbers' absolute values."""
        if self.kernel.projection is None:
            return 1.0, 1.0
        given = (self.kernel.projection, self.kernel.projection.abs())
        largest = (float(torch.linalg.eigvalsh(one @ one.T)[-1]) for one in given)
        length, grain = (max(one, 0.0) ** 0.5 * (1 + 1e-9) for one in largest)
        return length, grain

    @cached_property
    def spread(self) -> tuple[float, float]:
        """Of P Pᵀ, the sum of its eigenvalues and that of their squares: white noise seen by the kernel is s² of them.

        Both are d for an orthonormal projection.
        """
        if self.kernel.projection is None:
            return float(self.width), float(self.width)
        gram = self.kernel.projection @ self.kernel.projection.T
        return float(gram.trace()), float(gram.square().sum())

    def see(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (n, D) of any float dtype inside the kernel, (n, d), and their sketches outside it, (n, m); float32."""
        apart = rows.to("cpu", torch.float32) - self.centre
        if self.columns is None:
            return apart, apart[:, :0]
        seen = apart @ self.columns
        return seen[:, : self.width], seen[:, self.width :]

    def place(self, y: Tensor) -> Tensor:
        """Clean-scaled samples (B, D) as the kernel sees them, (B, d) float64."""
        return self.kernel.reduce(y.to("cpu", torch.float64) - self.centre)

    def raised(self, inside: Tensor) -> Tensor:
        """Points (B, d) of the kernel's space in all dimensions, about the centre: (B, D) float32."""
        inside = inside.to(torch.float32)
        return inside if self._raising is None else from_left(inside, self._raising)

    @cached_property
    def _raising(self) -> Tensor | None:
        """(d, D) float32, ``lift`` in long lines."""
        return None if self.lift is None else self.lift.T.contiguous()

    @cached_property
    def is_orthonormal(self) -> bool:
        """Whether the kernel's projection keeps lengths: distances inside and outside add up to the literal ones."""
        inside = self.kernel.projection
        if inside is None:
            return True
        return bool(((inside @ inside.T) - torch.eye(len(inside), dtype=torch.float64)).abs().max() < _ORTHONORMAL)

    def seen_length(self, inside: Tensor) -> Tensor:
        """The squared lengths in all dimensions of points (n, d) of the kernel's space, (n,) float64."""
        if self.lift is None or self.is_orthonormal:
            return torch.einsum("nd,nd->n", inside, inside).double()
        lift = self.lift.double()
        return torch.einsum("nd,nd->n", inside @ (lift.T @ lift).float(), inside).double()

    def outside(self, apart: Tensor) -> Tensor:
        """What the kernel does not see of vectors (B, D) about the centre: (B, D) of their own dtype."""
        if self.columns is None or self.lift is None:
            return torch.zeros_like(apart)
        inside = apart @ self.columns[:, : self.width].to(apart.dtype)
        return apart - inside @ self.lift.T.to(apart.dtype)


def geometric(low: float, high: float, count: int) -> Sequence[float]:
    """``count`` numbers from ``low`` to ``high``, evenly spaced in their logarithm, to three digits."""
    spaced = torch.logspace(torch.tensor(low).log10(), torch.tensor(high).log10(), count, dtype=torch.float64)
    return [float(f"{value:.3g}") for value in spaced.tolist()]

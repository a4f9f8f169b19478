"""The Gaussian kernel between a noisy sample and a negative row: a named, explicit choice."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from negindex.errors import NotFinite, OutOfRange, ShapeMismatch
from negindex.noise import NoiseLevel

_DISTANCE_CHUNK = 1024  # dimensions summed at once: 16,384 squares are off by 6 epsilon so, by 100 in one sum


class Kernel:
    """log_weight_n = -||P (y - z_n)||² / (2 h²), with y = x_t / alpha and h² = tau(s) s².

    temperatures: (s, tau) pairs. Between them log h² is interpolated in log s; below the lowest s the
        bandwidth h stays what it is there; above the highest tau = 1. None given: tau = 1 everywhere.
    projection: (d, D) matrix P, or None for all D dimensions.

    ``Kernel()`` is the literal kernel of Kim et al. 2025, Eq. 6; ``Kernel.floored(s)`` never gets narrower than at s.

    >>> Kernel().name
    'literal'
    >>> Kernel.floored(0.5).variance(NoiseLevel(1.0, torch.tensor([0.125, 0.5, 2.0]))).tolist()
    [0.25, 0.25, 4.0]
    """

    def __init__(self, temperatures: Iterable[tuple[float, float]] = (), projection: Tensor | None = None) -> None:
        self.temperatures = tuple(sorted((float(s), float(tau)) for s, tau in temperatures))
        for s, tau in self.temperatures:
            if not (0 < s < float("inf") and 0 < tau < float("inf")):
                raise OutOfRange(f"temperature {tau} at noise level {s}; both must be positive and finite")
        if projection is not None:
            if projection.dim() != 2:
                raise ShapeMismatch(f"projection of shape {tuple(projection.shape)}; give a matrix (d, D)")
            if not bool(torch.isfinite(projection).all()):
                raise NotFinite("the projection holds NaN or Inf; give finite numbers")
            projection = projection.detach().to("cpu", torch.float64).contiguous()
        self.projection = projection

    @classmethod
    def floored(cls, floor: float | None, projection: Tensor | None = None) -> Kernel:
        """Literal down to noise level ``floor``, below it as wide as there; a floor of None is the literal kernel.

        With few rows the literal kernel ends by telling only copies from everything else; this one goes on
        telling what looks alike.
        """
        return cls(() if floor is None else [(floor, 1.0)], projection)

    @cached_property
    def fingerprint(self) -> str:
        """Names the kernel: equal exactly when temperatures and projection are, bit for bit."""
        digest = hashlib.sha256(struct.pack(f"<{2 * len(self.temperatures)}d", *sum(self.temperatures, ())))
        if self.projection is not None:
            digest.update(str(tuple(self.projection.shape)).encode() + self.projection.numpy().tobytes())
        return digest.hexdigest()[:32]

    @property
    def name(self) -> str:
        """'literal', or what was changed and the fingerprint's first digits."""
        if not self.temperatures and self.projection is None:
            return "literal"
        kind = "tempered" if self.projection is None else f"projected-{len(self.projection)}"
        return f"{kind}-{self.fingerprint[:8]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kernel) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"

    def variance(self, level: NoiseLevel) -> Tensor:
        """h² = tau(s) s², shape as the level's, float64; inf where alpha = 0."""
        if not self.temperatures:
            return level.s.square()
        s = level.s.numpy()
        at, tau = np.array(self.temperatures).T
        with np.errstate(over="ignore"):
            inside = np.exp(np.interp(np.log(s), np.log(at), np.log(tau * at**2)))
        return torch.from_numpy(np.where(s > at[-1], s**2, inside))

    def reduce(self, points: Tensor) -> Tensor:
        """The points (n, D) as the kernel sees them, (n, d) float64."""
        points = points.to(torch.float64)
        if self.projection is None:
            return points
        if points.shape[1] != self.projection.shape[1]:
            raise ShapeMismatch(
                f"a projection of {self.projection.shape[1]} dimensions for rows of {points.shape[1]}; "
                "use the kernel that was made for this collection"
            )
        return points @ self.projection.T.to(points.device)


LITERAL = Kernel()


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """||a_i - b_j||² by direct subtraction: (n, d), (m, d) float64 -> (n, m) float64.

    Expanding the square would be faster and cancels catastrophically where the distance is small
    beside the norms, which is just where one row wins.
    """
    total = a.new_zeros(len(a), len(b))
    for a_part, b_part in zip(a.split(_DISTANCE_CHUNK, 1), b.split(_DISTANCE_CHUNK, 1), strict=True):
        total += torch.cdist(a_part, b_part, compute_mode="donot_use_mm_for_euclid_dist").square_()
    return total

"""How far samples lie from real images, how much of them they cover, and how much they differ among themselves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from negindex.errors import OutOfRange, ShapeMismatch
from negindex.sampler.evaluation.intervals import Figure, bootstrap

Array = NDArray[np.floating]
NEIGHBOURS = 3
_AT_ONCE = 1 << 22  # distances held at a time


class Gaussian(NamedTuple):
    """The mean (d,) and the covariance (d, d) of features."""

    mean: Array
    covariance: Array

    @classmethod
    def of(cls, features: Array) -> Gaussian:
        """Of features (N, d); raises OutOfRange for fewer than two."""
        if len(features) < 2:
            raise OutOfRange(f"{len(features)} samples have no covariance; give at least 2")
        return cls(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """||m_a - m_b||² + tr(C_a + C_b - 2 (C_a C_b)^1/2): the squared Fréchet distance of two Gaussians.

    tr (C_a C_b)^1/2 is that of (R C_b R)^1/2 with R = C_a^1/2, which is symmetric: no complex root is needed.
    Of N samples it is too large by about O(1 / N): compare cells of the same N.
    Source: Heusel et al. 2017, there over the features of Inception.
    """
    if a.mean.shape != b.mean.shape:
        raise ShapeMismatch(f"features of {a.mean.shape[0]} and {b.mean.shape[0]} numbers; use one judge for both")
    root = _root(a.covariance)
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b.covariance @ root), 0, None)).sum()
    apart = float(((a.mean - b.mean) ** 2).sum())
    return max(apart + float(np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap), 0.0)


def further(features: Array, than: Array, real: Array) -> Figure:
    """By how much features (N, d) lie further from the real ones (M, d) than others of the same seeds (N, d).

    The Fréchet distance's difference, with the bootstrap of seeds that both share: what both owe to them cancels.
    """
    if len(features) != len(than):
        raise ShapeMismatch(f"{len(features)} samples beside {len(than)}; compare cells of the same seeds")
    target = Gaussian.of(real)

    def apart(drawn: NDArray[np.int64]) -> float:
        return frechet(Gaussian.of(features[drawn]), target) - frechet(Gaussian.of(than[drawn]), target)

    return bootstrap(apart, len(features))


def covered(points: Array, by: Array, neighbours: int = NEIGHBOURS) -> NDArray[np.bool_]:
    """Which points (N, d) lie in a ball around one of ``by`` (M, d) that reaches to its k-th neighbour among ``by``.

    Precision is the share of samples covered by real images, recall that of real images covered by samples.
    Source: Kynkäänniemi et al. 2019.
    """
    if len(by) <= neighbours:
        raise OutOfRange(f"{len(by)} points have no {neighbours} neighbours each; give at least {neighbours + 1}")
    # the point itself is the nearest, at distance 0
    reach = np.concatenate([np.partition(_squared(some, by), neighbours, 1)[:, neighbours] for some in _blocks(by, by)])
    return np.concatenate([(_squared(some, by) <= reach).any(1) for some in _blocks(points, by)])


def nearest(points: Array, to: Array) -> NDArray[np.float64]:
    """(N,) L2 distance of each point (N, d) from the nearest of ``to`` (M, d); by subtraction for the nearest."""
    place = np.concatenate([_squared(some, to).argmin(1) for some in _blocks(points, to)])
    distance: NDArray[np.float64] = np.sqrt(((points.astype(np.float64) - to[place]) ** 2).sum(1))
    return distance


def vendi(features: Array) -> float:
    """exp of the entropy of the eigenvalues of K / N, K the cosines: how many different samples there are, 1 to N.

    K / N and the (d, d) matrix of the normalised features share their eigenvalues, so N may be large.
    Source: Friedman and Dieng 2022.
    """
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length == 0, 1, length)
    eigenvalues = np.clip(np.linalg.eigvalsh(unit.T @ unit / len(unit)), 0, None)
    share = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 1.0


def _root(covariance: Array) -> Array:
    """The symmetric root of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    root: Array = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


def _blocks(points: Array, to: Array) -> list[Array]:
    return np.array_split(points, max(1, -(-len(points) * len(to) // _AT_ONCE)))


def _squared(a: Array, b: Array) -> Array:
    """(n, m) squared distances; of features, which are of order one, so that expanding the square does no harm."""
    squares: Array = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return squares.clip(0)

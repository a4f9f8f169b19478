"""Sets with the structure that mixtures live on, and the exact sums that their answers are held against."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from worlds import seeded

from negindex import Exact, Kernel, Mixture, NoiseLevel, Partial
from negindex.clusters import Clusters
from negindex.head import Effort
from negindex.projection import Space, principal_directions
from negindex.trust import Trust


def learn_from_few(patch, levels):
    """Trust from a few probes at a few levels, where it is not what is tested."""
    patch.setattr("negindex.trust.LEVELS", levels)
    patch.setattr("negindex.trust._HELD_OUT", 24)


SHAPE, D = (1, 8, 8), 64
LEVELS = (0.2, 1.0, 3.0, 10.0, 30.0)


def rows(count: int, seed: int = 0, groups: int = 20) -> Tensor:
    """(count, 1, 8, 8) float16: curved groups of different size and heavy tails, and something white."""
    shape, random = seeded(7), seeded(seed)
    spectrum = torch.arange(1, D + 1, dtype=torch.float64).pow(-0.6)
    centres = 3 * torch.randn(groups, D, generator=shape, dtype=torch.float64) * spectrum
    ways = torch.randn(groups, 4, D, generator=shape, dtype=torch.float64) * spectrum
    bend = torch.randn(groups, D, generator=shape, dtype=torch.float64) * spectrum / 2
    share = torch.rand(groups, generator=shape) + 0.1
    group = torch.multinomial(share, count, replacement=True, generator=random)
    along = torch.randn(count, 4, generator=random, dtype=torch.float64)
    along = along / torch.rand(count, 1, generator=random, dtype=torch.float64).add(0.1).sqrt()
    made = centres[group] + torch.einsum("nl,nld->nd", along, ways[group]) + (along[:, :1].square() - 1) * bend[group]
    made = made + 0.1 * torch.randn(count, D, generator=random, dtype=torch.float64)
    return made.half().reshape(count, *SHAPE)


def principal(given: Tensor, width: int) -> Tensor:
    """(width, D) float64, the leading directions of the rows."""
    flat = given.flatten(1).float()
    return principal_directions(flat - flat.mean(0), torch.full((len(flat),), 1 / len(flat)), width, 0)


def kernel(given: Tensor, width: int = 12) -> Kernel:
    """A projection of the rows and temperatures that leave some ten rows with weight."""
    return Kernel([(0.2, 64.0), (1.0, 3.0), (3.0, 1.0)], principal(given, width))


def noised(clean: Tensor, s: float, seed: int) -> Tensor:
    return clean.double() + s * torch.randn(clean.shape, generator=seeded(seed), dtype=torch.float64)


def scanned(given: Tensor, x: Tensor, s: float, kernel: Kernel) -> Partial:
    return Exact(given).posterior(x, NoiseLevel(1.0, s), kernel=kernel)


def rms(given: Tensor) -> float:
    return Exact(given).moments().rms


def off(told: Partial, true: Partial, radius: float) -> Tensor:
    """(B,) the true error, in the unit of the stated one."""
    return (told.mean - true.mean).flatten(1).norm(dim=1) / radius


@functools.cache
def many() -> Tensor:
    return rows(4000)


@functools.cache
def fresh() -> Tensor:
    return rows(40, seed=1)


def indexed(given: Tensor | Exact, of: Kernel, centre: Tensor | None = None, clusters: int = 20) -> Mixture:
    """The rows behind an index by the kernel ``of``, without the work of learning what it is worth."""
    source = given if isinstance(given, Exact) else Exact(given)
    first = source.take(torch.arange(len(source))).rows.double()
    space = Space.of(of, first.mean(0) if centre is None else centre)
    made = Clusters.build(source, space, 0, min(clusters, len(source)))
    return Mixture(
        source, made, Trust((), torch.empty(0, 0), torch.empty(0, 0)), efforts=[Effort(1, 1)], scan_elements=0
    )


def wide(count: int, seed: int = 0) -> Tensor:
    """(count, 1, 32, 32) float16: rows of 20 dimensions, and something white in all 1,024; more begin with fewer."""
    basis, blocks = torch.linalg.qr(torch.randn(1024, 20, generator=seeded(1))).Q, []
    for block in range(-(-count // 1000)):
        random = seeded(1000 * (seed + 1) + block)
        flat = 5 * torch.randn(1000, 20, generator=random) @ basis.T
        blocks.append((flat + 0.2 * torch.randn(1000, 1024, generator=random)).half())
    return torch.cat(blocks)[:count].reshape(count, 1, 32, 32)


@functools.cache
def wide_indexed(count: int) -> Mixture:
    """Those behind an index."""
    given = wide(count)
    return indexed(given, Kernel(projection=principal(given[:1000], 12)))

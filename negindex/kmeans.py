"""Lloyd's k-means, seeded: the same clusters whatever else draws random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

_SWEEPS = 10
_SAMPLE = 128  # points a centre to learn from
_CHUNK = 1 << 24  # products at a time


def kmeans(points: Tensor, count: int, seed: int) -> Tensor:
    """Centres (count, d) float32 of points (N, d) float32.

    Learns from at most 128 points a centre. Cost: 1,280 d count² products.
    """
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    sample = points[order[: _SAMPLE * count]]
    centres = sample[:count].clone()
    for _ in range(_SWEEPS):
        nearest, distance = assign(sample, centres)
        members = torch.bincount(nearest, minlength=count)
        sums = torch.zeros(centres.shape, dtype=torch.float64).index_add_(0, nearest, sample.to(torch.float64))
        centres = (sums / members.clamp_min(1)[:, None]).to(torch.float32)
        empty = (members == 0).nonzero()[:, 0]
        centres[empty] = sample[distance.topk(len(empty)).indices]  # start again where the misfit is largest
    return centres


def assign(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """For each point (N, d) its nearest centre, (N,) int64, and the squared distance to it, (N,) float32."""
    half = 0.5 * centres.square().sum(1)
    found = []
    for some in points.split(max(1, _CHUNK // len(centres))):
        score, nearest = torch.addmm(half, some, centres.T, alpha=-1).min(1)
        found.append((nearest, (2 * score + some.square().sum(1)).clamp_min(0)))
    nearest, distance = (torch.cat(parts) for parts in zip(*found, strict=True))
    return nearest, distance

"""The exact answers to many queries at once, in one pass over the rows: what look-ups are held against."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from negindex.negatives import row_elements
from negindex.noise import NoiseLevel

if TYPE_CHECKING:
    from negindex.exact import Scan
    from negindex.kernel import Kernel

_BLOCK = 1 << 21  # numbers of rows at a time: more, and the system takes the memory back after each block
_BLOCKS = 4  # that are summed in float32


class Truth(NamedTuple):
    """Of Q queries, each at its own level."""

    log_norm: Tensor  # (Q,) float64
    mean: Tensor  # (Q, D) float64


def exact(source: Scan, kernel: Kernel, x: Tensor, s: Tensor) -> Truth:
    """The posterior over all rows as seen from x (Q, D), in clean scale, at noise levels s (Q,).

    Distances about a centre, squares expanded, in float64; weights in float64; means of float32 products, summed
    in float64 every few blocks. It agrees with ``Scan`` to some 1e-6 of the rms radius.
    Cost: 2 N D d + 2 Q N (d + D) operations, by all cores: nobody takes their time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        return _exact(source, kernel, x, s)
    finally:
        torch.set_num_threads(threads)


def _exact(source: Scan, kernel: Kernel, x: Tensor, s: Tensor) -> Truth:
    precision = 0.5 / kernel.variance(NoiseLevel(1.0, s))
    centre, query = None, x
    top = torch.full((len(x),), float("-inf"), dtype=torch.float64)
    total, mean = torch.zeros(len(x), dtype=torch.float64), torch.zeros(x.shape, dtype=torch.float64)
    part = torch.zeros(x.shape)  # of the mean
    for number, block in enumerate(source.blocks(max(1, _BLOCK // row_elements(source.shape)))):
        rows = block.rows.to("cpu", torch.float64)
        if centre is None:
            centre = rows.mean(0)
            query = kernel.reduce(x.double() - centre)
        rows = rows - centre
        log_weight = -_squared(query, kernel.reduce(rows)) * precision[:, None]
        higher = torch.maximum(top, log_weight.amax(1))
        fades, weight = (top - higher).exp(), log_weight.sub_(higher[:, None]).exp_()
        total, top = total * fades + weight.sum(1), higher
        faded = bool((fades < 1).any())  # seldom, after the first blocks
        if faded or number % _BLOCKS == 0:
            mean += part
            part.zero_()
        if faded:
            mean.mul_(fades[:, None])
        part.addmm_(weight.float(), rows.float())
    if centre is not None:
        mean = mean.add_(part).div_(total[:, None]).add_(centre)
    return Truth(top + total.log(), mean)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """||a_i - b_j||², (n, d), (m, d) float64 -> (n, m); in float64 what cancels is far below what is measured."""
    return torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(a.square().sum(1)[:, None]).clamp_min_(0)

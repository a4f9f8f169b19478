"""Products with a table and sums of its rows, where they lie: to copy rows costs more than to multiply them.

By numpy where that takes less time than torch on some processors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

_TOGETHER = 256  # rows that are summed in float32; such sums are summed in float64


def apart(query: Tensor, rows: Tensor) -> Tensor:
    """||query - z||² by subtraction in the rows' own precision, (B, d), (n, d) -> (B, n) float64."""
    return torch.cdist(query.to(rows), rows, compute_mode="donot_use_mm_for_euclid_dist").double().square_()


def from_left(vectors: Tensor, table: Tensor) -> Tensor:
    """Vectors (d,) or (B, d) times a table (d, N) of long lines; all float32."""
    if vectors.dim() > 1 and len(vectors) > 1:  # a few rows at once take numpy twice as long
        return vectors @ table
    return torch.from_numpy(vectors.numpy() @ table.numpy())


def from_right(table: Tensor, vector: Tensor) -> Tensor:
    """A table (d, N) of long lines times a vector (N,), (d,); all float32."""
    return torch.from_numpy(table.numpy() @ vector.numpy())


def summed(table: Tensor, weight: Tensor, numbers: Tensor) -> Tensor:
    """The sum of rows (n,) int64 of a table (N, d) float32 by weights (n,) float32: (d,) float64."""
    if not len(numbers):
        return torch.zeros(table.shape[1], dtype=torch.float64)
    starts = torch.arange(0, len(numbers), _TOGETHER)
    return embedding_bag(numbers, table, starts, mode="sum", per_sample_weights=weight).sum(0, dtype=torch.float64)

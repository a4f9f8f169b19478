"""Checks that run at every step, and so must cost next to nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or Inf, in one pass: a sum is finite only if every term is.

    A float64 sum that overflows counts as not finite.
    """
    return bool(torch.isfinite(values.sum(dtype=torch.float64)))

"""Checks that run at every step, and so must cost next to nothing."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or Inf, in one pass: a sum is finite only if every term is.

    A sum that overflows its own type is made again in float64; one that overflows there counts as not finite.
    """
    return isfinite(values.sum().item()) or isfinite(values.sum(dtype=torch.float64).item())

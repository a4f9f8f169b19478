"""Rows whose log-weight is known but for a normal error: what they weigh, and how wrong that may be.

A row that was seen in a projection alone is such a row. Its weight is log-normal: where the error is wide the
mean of that is far above what any such row is likely to weigh, so no row counts for more than the whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LIGHT = -40.0  # log share that no item reaches which is left out
_WIDE = 7.0  # how many deviations above its log-weight an item might lie
_RARE = 0.01  # probability of what a stated error leaves out of account
_TIMES = 2.0  # root mean squares: what 95 of 100 keep to
_LIMITS = (0.0, -1.5, -3.0, -4.5, -6.0)  # log shares up to which a row's weight is no rare event


class Unread(NamedTuple):
    """n items, each standing for ``many`` rows, relative to the weight of the whole."""

    log_share: Tensor  # (n,) float64, of one of its rows
    deviation: Tensor  # (n,) float64, of the normal error in it
    many: Tensor  # (n,) float64
    distance: Tensor  # (n,) float64, squared, from the whole's mean

    def matter(self) -> Tensor:
        """(n,) bool: whether an item can change anything."""
        mean = self.log_share + 0.5 * self.deviation.square() + self.many.log()
        return (mean > _LIGHT) & (self.log_share + _WIDE * self.deviation > _LIGHT)

    def some(self, items: Tensor) -> Unread:
        """Those of a mask (n,)."""
        return Unread(*(part[items] for part in self))


def shares(unread: Unread) -> tuple[Tensor, Tensor]:
    """The share that each item is expected to weigh, no row more than the whole: E[min(1, e^X)] a row, (n,).

    And the part of it that comes of rows lighter than the whole, (n,): by Stein's lemma a projection of such rows
    that makes up the error in X is shifted by that part times its variance.
    """
    light, events = _below(unread, 0.0, 1), unread.many * _above(unread, 0.0)
    return light + events, light


def stated(unread: Unread) -> float:
    """What the sum over items is off at most, in about 95 of 100 cases, a length in the rows' units.

    Either by its second moment, or, where rows beyond some share are rare, by the second moment of those below it
    and by what was expected of those above it, which are most likely not there.
    """
    away = unread.distance.clamp_min(0).sqrt()
    expected, _ = shares(unread)
    heavy = unread.many * _above(unread, 0.0)
    found = _TIMES * float(((_below(unread, 0.0, 2) + heavy) * unread.distance).sum().clamp_min(0).sqrt())
    for limit in _LIMITS:
        if float((unread.many * _above(unread, limit)).sum()) > _RARE:
            break
        missing = float(((expected - _below(unread, limit, 1)).clamp_min(0) * away).sum())
        around = float((_below(unread, limit, 2) * unread.distance).sum().clamp_min(0).sqrt())
        found = min(found, missing + _TIMES * around)
    return found


def _above(unread: Unread, limit: float) -> Tensor:
    """(n,) the probability that X, one row's log share, is more than the limit."""
    found: Tensor = torch.special.ndtr((unread.log_share - limit) / unread.deviation)
    return found


def _below(unread: Unread, limit: float, power: int) -> Tensor:
    """(n,) the expected sum of e^(power X) over rows with X below the limit."""
    mean, wide = unread.log_share, unread.deviation
    below = (limit - mean) / wide
    log_each = power * mean + 0.5 * (power * wide).square() + torch.special.log_ndtr(below - power * wide)
    most = power * limit + torch.special.log_ndtr(below)  # where the error is very wide, the sum above cancels
    return unread.many * torch.minimum(log_each, most).exp()

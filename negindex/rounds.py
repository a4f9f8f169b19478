"""How a union shares out what is asked of all its members together: masses first, then what to open.

``k`` rows are to be read and ``error`` is to be reached over the whole. A member that weighs nothing as seen from a
sample need not be exact there, and asked alone it would scan its rows to be so. The first round asks every member at
little cost; the next ones ask those whose error counts, each for as little as will do.

A member's mean is wrong by its stated error e, in its own radius R_i, and its share w of the whole is wrong with it:
what it does not know of its mean it does not know of its mass either. So the whole states
Σ w e (R_i + |mean_i - mean|) / R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from math import floor, log2

import torch
from torch import Tensor

from negindex.moments import Moments
from negindex.negatives import Query
from negindex.partial import Missing, Partial

LOOSE = 1e9  # an error that every answer reaches
_FIRST = 4  # of k rows one in so many is read in the first round
_MARGIN = 0.9  # of the error asked for is shared out: shares move when members look closer
_MOST = 4  # further rounds; in the last one a member that counts is asked for a thousandth of what is left
_LAST = 1e-3

Parts = list[tuple[Tensor, Query]]  # some samples (n,) of the batch, and what is asked of them


class Rounds:
    """One query to several members that have rows, by their places."""

    def __init__(self, query: Query, counts: Sequence[int]) -> None:
        """counts: the members' rows."""
        self._query, self._alone, self._counts = query, len(counts) == 1, counts
        self._parts: dict[int, Partial] = {}
        self._scales: dict[int, float] = {}
        self._whole = 0.0
        self._round = 0

    @property
    def first(self) -> Query:
        """What every member is asked first: at little cost where there will be other rounds."""
        query = self._query
        if self._alone:
            return query
        k = None if query.k is None else max(1, query.k // (_FIRST * len(self._counts)))
        return replace(query, k=k, error=None if query.error is None else LOOSE, names=self._names)

    def told(self, parts: Mapping[int, Partial]) -> None:
        """What the members answered in the first round."""
        self._parts = dict(parts)
        self._alone = self._alone or (len(parts) == 1 and self._query.k is None and self._query.error is None)

    @property
    def need_scales(self) -> bool:
        """Whether errors of members have to be put on one scale."""
        return not self._alone and any(bool((part.error > 0).any()) for part in self._parts.values())

    def scaled(self, moments: Mapping[int, Moments]) -> None:
        """What rows the members have; those that are not among them are left out."""
        self._parts = {place: part for place, part in self._parts.items() if place in moments}
        self._scales = {place: one.rms for place, one in moments.items()}
        self._whole = reduce(Moments.merge, moments.values()).rms

    def further(self) -> dict[int, Parts]:
        """What to ask of whom in the next round; nothing when all is said."""
        query, self._round = self._query, self._round + 1
        if self._alone or not self._scales or self._round > self._most:
            return {}
        shares, errors = self._shares(), self._errors()
        open_ = torch.ones(len(query.x_t), dtype=torch.bool)
        targets = torch.full_like(errors, LOOSE)
        if query.error is not None:
            open_ = errors.sum(0) > query.error
            targets = self._targets(errors, query.error * (_LAST if self._round == _MOST else _MARGIN))
        asked: dict[int, Parts] = {}
        for row, place in enumerate(self._parts):
            parts = self._asked(place, shares[row], targets[row], open_)
            if parts:
                asked[place] = parts
        return asked

    def refined(self, more: Mapping[int, list[tuple[Tensor, Partial]]]) -> None:
        """What the members answered in a further round."""
        for place, parts in more.items():
            for samples, part in parts:
                self._parts[place] = self._parts[place].put(samples, part)
        if not more:
            self._round = _MOST

    def merged(self, missing: tuple[Missing, ...]) -> Partial:
        """The members' answers as one."""
        told = reduce(self._query.merge, self._parts.values())
        error = self._errors().sum(0).to(told.error) if self._scales else told.error
        return replace(told, error=error, missing=tuple(dict.fromkeys(missing + told.missing)))

    # -- inside ----------------------------------------------------------------------------

    @property
    def _names(self) -> int | None:
        """As many as the whole is to name, whatever a member reads of it."""
        return self._query.names if self._query.k is None else self._query.named

    @property
    def _most(self) -> int:
        """Further rounds; where k sets a limit, looking again does not help."""
        if self._query.error is None:
            return 1
        return _MOST if self._query.k is None else 2

    def _shares(self) -> Tensor:
        """(M, B) of the members in the whole's weight."""
        return torch.stack([part.log_norm.cpu() for part in self._parts.values()]).softmax(0)

    def _errors(self) -> Tensor:
        """(M, B) what each member adds to the stated error of the whole."""
        parts, shares, whole = list(self._parts.values()), self._shares(), max(self._whole, 1e-300)
        mean = sum(
            share.to(part.mean)[:, None] * part.mean.flatten(1) for share, part in zip(shares, parts, strict=True)
        )
        return torch.stack(
            [
                share
                * part.error.cpu()
                * (self._scales[place] + (part.mean.flatten(1) - mean).norm(dim=1).cpu())
                / whole
                for share, (place, part) in zip(shares, self._parts.items(), strict=True)
            ]
        )

    def _targets(self, errors: Tensor, target: float) -> Tensor:
        """(M, B) the error to ask of each member, in its own radius; inf where what it said will do.

        Of each sample the smallest contributions stay as they are, and the others are let have equal ones.
        """
        ordered = errors.sort(0).values
        before = torch.cat([torch.zeros_like(ordered[:1]), ordered.cumsum(0)[:-1]])
        left = torch.arange(len(errors), 0, -1, dtype=errors.dtype)[:, None]
        even = (target - before) / left  # what is left for each, if those before keep theirs
        level = even.amax(0)
        own = torch.stack([part.error.cpu() for part in self._parts.values()])
        return torch.where(errors > level, own * level / errors, float("inf"))

    def _asked(self, place: int, shares: Tensor, targets: Tensor, open_: Tensor) -> Parts:
        """The samples of one member that are asked again, those that are asked the same together."""
        query = self._query
        groups: dict[tuple[int | None, float | None], list[int]] = {}
        first = self.first
        for b in open_.nonzero()[:, 0].tolist():
            k, error = None, None
            if query.k is not None:
                k = min(query.k, self._counts[place], _near_power(query.k * float(shares[b]), query.k))
            if query.error is not None and float(targets[b]) < LOOSE:
                error = _step_below(float(targets[b]), query.error)
            more = k is not None and first.k is not None and k > first.k and not self._round > 1
            if error is not None or more:
                groups.setdefault((max(k or 0, first.k or 0) or None, error or first.error), []).append(b)
        return [
            (samples := torch.tensor(some), replace(query.some(samples), k=k, error=error, names=self._names))
            for (k, error), some in groups.items()
        ]


def _step_below(target: float, unit: float) -> float:
    """The largest step, four to a power of two, that is no more than the target: few different questions."""
    return float(unit * 2.0 ** (max(floor(4 * log2(max(target, 1e-300) / unit)), -240) / 4))


def _near_power(number: float, most: int) -> int:
    """The power of two below ``most`` that is nearest to a number; so the numbers of all add up to about ``most``."""
    return max(1, round(most * 2.0 ** round(log2(max(number, 1e-3) / most))))

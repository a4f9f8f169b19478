"""Questions about one set, put together, asked once, and taken apart into bodies of answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from negindex.errors import Damaged, OutOfRange
from negindex.kernel import Kernel
from negindex.near import Near, most
from negindex.noise import NoiseLevel
from negindex.partial import Heaviest, Partial
from negindex.service.bodies import in_numbers, origin_said
from negindex.service.held import Held, View, Which
from negindex.service.metrics import AWAY, Metrics
from negindex.service.wire import packed
from negindex.stages import Stage, listening

ANSWER_BYTES = 1 << 28  # of all answers to one call
_BYTES = 8


@dataclass(frozen=True, eq=False)
class Posterior:
    """A question about noisy samples."""

    which: Which
    digests: list[str] | None  # what the view leaves out, where the question holds it
    x_t: Tensor
    level: NoiseLevel  # (B,)
    kernel: str  # fingerprint; "" for the set's own
    sent: Kernel | None
    k: int | None
    error: float | None
    names: int | None
    numbers: str  # of the mean: float64, float32 or float16

    @property
    def group(self) -> object:
        """What questions have to share to be put together."""
        return self.which, self.kernel, self.k, self.error, self.names, tuple(self.x_t.shape[1:])


@dataclass(frozen=True, eq=False)
class Nearby:
    """A question about near rows."""

    which: Which
    digests: list[str] | None
    x: Tensor
    radius: Tensor  # (B,) float64
    noise: Tensor  # (B,) float64
    image_radius: Tensor  # (B,) float64
    k: int | None
    numbers: str  # of the rows

    @property
    def group(self) -> object:
        """What questions have to share to be put together."""
        return self.which, self.k, tuple(self.x.shape[1:])


Question = Posterior | Nearby


class Answer(NamedTuple):
    """A body, and the version that it is of."""

    body: bytes
    version: int
    stages: tuple[Stage, ...]  # of the call that it was a part of


def answers(held: Held, metrics: Metrics, asked: Sequence[Question]) -> list[Answer]:
    """The bodies of answers to questions of one group, by one look-up.

    Raises what the look-up raises, and Damaged where it named a row that is not in force: no such answer leaves.
    """
    at = time.time_ns()
    heard: list[Stage] = []
    digests = next((one.digests for one in asked if one.digests is not None), None)
    view = held.view(asked[0].which, digests)
    first = asked[0]
    told: Partial | Near
    try:
        with listening(heard):
            if isinstance(first, Posterior):
                told = _posterior(held, view, [one for one in asked if isinstance(one, Posterior)])
            else:
                told = _near(view, [one for one in asked if isinstance(one, Nearby)])
    except AWAY as error:
        metrics.unanswered(held.name, error)
        raise
    _check_in_force(held, metrics, view, told.heaviest.ids if isinstance(told, Partial) else told.ids)
    so_far = time.time_ns()
    parts = _apart(told, asked)
    bodies = [_body(view, one, question.numbers) for one, question in zip(parts, asked, strict=True)]
    searched, encoded = Stage("search", at, so_far), Stage("encode", so_far, time.time_ns())
    metrics.answered(held.name, told, first.error if isinstance(first, Posterior) else None, searched, encoded)
    return [Answer(body, view.version, (searched, *heard, encoded)) for body in bodies]


def _posterior(held: Held, view: View, asked: Sequence[Posterior]) -> Partial:
    first = asked[0]
    sent = next((one.sent for one in asked if one.sent is not None), None)
    kernel = held.kernel(first.kernel, sent, view)
    named = min(first.names or first.k or 0, len(view.rows))
    _check_room(sum(len(one.x_t) for one in asked), named * 2 + first.x_t[:1].numel())
    x_t, level = first.x_t, first.level
    if len(asked) > 1:
        x_t = torch.cat([one.x_t for one in asked])
        level = NoiseLevel(torch.cat([q.level.alpha for q in asked]), torch.cat([q.level.sigma for q in asked]))
    return view.rows.posterior(x_t, level, k=first.k, error=first.error, kernel=kernel, names=first.names)


def _near(view: View, asked: Sequence[Nearby]) -> Near:
    first = asked[0]
    if first.k is not None:
        samples = sum(len(one.x) for one in asked)
        _check_room(samples, min(first.k, len(view.rows)) * (first.x[:1].numel() + 2))
    x = first.x if len(asked) == 1 else torch.cat([one.x for one in asked])
    radius, noise, image_radius = (
        torch.cat(each) for each in zip(*((one.radius, one.noise, one.image_radius) for one in asked), strict=True)
    )
    near = view.rows.near(x, radius, first.k, noise=noise, image_radius=image_radius)
    _check_room(1, near.rows.numel())
    return near


def _apart(told: Partial | Near, asked: Sequence[Question]) -> Sequence[Partial | Near]:
    """What one call told, for each of its questions."""
    if len(asked) == 1:
        return [told]
    if isinstance(told, Near):
        sizes, k = [len(one.x) for one in asked if isinstance(one, Nearby)], asked[0].k
        columns = (told.origin, told.ids, told.distances, told.rows)
        each = zip(*(column.split(sizes) for column in columns), strict=True)
        return [_narrowed(Near(o, i, d, r, told.origins), k) for o, i, d, r in each]
    sizes = [len(one.x_t) for one in asked if isinstance(one, Posterior)]
    parts = zip(
        *(part.split(sizes) for part in (told.log_norm, told.mean, told.log_tail, told.log_unread, told.error)),
        zip(*(part.split(sizes) for part in told.heaviest), strict=True),
        strict=True,
    )
    return [
        replace(told, log_norm=n, mean=m, log_tail=t, log_unread=u, error=e, heaviest=Heaviest(*h))
        for n, m, t, u, e, h in parts
    ]


def _narrowed(near: Near, k: int | None) -> Near:
    """Without the places that only other questions' samples needed."""
    width = most(near.found.sum(1), k)
    return Near(
        near.origin[:, :width], near.ids[:, :width], near.distances[:, :width], near.rows[:, :width], near.origins
    )


def _check_room(samples: int, numbers: int) -> None:
    if samples * numbers * _BYTES > ANSWER_BYTES:
        raise OutOfRange(
            f"an answer of {samples * numbers * _BYTES} bytes, at most {ANSWER_BYTES}; ask for fewer rows (k, radius) "
            "or fewer samples at once"
        )


def _check_in_force(held: Held, metrics: Metrics, view: View, ids: Tensor) -> None:
    """Hold every row that an answer names to the record, whatever found it."""
    named = sorted({one for row in ids.tolist() for one in row if one >= 0})
    strange = view.snapshot.not_in_force(named)
    if strange:
        metrics.withdrawn_hits(held.name, len(strange))
        raise Damaged(
            f"set {held.name}: an answer named {len(strange)} rows that are not in force at version {view.version}; "
            "it is withheld. Run `negindex verify` on the set"
        )


def _body(view: View, told: Partial | Near, numbers: str) -> bytes:
    said = origin_said(view.set_id, view.version)
    if isinstance(told, Near):
        arrays = {"ids": told.ids, "distances": told.distances, "rows": in_numbers(told.rows, numbers)}
        return packed(arrays, said)
    arrays = {
        "log_norm": told.log_norm,
        "log_tail": told.log_tail,
        "log_unread": told.log_unread,
        "error": _with_rounding(view, told, numbers),
        "mean": in_numbers(told.mean, numbers),
        "ids": told.heaviest.ids,
        "log_weight": told.heaviest.log_weight,
    }
    return packed(arrays, said | {"count": told.count, "kernel": told.kernel.fingerprint})


def _with_rounding(view: View, told: Partial, numbers: str) -> Tensor:
    """The stated error (B,), and what rounding the mean to fewer digits puts on it."""
    if numbers == "float64":
        return told.error
    lost = (told.mean - in_numbers(told.mean, numbers).to(torch.float64)).flatten(1).norm(dim=1)
    if not bool(lost.any()):
        return told.error
    radius = view.snapshot.radius(told.kernel)
    return told.error + torch.where(lost > 0, lost / radius, 0.0)

"""From what a run's steps saw to one receipt an image."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import negindex
from negindex.negatives import Negatives
from negindex.partial import Partial
from negindex.receipts import HeavyRow, Receipt, SetStated, Step
from negindex.sampler.correction import Correction, Look
from negindex.snapshot import Snapshot
from negindex.union import Union


class Run:
    """One pass of a scheduler: the versions it was pinned to, and what each step saw."""

    def __init__(self, correction: Correction, scheduler: str) -> None:
        self.correction, self.scheduler = correction, scheduler
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.looks: list[Look] = []

    def receipts(self) -> list[Receipt]:
        """One an image of the batch."""
        if not self.looks:
            return []
        correction, keys = self.correction, self._source_keys()
        common: dict[str, Any] = {
            "made": self.started,
            "sets": tuple(_stated(correction.negatives)),
            "reference": () if correction.reference is None else tuple(_stated(correction.reference)),
            "kernel": correction.kernel.name,
            "kernel_fingerprint": correction.kernel.fingerprint,
            "gate": _named(correction.gate),
            "rule": _named(correction.rule),
            "window": "always" if correction.window is None else _named(correction.window),
            "scheduler": self.scheduler,
            "degraded_steps": 0,
            "libraries": _libraries(),
        }
        batch = len(self.looks[0].log_odds)
        return [Receipt(**common, steps=tuple(_step(look, i, keys) for look in self.looks)) for i in range(batch)]

    def _source_keys(self) -> dict[tuple[str, int], str]:
        """{(set id, row id): source key} of every row that a step names."""
        ids = sorted({int(i) for look in self.looks for i in look.unsafe.heaviest.ids.flatten() if i >= 0})
        return {
            (origin.set_id, row_id): key
            for member in _members(self.correction.negatives)
            if isinstance(member, Snapshot)
            for origin in member.origins
            for row_id, key in member.source_keys(ids).items()
        }


def _members(negatives: Negatives) -> list[Negatives]:
    if isinstance(negatives, Union):
        return [inner for member in negatives.members for inner in _members(member)]
    return [negatives]


def _stated(negatives: Negatives) -> list[SetStated]:
    return [SetStated(origin.set_id, origin.version, len(m)) for m in _members(negatives) for origin in m.origins]


def _step(look: Look, i: int, keys: dict[tuple[str, int], str]) -> Step:
    said = look.unsafe
    return Step(
        alpha=float(look.level.alpha[i]),
        sigma=float(look.level.sigma[i]),
        log_norm=float(said.log_norm[i]),
        captured=float(said.captured[i]),
        stated_error=float(said.error[i]),
        log_odds=float(look.log_odds[i]),
        correction=float(look.correction[i]),
        heaviest=tuple(_heavy(said, i, keys)),
    )


def _heavy(said: Partial, i: int, keys: dict[tuple[str, int], str]) -> list[HeavyRow]:
    rows = zip(*(part[i].tolist() for part in said.heaviest), strict=True)
    named = [(said.origins[origin].set_id, row_id, weight) for origin, row_id, weight in rows]
    return [HeavyRow(set_id, row_id, keys.get((set_id, row_id)), weight) for set_id, row_id, weight in named]


def _named(part: object) -> str:
    """What a gate, rule or window calls itself; a function goes by its name."""
    return getattr(part, "__name__", None) or str(part)


def _libraries() -> dict[str, str]:
    found = {"negindex": negindex.__version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

"""From what a run's steps saw to one receipt an image."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from PIL import Image

import negindex
from negindex.client import RemoteSnapshot
from negindex.keys import Key
from negindex.labelled import Labelled
from negindex.negatives import Negatives
from negindex.receipts import HeavyRow, MissingSet, Receipt, SetStated, Step, pixels_sha256
from negindex.sampler.correction import Correction, Look
from negindex.snapshot import Snapshot
from negindex.union import PinnedUnion, Union


def digests_of(result: Any) -> list[str]:
    """Of the pixels of each image that a pipeline returned; none where it returned no pictures but numbers."""
    images = result[0] if isinstance(result, tuple) and result else getattr(result, "images", None)
    if not isinstance(images, list) or not all(isinstance(image, Image.Image) for image in images):
        return []
    return [pixels_sha256(image) for image in images]


def signed(receipts: list[Receipt], digests: list[str], key: Key) -> list[Receipt]:
    """Each bound to its image, where there is one for each, and then signed."""
    if len(digests) != len(receipts):
        return [receipt.signed(key) for receipt in receipts]
    return [receipt.bound_to(digest, key) for receipt, digest in zip(receipts, digests, strict=True)]


class Seen(NamedTuple):
    """A look in plain numbers; a column a sample."""

    figures: dict[str, list[Any]]  # the fields of a receipt's Step, each (B,)
    heaviest: list[list[tuple[str, int, float]]]  # (B, H) of set id, row id, log-weight


class Run:
    """One pass of a scheduler: the versions it was pinned to, and what each step saw."""

    def __init__(self, correction: Correction, scheduler: str, degraded: bool = False) -> None:
        """degraded: newer versions could not be read, so these are the last that could."""
        self.correction, self.scheduler, self.degraded = correction, scheduler, degraded
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.seen: list[Look] = []  # without their images

    def record(self, look: Look) -> None:
        """Keep what a step saw; its figures stay where they are until a receipt is asked for."""
        told = replace(look.unsafe, mean=_NO_IMAGE)
        self.seen.append(look._replace(delta=_NO_IMAGE, unsafe=told, reference=None))

    def receipts(self) -> list[Receipt]:
        """One an image of the batch."""
        if not self.seen:
            return []
        steps = [_in_numbers(look) for look in self.seen]
        correction, keys = self.correction, self._source_keys(steps)
        common: dict[str, Any] = {
            "made": self.started,
            "sets": tuple(_stated(correction.negatives)),
            "reference": () if correction.reference is None else tuple(_stated(correction.reference)),
            "kernel": correction.weighed_by.name,
            "kernel_fingerprint": correction.weighed_by.fingerprint,
            "gate": "none" if correction.gate is None else _named(correction.gate),
            "rule": _named(correction.rule),
            "copies": "none" if correction.copies is None else str(correction.copies),
            "window": "always" if correction.window is None else _named(correction.window),
            "scheduler": self.scheduler,
            "degraded_steps": len(steps) if self.degraded else sum(map(_is_degraded, self.seen)),
            "missing": tuple(_missing(self.seen)),
            "libraries": _libraries(),
        }
        batch = len(steps[0].heaviest)
        return [Receipt(**common, steps=tuple(_step(seen, i, keys) for seen in steps)) for i in range(batch)]

    def _source_keys(self, steps: list[Seen]) -> dict[tuple[str, int], str]:
        """{(set id, row id): source key} of every row that a step names."""
        ids = sorted({row_id for seen in steps for rows in seen.heaviest for _, row_id, _ in rows})
        return {
            (origin.set_id, row_id): key
            for member in _members(self.correction.negatives)
            if isinstance(member, Snapshot | Labelled | RemoteSnapshot)
            for origin in member.origins
            for row_id, key in member.source_keys(ids).items()
        }


_NO_IMAGE = torch.empty(0)


def _in_numbers(look: Look) -> Seen:
    said = look.unsafe
    figures = {
        "alpha": look.level.alpha,
        "sigma": look.level.sigma,
        "log_norm": said.log_norm,
        "captured": said.captured,
        "stated_error": said.error,
        "log_odds": look.log_odds,
        "correction": look.correction,
        "copied": look.copied,
    }
    rows = zip(*(part.tolist() for part in said.heaviest), strict=True)
    heaviest = [[(said.origins[o].set_id, i, w) for o, i, w in zip(*row, strict=True) if i >= 0] for row in rows]
    return Seen({name: column.tolist() for name, column in figures.items()}, heaviest)


def _members(negatives: Negatives) -> list[Negatives]:
    if isinstance(negatives, Union | PinnedUnion):
        return [inner for member in negatives.members for inner in _members(member)]
    return [negatives]


def _stated(negatives: Negatives) -> list[SetStated]:
    return [
        SetStated(
            origin.set_id,
            origin.version,
            len(m),
            m.checkpoint if isinstance(m, Snapshot | Labelled | RemoteSnapshot) else None,
        )
        for m in _members(negatives)
        for origin in m.origins
    ]


def _is_degraded(look: Look) -> bool:
    return bool(look.missing or look.missing_reference)


def _missing(looks: list[Look]) -> list[MissingSet]:
    """Each set that was missing, and at how many steps; what its service said may name machines, and stays here."""
    told = Counter(
        named
        for look in looks
        for side, sets in (("negatives", look.missing), ("reference", look.missing_reference))
        for named in {(one.set_id, one.error, side) for one in sets}
    )
    return [MissingSet(set_id, error, side, steps) for (set_id, error, side), steps in sorted(told.items())]


def _step(seen: Seen, i: int, keys: dict[tuple[str, int], str]) -> Step:
    heaviest = tuple(HeavyRow(set_id, row, keys.get((set_id, row)), weight) for set_id, row, weight in seen.heaviest[i])
    return Step(**{name: column[i] for name, column in seen.figures.items()}, heaviest=heaviest)


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

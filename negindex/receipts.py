"""What was in force when an image was made: one receipt an image, plain data that JSON holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SetStated:
    """A set as it was asked: name, version, rows (of a reference: less those that are negatives too)."""

    set_id: str
    version: int
    rows: int


@dataclass(frozen=True)
class HeavyRow:
    """A row that weighed most at a step."""

    set_id: str
    id: int
    source_key: str | None
    log_weight: float


@dataclass(frozen=True)
class Step:
    """One look: at which noise level, what it found, what it changed."""

    alpha: float
    sigma: float
    log_norm: float
    captured: float  # share of the posterior weight that was read row by row
    stated_error: float
    log_odds: float  # of "x_0 is unsafe"; -inf outside the window
    correction: float  # L2 norm of the change of x0
    heaviest: tuple[HeavyRow, ...]


@dataclass(frozen=True)
class Receipt:
    """Which sets, versions, kernel, gate and rule stood behind one image, and what each step saw."""

    made: str  # ISO 8601, UTC
    sets: tuple[SetStated, ...]
    reference: tuple[SetStated, ...]
    kernel: str
    kernel_fingerprint: str
    gate: str
    rule: str
    window: str
    scheduler: str
    steps: tuple[Step, ...]
    degraded_steps: int
    libraries: dict[str, str]
    image_sha256: str | None = None

    def bind(self, image: Any) -> Receipt:
        """The same receipt with the sha256 of the image's decoded pixels (a PIL image or an array)."""
        return replace(self, image_sha256=pixels_sha256(image))

    def matches(self, image: Any) -> bool:
        """Whether the receipt was bound to these very pixels."""
        return self.image_sha256 is not None and self.image_sha256 == pixels_sha256(image)

    @property
    def digest(self) -> str:
        """sha256 of the receipt's canonical JSON."""
        return hashlib.sha256(self.to_json(indent=None).encode()).hexdigest()

    def to_json(self, indent: int | None = 2) -> str:
        """Sorted keys; infinities as the text "-inf" and "inf", which every JSON reader takes."""
        return json.dumps(_plain(asdict(self)), indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False)

    def save(self, path: Path | str) -> None:
        """Write the JSON to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")


def pixels_sha256(image: Any) -> str:
    """Digest of shape, type and decoded pixels: the same however the file was compressed."""
    pixels = np.ascontiguousarray(np.asarray(image))
    head = f"{pixels.dtype.str} {pixels.shape} ".encode()
    return hashlib.sha256(head + pixels.tobytes()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value

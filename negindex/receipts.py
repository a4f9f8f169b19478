"""What was in force when an image was made: one receipt an image, plain data that JSON holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from negindex import offline
from negindex.checkpoint import Checkpoint
from negindex.errors import Damaged, NotAllowed
from negindex.keys import Key, PublicKey
from negindex.text import is_unicode


@dataclass(frozen=True)
class SetStated:
    """A set as it was asked: name, version, rows (of a reference: less those that are negatives too)."""

    set_id: str
    version: int
    rows: int
    checkpoint: Checkpoint | None = None  # of its log at the version; None for rows in memory


@dataclass(frozen=True)
class MissingSet:
    """A set of a union that was left out of some steps, since it did not answer and the union was to go on."""

    set_id: str
    error: str  # the error's name in negindex.errors
    side: str  # "negatives" or "reference"
    steps: int


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
    log_odds: float  # of "x_0 is unsafe"; -inf outside the window, +inf where copied
    correction: float  # L2 norm of the change of x0, as it arrives in the guided output
    heaviest: tuple[HeavyRow, ...]
    copied: bool = False  # the copy gate fired: a near-copy of one row


@dataclass(frozen=True)
class Receipt:
    """Which sets, versions, kernel, gate and rule stood behind one image, and what each step saw.

    It is signed as it is without the names of rows' sources, so that it may travel without them.
    """

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
    copies: str = "none"  # the copy gate
    missing: tuple[MissingSet, ...] = ()
    signature: str = ""  # Ed25519 over ``signed_bytes``; "" where nobody signed
    public_key: str = ""

    def bind(self, image: Any, key: Key | None = None) -> Receipt:
        """The same receipt with the sha256 of the image's decoded pixels (a PIL image or an array), signed anew.

        Raises NotAllowed for a signed receipt of another image, or of none, where there is no key: binding would
        break its signature.
        """
        return self.bound_to(pixels_sha256(image), key)

    def bound_to(self, image_sha256: str, key: Key | None = None) -> Receipt:
        """``bind`` by the digest itself."""
        bound = replace(self, image_sha256=image_sha256, signature="", public_key="")
        if key is not None:
            return bound.signed(key)
        if self.signature and self.image_sha256 != image_sha256:
            raise NotAllowed(
                "a signed receipt is bound to other pixels, or to none yet, and binding it would break its signature; "
                "give the key, which signs it anew"
            )
        return self if self.signature else bound

    def without_names(self) -> Receipt:
        """The same without source keys, which may name people: what an image carries. It is as signed as before."""
        steps = (replace(s, heaviest=tuple(replace(row, source_key=None) for row in s.heaviest)) for s in self.steps)
        return replace(self, steps=tuple(steps))

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over: everything but itself and the source keys."""
        return offline.signed_bytes(self._said(), "receipt")

    def signed(self, key: Key) -> Receipt:
        """The same, signed. Bind it first."""
        return replace(self, signature=key.sign(self.signed_bytes), public_key=key.public.text)

    def is_signed_by(self, public: PublicKey) -> bool:
        """Whether this key signed it, and nothing was changed since."""
        return self.public_key == public.text and public.verifies(self.signature, self.signed_bytes)

    def matches(self, image: Any) -> bool:
        """Whether the receipt was bound to these very pixels."""
        return self.image_sha256 is not None and self.image_sha256 == pixels_sha256(image)

    @property
    def digest(self) -> str:
        """sha256 of what a signature is over: the same with names and without, signed or not."""
        return hashlib.sha256(self.signed_bytes).hexdigest()

    def to_json(self, indent: int | None = 2) -> str:
        """Sorted keys; infinities as the text "-inf" and "inf", which every JSON reader takes."""
        return json.dumps(self._said(), indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Receipt:
        """The receipt that ``to_json`` wrote: equal, and with an equal digest.

        Strict, since a receipt is evidence: raises Damaged for what is no JSON, for a field that is missing,
        unknown, named twice or of another type, and for NaN.
        """
        try:
            read = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"a receipt that is no JSON ({error}); take the copy beside the image") from error
        if isinstance(read, dict):
            read.setdefault("missing", [])
        receipt: Receipt = _built(cls, read, "receipt")
        return receipt

    def _said(self) -> dict[str, Any]:
        """What JSON says. Sets that were left out stand there where there were some: others stay as they were."""
        said: dict[str, Any] = _plain(asdict(self))
        return said if self.missing else {name: value for name, value in said.items() if name != "missing"}

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


# -- from JSON -------------------------------------------------------------------------------------

_INFINITIES = {"inf": float("inf"), "-inf": float("-inf")}


def _built(kind: Any, value: Any, where: str) -> Any:
    """``value`` out of JSON as the type that a field says: dataclasses, tuples, dictionaries, plain values."""
    parts = get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _built_fields(kind, value, where)
    if isinstance(kind, UnionType):
        return None if value is None and type(None) in parts else _built(parts[0], value, where)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_built(parts[0], inner, f"{where}[{i}]") for i, inner in enumerate(value))
    if get_origin(kind) is dict and isinstance(value, dict):
        return {_built(parts[0], key, where): _built(parts[1], v, f"{where}.{key}") for key, v in value.items()}
    if kind is float and isinstance(value, str) and value in _INFINITIES:
        return _INFINITIES[value]
    if kind is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)  # other programs write 1.0 as 1
    if type(value) is kind and (kind is not str or is_unicode(value)):
        return value
    raise Damaged(f"{where} is {_shown(value)}, no {getattr(kind, '__name__', kind)}; take the copy beside the image")


def _built_fields(kind: type[Any], value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise Damaged(f"{where} is {_shown(value)}, no {kind.__name__}; take the copy beside the image")
    hints, names = get_type_hints(kind), {field.name for field in fields(kind)}
    if value.keys() != names:
        missing, unknown = sorted(names - value.keys()), sorted(value.keys() - names)
        raise Damaged(f"{where} lacks {missing} and has unknown {unknown}; read it with the version that wrote it")
    return kind(**{name: _built(hints[name], value[name], f"{where}.{name}") for name in names})


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a name given twice among {sorted(found)}")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."

"""What is handed in to be stored, checked before anything is written."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from negindex.binding import Binding, bind
from negindex.draft import Draft
from negindex.errors import DuplicateKey, InvalidInput, NotFinite, ShapeMismatch
from negindex.states import Meta, Provenance
from negindex.text import all_unicode, is_unicode

_NOTHING = Provenance()
_BLOCK = 1 << 20  # bytes of rows that are checked together: they stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Incoming:
    """Rows on their way in, as they will be stored."""

    rows: NDArray[np.floating]  # (N, *S)
    keys: list[str]
    labels: list[str | None]
    sources: list[Provenance]
    embeddings: NDArray[np.floating] | None  # (N, E) float16
    digests: list[str]  # sha256 of each row's bytes, hex
    embedded_by: str = ""  # the fingerprint of the embeddings' model
    binding: Binding | None = None  # to the log; None where it is yet to be made
    draft: Draft | None = None  # their file, where it was begun

    def __len__(self) -> int:
        return len(self.keys)

    def chosen(self, places: Sequence[int]) -> Incoming:
        """Some of them, in the order of ``places``; a run of neighbours shares its memory with these."""
        if list(places) == list(range(len(self))):
            return self
        first, count = (places[0], len(places)) if places else (0, 0)
        run = slice(first, first + count) if list(places) == list(range(first, first + count)) else list(places)
        return replace(
            self,
            rows=self.rows[run],
            keys=[self.keys[i] for i in places],
            labels=[self.labels[i] for i in places],
            sources=[self.sources[i] for i in places],
            embeddings=None if self.embeddings is None else self.embeddings[run],
            digests=[self.digests[i] for i in places],
            binding=None if self.binding is None else self.binding.chosen(places),
            draft=None,
        )

    def bound(self) -> Binding:
        """What the log will bind them by; drawn now where it was not before."""
        return self.binding or bind(self.keys, self.labels, self.digests, self.sources)

    def close(self) -> None:
        """Give their file up, where it was begun and is not wanted."""
        if self.draft is not None:
            self.draft.close()


def incoming(
    meta: Meta,
    rows: Tensor | ArrayLike,
    source_keys: Sequence[str],
    label: str | Sequence[str | None] | None = None,
    sources: Sequence[Provenance | None] | None = None,
    embeddings: Tensor | ArrayLike | None = None,
    embedded_by: str = "",
    finite: bool = False,
) -> Incoming:
    """Check what a caller hands in; raises InvalidInput and its kin, naming what is wrong.

    finite: the rows were found so before, by ``finite_rows`` as they will be stored, and are not looked through again.
    """
    stored = _as_stored(rows, meta.shape, meta.dtype, finite)
    keys = check_keys(source_keys, len(stored))
    labels = _spread(label, len(stored))
    known = [source or _NOTHING for source in sources] if sources else [_NOTHING] * len(stored)
    if len(known) != len(stored):
        raise ShapeMismatch(f"{len(known)} sources for {len(stored)} rows; give one a row, or None")
    wide = None if embeddings is None else _as_embeddings(embeddings, len(stored))
    digests = digests_of(stored)
    return Incoming(stored, keys, labels, known, wide, digests, embedded_by, bind(keys, labels, digests, known))


def digests_of(rows: NDArray[np.generic]) -> list[str]:
    """sha256 of each row's bytes, hex; rows (N, *S), contiguous."""
    flat = rows.reshape(len(rows), -1).view(np.uint8) if rows.size else rows.view(np.uint8)
    return [hashlib.sha256(row).hexdigest() for row in flat]


def check_keys(source_keys: Sequence[str], rows: int) -> list[str]:
    """One distinct key a row, of Unicode text."""
    if isinstance(source_keys, str):
        raise InvalidInput(f"source_keys is the text {source_keys!r}; give a list of keys")
    keys = list(source_keys)
    if len(keys) != rows:
        raise ShapeMismatch(f"{len(keys)} source keys for {rows} rows; give one key a row")
    strange = [] if all_unicode(keys) else [key for key in keys if not (key and is_unicode(key))]
    if strange:
        raise InvalidInput(
            f"{some_are(strange)} no source key: empty, or no Unicode text; give each row its upstream's name"
        )
    if len(set(keys)) != len(keys):
        twice = [key for key, times in Counter(keys).items() if times > 1]
        raise DuplicateKey(f"{some_are(twice)} given more than once in one call; give each key once")
    return keys


def some_are(keys: Sequence[object]) -> str:
    """The first few of them, and the verb.

    >>> some_are(["a", "b"])
    "'a', 'b' are"
    """
    shown = ", ".join(repr(key) for key in keys[:5])
    return f"{shown} and {len(keys) - 5} more are" if len(keys) > 5 else f"{shown} {'is' if len(keys) == 1 else 'are'}"


def _as_stored(
    rows: Tensor | ArrayLike, shape: tuple[int, ...], dtype: str, finite: bool = False
) -> NDArray[np.floating]:
    array = _array(rows)
    if array.ndim < 1 or array.shape[1:] != shape:
        raise ShapeMismatch(f"rows of shape {array.shape} for a collection of {shape} rows; give (N, *{shape})")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, dtype=dtype)
    if not finite:
        _check_finite(stored)
    return stored


def _check_finite(rows: NDArray[np.floating]) -> None:
    bad = np.flatnonzero(~finite_rows(rows))
    if len(bad):
        raise NotFinite(
            f"{len(bad)} of {len(rows)} rows hold NaN, Inf, or values beyond {rows.dtype}'s "
            f"{np.finfo(rows.dtype).max:g} (first at {bad[:10].tolist()}); leave them out"
        )


def finite_rows(rows: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(N,) whether a row (N, *S) is free of NaN and Inf; float16 by its exponents' bits, several times as fast."""
    flat = rows.reshape(len(rows), int(np.prod(rows.shape[1:])))
    sound = np.ones(len(flat), np.bool_)
    step = max(1, _BLOCK // max(1, flat[:1].nbytes))
    for start in range(0, len(flat) if flat.size else 0, step):
        some = flat[start : start + step]
        if rows.dtype != np.float16:
            sound[start : start + step] = np.isfinite(some).all(axis=1)
        else:
            sound[start : start + step] = (some.view(np.uint16) & np.uint16(0x7FFF)).max(axis=1) < 0x7C00
    return sound


def _as_embeddings(embeddings: Tensor | ArrayLike, rows: int) -> NDArray[np.floating]:
    array = _array(embeddings)
    if array.ndim != 2 or array.shape[0] != rows or not array.shape[1]:
        raise ShapeMismatch(f"embeddings of shape {array.shape} for {rows} rows; give (N, E)")
    if not np.isfinite(array).all():
        raise NotFinite("embeddings hold NaN or Inf; leave those rows out")
    return np.ascontiguousarray(array, dtype=np.float16)


def _array(values: Tensor | ArrayLike) -> NDArray[np.generic]:
    if isinstance(values, Tensor):  # numpy has no bfloat16
        values = values.detach().cpu().to(torch.float32 if values.dtype == torch.bfloat16 else values.dtype)
    return np.asarray(values)


def _spread(label: str | Sequence[str | None] | None, rows: int) -> list[str | None]:
    label = [label] * rows if label is None or isinstance(label, str) else label
    if len(label) != rows:
        raise ShapeMismatch(f"{len(label)} labels for {rows} rows; give one for all, or one a row")
    texts = [one for one in label if one is not None]
    strange = [] if all_unicode(texts) else [one for one in texts if not is_unicode(one)]
    if strange:
        raise InvalidInput(f"{some_are(strange)} no label; give Unicode text, or None")
    return list(label)

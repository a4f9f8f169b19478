"""The rows in force that are nearest to an image by PDQ and by embedding, however far they are. Exact, for people."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from negindex.alike import MIN_QUALITY
from negindex.catalogue import Catalogue
from negindex.errors import ShapeMismatch
from negindex.hamming import BITS, Hashes, distances_to
from negindex.segment import Segment

_AT_ONCE = 1 << 12  # rows of embeddings compared at a time


class Neighbour(NamedTuple):
    """A row near what was looked for."""

    row: int  # id
    source_key: str
    distance: float  # PDQ: bits that differ; embedding: 1 - cosine; space: rms over the row's numbers


def nearest_pdq(catalogue: Catalogue, forms: Sequence[bytes], k: int) -> list[Neighbour]:
    """The k rows whose hashes differ least from the nearest of an image's forms, nearest first.

    Rows of too little quality are left out. Cost: rows × forms.
    """
    hashes, qualities = catalogue.pdqs()
    hashes = hashes.where((qualities >= MIN_QUALITY) & hashes.bits.any(axis=1))
    bits = np.full(len(hashes), BITS)
    for form in Hashes.of(forms).words:
        bits = np.minimum(bits, distances_to(hashes, form))
    found: list[Neighbour] = []
    order = np.argsort(bits, kind="stable")
    for start in range(0, len(order), 256):
        places = order[start : start + 256]
        known = catalogue.described(hashes.ids[places].tolist())
        ids = ((int(hashes.ids[place]), float(bits[place])) for place in places)
        found += [Neighbour(row, known[row][0], far) for row, far in ids if row in known]
        if len(found) >= k:
            break
    return found[:k]


def nearest_embedding(
    catalogue: Catalogue,
    parts: Iterable[tuple[Segment, NDArray[np.int64]]],
    embedding: NDArray[np.floating],
    k: int,
) -> list[Neighbour]:
    """The k rows with the largest cosine, nearest first, of those that have an embedding.

    parts: segments and the places in them that are in force. embedding: (E,).
    Raises ShapeMismatch where rows' embeddings have another size. Cost: rows × E, in blocks.
    """
    best: list[tuple[float, int]] = []
    asked = _unit(embedding[None])[0]
    for segment, places in parts:
        if segment.embeddings is None:
            continue
        if segment.embeddings.shape[1:] != embedding.shape:
            raise ShapeMismatch(
                f"an embedding of shape {embedding.shape}, and the set's have {segment.embeddings.shape[1:]}; "
                "use their model"
            )
        for start in range(0, len(places), _AT_ONCE):
            some = places[start : start + _AT_ONCE]
            far = 1 - _unit(np.asarray(segment.embeddings[some], np.float32)) @ asked
            best = heapq.nsmallest(k, [*best, *zip(far.tolist(), segment.ids[some].tolist(), strict=True)])
    keys = catalogue.source_keys([row for _, row in best])
    return [Neighbour(row, keys[row], max(0.0, far)) for far, row in best if row in keys]


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    wide = rows.astype(np.float32)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return wide

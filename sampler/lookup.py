"""One image's nearest rows by each way of comparing, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from negindex.alike import MIN_QUALITY
from negindex.collection import Collection
from negindex.errors import SpaceMismatch
from negindex.geometry import first_views, item_of
from negindex.nearest import Neighbour
from negindex.sampler.beside import reduced
from negindex.sampler.clip import Clip
from negindex.sampler.encode import Encoder, read_image
from negindex.sampler.pdq import forms_of
from negindex.sampler.tiles import Strip, Tile, drawn, sheet

PDQ, EMBEDDING, SPACE = WAYS = ("pdq", "embedding", "space")
UNITS = {PDQ: "{:.0f} bits", EMBEDDING: "{:.4f}", SPACE: "rms {:.4f}"}


@dataclass
class Lookup:
    """The nearest rows by each way that can be asked, nearest first, and why the others cannot."""

    image: Image.Image
    found: dict[str, list[Neighbour]] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)

    def drawn(self, collection: Collection, name: str) -> Image.Image:
        """The image, then its neighbours by each way with their distances under them."""
        strips = [Strip("looked for", [Tile(reduced(self.image), name)])]
        for way, near in self.found.items():
            tiles = [Tile(drawn(collection, one.row), f"{one.source_key}\n{_said(way, one)}") for one in near]
            strips.append(Strip(f"nearest by {way}", tiles))
        return sheet(strips)


def look_up(
    collection: Collection,
    file: Path | bytes,
    k: int,
    *,
    name: str = "",
    encoder: Encoder | None = None,
    clip: Clip | None = None,
) -> Lookup:
    """The k nearest rows in force by PDQ, by embedding, and in the model's space by rms distance.

    Of rows that are views of one image (its tiles, its mirror image) the nearest stands for all.

    file: a path, or the bytes of one, which is called ``name``.
    encoder: makes the set's rows; clip: the model that made its embeddings. Without one that way is left out.
    Raises ImageRefused, and SpaceMismatch for a model of other embeddings than the set's.
    """
    name = file.name if isinstance(file, Path) else name
    image = read_image(file, name)
    told = Lookup(image)
    forms = forms_of(image, name)
    if forms[0].quality < MIN_QUALITY:
        told.without[PDQ] = f"the image has too little in it (quality {forms[0].quality} of 100)"
    else:
        told.found[PDQ] = nearest_images(collection, k, partial(collection.nearest_pdq, [form.bits for form in forms]))
    _by_embedding(collection, told, k, clip)
    if encoder is None:
        told.without[SPACE] = "nothing makes rows here; name the pipeline (--pipeline)"
    else:
        row = encoder.row(image, name).astype(collection.dtype).astype(np.float32)
        told.found[SPACE] = nearest_images(collection, k, partial(nearest_in_space, collection, row))
    return told


def _by_embedding(collection: Collection, told: Lookup, k: int, clip: Clip | None) -> None:
    known = collection.embedded_by
    if clip is None:
        told.without[EMBEDDING] = "no row has one" if known is None else f"name their model (--clip): {known}"
        return
    if clip.fingerprint != known:
        raise SpaceMismatch(f"an embedding by {clip.fingerprint}, and the set's are by {known}; use their model")
    asked = clip.embed(told.image)
    told.found[EMBEDDING] = nearest_images(collection, k, partial(collection.nearest_embedding, asked))


def nearest_images(collection: Collection, k: int, nearest: Callable[[int], list[Neighbour]]) -> list[Neighbour]:
    """The k nearest images, each by its nearest view; ``nearest`` tells the nearest rows."""
    asked = k
    while True:
        rows = nearest(asked)
        found = first_views(rows, lambda one: item_of(one.source_key)) if collection.geometry.is_many else rows
        if len(found) >= k or len(rows) < asked:
            return found[:k]
        asked *= 4


def nearest_rows(collection: Collection, rows: NDArray[np.float32], k: int) -> list[list[Neighbour]]:
    """For each of ``rows`` (B, *S) the k rows in force nearest to it, by the root mean square of the differences."""
    near = collection.pin().near(torch.from_numpy(rows), k=k)
    keys = collection.keys_of(near.ids.flatten().tolist())
    far = (near.distances / rows[0].size ** 0.5).tolist()
    return [
        [Neighbour(i, keys[i], rms) for i, rms in zip(ids, distances, strict=True) if i in keys]
        for ids, distances in zip(near.ids.tolist(), far, strict=True)
    ]


def nearest_in_space(collection: Collection, row: NDArray[np.float32], k: int) -> list[Neighbour]:
    """Of one row (*S)."""
    return nearest_rows(collection, row[None], k)[0]


def _said(way: str, one: Neighbour) -> str:
    return UNITS[way].format(one.distance)


def lines(told: Lookup) -> list[list[str | None]]:
    """A line a rank: for each way that was asked, the source key and how far."""
    longest = max((len(near) for near in told.found.values()), default=0)
    columns = [[(one.source_key, _said(way, one)) for one in near] for way, near in told.found.items()]
    filled = [column + [(None, None)] * (longest - len(column)) for column in columns]
    return [
        [str(rank), *(cell for pair in pairs for cell in pair)]
        for rank, pairs in enumerate(zip(*filled, strict=True), 1)
    ]

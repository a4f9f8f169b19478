"""How often an image leads back to the row of the same name: what each way of comparing is worth on a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from negindex.alike import MIN_QUALITY
from negindex.collection import Collection
from negindex.errors import ImageRefused, NotThere
from negindex.sampler.clip import Clip
from negindex.sampler.encode import Encoder, read_image
from negindex.sampler.lookup import EMBEDDING, PDQ, SPACE
from negindex.sampler.pdq import forms_of

_AT_ONCE = 32  # images whose rows are compared together

Asked = tuple[Image.Image, str, int]  # an image, its file's name, the id of its namesake


@dataclass
class FoundAgain:
    """For each way, how many of the images have their namesake among the nearest, by its rank from 1."""

    asked: int = 0
    ranks: dict[str, Counter[int]] = field(default_factory=dict)

    def rate(self, way: str, k: int) -> float:
        """The share of all images whose namesake is among the k nearest; what a way cannot compare is not found."""
        return sum(many for rank, many in self.ranks[way].items() if rank <= k) / self.asked

    def note(self, way: str, ids: Sequence[int], namesake: int) -> None:
        """One image's answer: rows, nearest first."""
        ranks = self.ranks.setdefault(way, Counter())
        ranks.update([list(ids).index(namesake) + 1] if namesake in ids else [])


def found_again(
    collection: Collection,
    files: Iterable[Path],
    k: int,
    *,
    encoder: Encoder | None = None,
    clip: Clip | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> FoundAgain:
    """Look every file up whose name is that of one row's source key, and see at which rank that row is found.

    Files that are no image, or whose name no row has, or several, are passed over. Raises NotThere where none is left.
    """
    names = _namesakes(collection)
    told = FoundAgain()
    known = [(file, names[file.name]) for file in files if file.name in names]
    for start in range(0, len(known), _AT_ONCE):
        some = list(_images(known[start : start + _AT_ONCE]))
        told.asked += len(some)
        for one in some:
            _one_by_one(collection, told, one, k, clip)
        if encoder is not None and some:
            _together(collection, told, some, k, encoder)
        progress(min(len(known), start + _AT_ONCE))
    if not told.asked:
        raise NotThere(f"no file has the name of one row of {collection.path}; give the same images from elsewhere")
    return told


def _namesakes(collection: Collection) -> dict[str, int]:
    """{file name: the one row in force whose key ends in it}."""
    named = [(PurePosixPath(key).name, row) for row, key in collection.in_force().items() if key is not None]
    many = Counter(name for name, _ in named)
    return {name: row for name, row in named if many[name] == 1}


def _images(some: Iterable[tuple[Path, int]]) -> Iterable[Asked]:
    for file, row in some:
        try:
            yield read_image(file), file.name, row
        except ImageRefused:
            continue


def _one_by_one(collection: Collection, told: FoundAgain, one: Asked, k: int, clip: Clip | None) -> None:
    image, name, row = one
    forms = forms_of(image, name)
    enough = forms[0].quality >= MIN_QUALITY
    near = collection.nearest_pdq([form.bits for form in forms], k) if enough else []
    told.note(PDQ, [one.row for one in near], row)
    if clip is not None:
        told.note(EMBEDDING, [one.row for one in collection.nearest_embedding(clip.embed(image), k)], row)


def _together(collection: Collection, told: FoundAgain, some: Sequence[Asked], k: int, encoder: Encoder) -> None:
    made = np.stack([encoder.row(image, name).astype(collection.dtype) for image, name, _ in some])
    ids = collection.pin().near(torch.from_numpy(made.astype(np.float32)), k=k).ids.tolist()
    for (_, _, row), found in zip(some, ids, strict=True):
        told.note(SPACE, found, row)

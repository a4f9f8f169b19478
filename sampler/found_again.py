"""How often an image leads back to the row of the same name: what each way of comparing is worth on a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from negindex.alike import MIN_QUALITY
from negindex.collection import Collection
from negindex.errors import ImageRefused, NotThere
from negindex.geometry import item_of
from negindex.nearest import Neighbour
from negindex.sampler.clip import Clip
from negindex.sampler.encode import Encoder, read_image
from negindex.sampler.lookup import EMBEDDING, PDQ, SPACE, nearest_images, nearest_in_space, nearest_rows
from negindex.sampler.pdq import forms_of

_AT_ONCE = 32  # images whose rows are compared together

Asked = tuple[Image.Image, str, str]  # an image, its file's name, its namesake's source key


@dataclass
class FoundAgain:
    """For each way, how many of the images have their namesake among the nearest, by its rank from 1."""

    asked: int = 0
    ranks: dict[str, Counter[int]] = field(default_factory=dict)

    def rate(self, way: str, k: int) -> float:
        """The share of all images whose namesake is among the k nearest; what a way cannot compare is not found."""
        return sum(many for rank, many in self.ranks[way].items() if rank <= k) / self.asked

    def note(self, way: str, near: Iterable[Neighbour], namesake: str) -> None:
        """One image's answer: each image of the set by one of its rows, nearest first."""
        keys = [item_of(one.source_key) for one in near]
        self.ranks.setdefault(way, Counter()).update([keys.index(namesake) + 1] if namesake in keys else [])


def found_again(
    collection: Collection,
    files: Iterable[Path],
    k: int,
    *,
    encoder: Encoder | None = None,
    clip: Clip | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> FoundAgain:
    """Look every file up whose name is that of one image's source key, and see at which rank that image is found.

    Files that are no image, or whose name no image of the set has, or several, are passed over; an image counts once,
    however many of its views are rows. Raises NotThere where none is left.
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
        raise NotThere(f"no file has the name of one image of {collection.path}; give the same images from elsewhere")
    return told


def _namesakes(collection: Collection) -> dict[str, str]:
    """{file name: the source key of the one image with rows in force whose key ends in it}."""
    images = {item_of(key) for key in collection.in_force().values() if key is not None}
    many = Counter(PurePosixPath(key).name for key in images)
    return {PurePosixPath(key).name: key for key in images if many[PurePosixPath(key).name] == 1}


def _images(some: Iterable[tuple[Path, str]]) -> Iterable[Asked]:
    for file, namesake in some:
        try:
            yield read_image(file), file.name, namesake
        except ImageRefused:
            continue


def _one_by_one(collection: Collection, told: FoundAgain, one: Asked, k: int, clip: Clip | None) -> None:
    image, name, namesake = one
    forms = forms_of(image, name)
    by_pdq = partial(collection.nearest_pdq, [form.bits for form in forms])
    enough = forms[0].quality >= MIN_QUALITY
    told.note(PDQ, nearest_images(collection, k, by_pdq) if enough else [], namesake)
    if clip is not None:
        by_embedding = partial(collection.nearest_embedding, clip.embed(image))
        told.note(EMBEDDING, nearest_images(collection, k, by_embedding), namesake)


def _together(collection: Collection, told: FoundAgain, some: Sequence[Asked], k: int, encoder: Encoder) -> None:
    made = np.stack([encoder.row(image, name).astype(collection.dtype) for image, name, _ in some]).astype(np.float32)
    if collection.geometry.is_many:
        found = [nearest_images(collection, k, partial(nearest_in_space, collection, row)) for row in made]
    else:
        found = nearest_rows(collection, made, k)
    for (_, _, namesake), near in zip(some, found, strict=True):
        told.note(SPACE, near, namesake)

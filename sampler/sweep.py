"""What images that are about to be added are like: rows of the set, and each other. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negindex.alike import Alike, Likeness, among
from negindex.collection import Collection
from negindex.disk import sha256_of
from negindex.errors import ImageRefused
from negindex.hamming import NEAR
from negindex.sampler.encode import Encoder, read_image
from negindex.sampler.pdq import forms_of

BARRED = "a claim allows no copy of it, or of what it is like, or it was erased and is kept out; leave it out"
_AT_ONCE = 256  # files that the set is asked about together

T = TypeVar("T")


@dataclass(frozen=True)
class Sweep:
    """What a sweep found; everything in the order of the inputs."""

    looked_at: int = 0  # files that could be read
    in_set: list[tuple[str, Alike]] = field(default_factory=list)  # (source key, a row that it is or is nearly)
    among: list[list[str]] = field(default_factory=list)  # source keys that are near each other, two or more a group
    refused: list[tuple[str, str]] = field(default_factory=list)  # (source key, why it cannot become a row)


@dataclass
class Look(Generic[T]):
    """A file that was looked at: what it is recognised by and what was made of it, or why it is refused."""

    key: str
    file: Path
    likeness: Likeness = field(default_factory=Likeness)
    made: T | None = None
    refusal: str = ""


def sweep(
    collection: Collection,
    inputs: Sequence[tuple[str, Path]],
    *,
    encoder: Encoder | None = None,
    embed: Callable[[Image.Image], NDArray[np.floating]] | None = None,
    cosine: float | None = None,
    distance: int = NEAR,
    ever: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Sweep:
    """Look for files in the set and among each other, mirrored and turned copies too; changes nothing.

    inputs: (source key, file), as ``corpus.sources_in`` gives them.
    encoder: makes the set's rows; with it, a file whose row is stored already is found whatever its bytes are, and
    one that cannot become a row is refused, though looked for all the same.
    embed: an image's embedding (E,), by the model that made the rows'; ``cosine`` is from where on two are alike.
    distance: bits of PDQ that may differ. ever: look among rows that were withdrawn too.
    """

    def make(image: Image.Image, name: str) -> _Extra:
        extra = _Extra() if encoder is None else _row_digest(encoder, image, name, collection.dtype)
        return extra if embed is None else extra._replace(embedding=embed(image))

    keys: list[str] = []
    likenesses: list[Likeness] = []
    refused: list[tuple[str, str]] = []
    for one in look(collection, inputs, make, progress):
        extra = one.made or _Extra()
        if one.refusal or extra.refusal:
            refused.append((one.key, one.refusal or extra.refusal))
        if not one.refusal:
            keys.append(one.key)
            content = (*one.likeness.content, *extra.content)
            likenesses.append(one.likeness._replace(content=content, embedding=extra.embedding))
    found = collection.alike(likenesses, distance=distance, cosine=cosine, ever=ever)
    groups = among(likenesses, distance=distance, cosine=cosine)
    in_set = [(keys[alike.given], alike) for alike in found]
    return Sweep(len(keys), in_set, [[keys[place] for place in group] for group in groups], refused)


def look(
    collection: Collection,
    inputs: Sequence[tuple[str, Path]],
    make: Callable[[Image.Image, str], T],
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Look[T]]:
    """Each file's likeness and what ``make(image, name)`` makes of it, or a refusal; one image is held at a time.

    A file whose bytes the set keeps out is not decoded, and of one whose image it keeps out nothing is handed on.
    """
    for start in range(0, len(inputs), _AT_ONCE):
        some: list[Look[T]] = [Look(key, file) for key, file in inputs[start : start + _AT_ONCE]]
        for one in some:
            _read_bytes(one)
        _refuse_barred(collection, some)
        for done, one in enumerate(some, start + 1):
            if not one.refusal:
                _read_image(one, make)
            progress(done)
        _refuse_barred(collection, some)
        yield from some


class _Extra(NamedTuple):
    """What a sweep may find a file by besides its bytes and PDQ."""

    content: tuple[str, ...] = ()
    embedding: NDArray[np.floating] | None = None
    refusal: str = ""


def _row_digest(encoder: Encoder, image: Image.Image, name: str, dtype: str) -> _Extra:
    try:
        row = np.ascontiguousarray(encoder.row(image, name), dtype)
    except ImageRefused as refusal:
        return _Extra(refusal=str(refusal))
    return _Extra((sha256(row.tobytes()).hexdigest(),))


def _read_bytes(one: Look[T]) -> None:
    try:
        one.likeness = Likeness((sha256_of(one.file),))
    except OSError as error:
        one.refusal = f"{one.file.name} cannot be read ({error}); replace the file"


def _read_image(one: Look[T], make: Callable[[Image.Image, str], T]) -> None:
    try:
        image = read_image(one.file)
        forms = forms_of(image, one.file.name)
        one.made = make(image, one.file.name)
    except ImageRefused as refusal:
        one.refusal = str(refusal)
    else:
        one.likeness = one.likeness._replace(pdqs=tuple(form.bits for form in forms), quality=forms[0].quality)


def _refuse_barred(collection: Collection, some: Sequence[Look[T]]) -> None:
    open_ones = [one for one in some if not one.refusal]
    for one, barred in zip(open_ones, collection.barred([one.likeness for one in open_ones]), strict=True):
        if barred:
            one.refusal, one.made = BARRED, None

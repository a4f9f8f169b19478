"""What images that are about to be added are like: rows of the set, and each other. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negindex.alike import Alike, Likeness, among
from negindex.collection import Collection
from negindex.errors import ImageRefused
from negindex.hamming import NEAR
from negindex.sampler.beside import NOTHING, Beside
from negindex.sampler.encode import Encoder, read_image
from negindex.sampler.pdq import forms_of
from negindex.sampler.sources import DEFAULTS, Files, Item, Limits
from negindex.sampler.views import rows_of
from negindex.text import is_unicode

BARRED = "a claim allows no copy of it, or of what it is like, or it was erased and is kept out; leave it out"
_AT_ONCE = 256  # files that the set is asked about together,
_HELD_BYTES = 16 << 20  # or as many as hold so much, and one more

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
    """An input that was looked at: what it is recognised by and what was made of it, or why it is refused."""

    item: Item
    likeness: Likeness = field(default_factory=Likeness)
    made: T | None = None
    beside: Beside = NOTHING  # what is to be kept beside the row
    refusal: str = ""
    failed: bool = False  # refused because it could not be read, which another time may be otherwise
    done: bool = False  # nothing needs to be made of it
    content: bytes | None = None  # of the image's file, until it is decoded

    @property
    def key(self) -> str:
        """The source key."""
        return self.item.key


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
        extra = _Extra() if encoder is None else _row_digest(encoder, collection, image, name)
        return extra if embed is None else extra._replace(embedding=embed(image))

    keys: list[str] = []
    likenesses: list[Likeness] = []
    refused: list[tuple[str, str]] = []
    for one in look(collection, given_files(inputs), make, progress):
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
    items: Iterable[Item],
    make: Callable[[Image.Image, str], T],
    progress: Callable[[int], None] = lambda done: None,
    *,
    limits: Limits = DEFAULTS,
    spare: Callable[[Sequence[Look[T]]], None] = lambda some: None,
    beside: Callable[[Image.Image], Beside] = lambda image: NOTHING,
) -> Iterator[Look[T]]:
    """Each input's likeness and what ``make(image, name)`` makes of it, or a refusal.

    The files of 256 inputs, or of 16 MiB and one more, are held at a time, and one image. An input whose bytes the
    set keeps out is not decoded, and of one whose image it keeps out nothing is handed on; a ready row goes through.
    spare: may mark inputs as done before they are decoded. beside: what else is made of an image.
    """
    count = 0
    gathered: Iterator[list[Look[T]]] = _gathered(items)
    for some in gathered:
        _refuse_barred(collection, some)
        spare([one for one in some if not one.refusal])
        for one in some:
            if one.content is not None and not (one.refusal or one.done):
                _decode(one, make, limits, beside)
            one.content = None
            count += 1
            progress(count)
        _refuse_barred(collection, some)
        yield from some


def given_files(inputs: Iterable[tuple[str, Path]]) -> Iterator[Item]:
    """(source key, file) as items."""
    return Files(list(inputs)).items()


def _gathered(items: Iterable[Item]) -> Iterator[list[Look[T]]]:
    some: list[Look[T]] = []
    held = 0
    for item in items:
        one: Look[T] = Look(item, refusal=item.refusal)
        _read_bytes(one)
        some.append(one)
        held += len(one.content or b"") + (0 if item.row is None else item.row.nbytes)
        if len(some) == _AT_ONCE or held >= _HELD_BYTES:
            yield some
            some, held = [], 0
    if some:
        yield some


class _Extra(NamedTuple):
    """What a sweep may find a file by besides its bytes and PDQ."""

    content: tuple[str, ...] = ()
    embedding: NDArray[np.floating] | None = None
    refusal: str = ""


def _row_digest(encoder: Encoder, collection: Collection, image: Image.Image, name: str) -> _Extra:
    try:
        made = rows_of(encoder, collection.geometry, image, name)
    except ImageRefused as refusal:
        return _Extra(refusal=str(refusal))
    rows = (np.ascontiguousarray(row, collection.dtype) for _, row in made)
    return _Extra(tuple(sha256(row.tobytes()).hexdigest() for row in rows))


def _read_bytes(one: Look[T]) -> None:
    if not is_unicode(one.key) or not one.key:
        one.refusal = one.refusal or f"its key {one.key!r} is no Unicode text, or empty; rename it"
    if one.item.read is None or one.refusal:
        return
    try:
        one.content = one.item.read()
        one.likeness = Likeness((sha256(one.content).hexdigest(),))
    except ImageRefused as refusal:
        one.refusal = str(refusal)
    except OSError as error:
        one.refusal, one.failed = f"{one.item.name} cannot be read ({error}); replace the file", True


def _decode(
    one: Look[T],
    make: Callable[[Image.Image, str], T],
    limits: Limits,
    beside: Callable[[Image.Image], Beside],
) -> None:
    name = one.item.name
    try:
        image = read_image(one.content or b"", name, max_pixels=limits.pixels)
        forms = forms_of(image, name)
        one.made = make(image, name)
        one.beside = beside(image)
    except ImageRefused as refusal:
        one.refusal = str(refusal)
    else:
        one.likeness = one.likeness._replace(pdqs=tuple(form.bits for form in forms), quality=forms[0].quality)


def _refuse_barred(collection: Collection, some: Sequence[Look[T]]) -> None:
    open_ones = [one for one in some if not one.refusal and one.likeness.content]
    for one, barred in zip(open_ones, collection.barred([one.likeness for one in open_ones]), strict=True):
        if barred:
            one.refusal, one.made = BARRED, None

"""What is kept beside a row for people: an embedding to look it up by, and a thumbnail to see it by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negindex.alike import Likeness
from negindex.collection import Collection
from negindex.errors import SpaceMismatch
from negindex.states import Provenance

if TYPE_CHECKING:
    from negindex.sampler.sources import Item

SIDE = 64  # pixels of a thumbnail's longer side, at most


class Beside(NamedTuple):
    """What is made of one image beside its row; what is None is not kept."""

    embedding: NDArray[np.floating] | None = None  # (E,)
    embedded_by: str = ""  # the fingerprint of its model
    thumbnail: bytes | None = None  # PNG
    tile: Image.Image | None = None  # for a contact sheet; never stored

    def of(self, item: Item) -> Item:
        """The input, with the embedding that was made of it."""
        return replace(item, embedding=self.embedding, embedded_by=self.embedded_by)

    def kept(self, likeness: Likeness) -> Provenance:
        """What is kept of an image that was looked at."""
        return Provenance(likeness.content[0], likeness.pdqs[0], likeness.quality, self.thumbnail)


NOTHING = Beside()


@dataclass
class Maker:
    """Makes what was asked for of each image."""

    embed: Callable[[Image.Image], NDArray[np.floating]] | None = None
    embedded_by: str = ""
    thumbnails: bool = False
    tiles: bool = False

    def __call__(self, image: Image.Image) -> Beside:
        small = reduced(image) if self.thumbnails or self.tiles else None
        return Beside(
            None if self.embed is None else self.embed(image),
            self.embedded_by,
            png_of(small) if self.thumbnails and small is not None else None,
            small if self.tiles else None,
        )


def reduced(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A copy whose longer side has at most so many pixels; a smaller image stays as it is."""
    small = image.copy() if max(image.size) <= side else image
    if small is image:
        scale = side / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        small = image.resize(size, Image.Resampling.LANCZOS)
    return small


def png_of(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def check_embedded(collection: Collection, models: Iterable[str | None]) -> None:
    """Raise SpaceMismatch where embeddings of several models would lie in one set; None stands for no embeddings."""
    known = collection.embedded_by
    for model in models:
        if model is None:
            continue
        if known is not None and model != known:
            raise SpaceMismatch(
                f"embeddings by {model or 'a model that is not named'} beside those by "
                f"{known or 'a model that is not named'} in {collection.path}; use one model, or build another set"
            )
        known = model

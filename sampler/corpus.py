"""Which encoder makes a collection's rows, and files as rows with what is kept of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negindex.collection import Collection
from negindex.errors import DuplicateKey, ImageRefused, NotThere, ShapeMismatch, SpaceMismatch
from negindex.sampler.encode import PIXELS, Encoder, PixelEncoder, has_colour, images_in, space_of
from negindex.sampler.sources import Item
from negindex.sampler.sweep import given_files, look
from negindex.sampler.views import rows_of
from negindex.states import Provenance


@dataclass
class Prepared:
    """Files as rows with what is kept of each, ready for ``Collection.add`` or ``Claims.open``."""

    keys: list[str] = field(default_factory=list)
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    sources: list[Provenance] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)  # (file, reason)


def sources_in(sources: Sequence[Path]) -> list[tuple[str, Path]]:
    """(source key, file) of every image: the key is the file's path, from the named folder's own name on.

    Raises NotThere for a source that does not exist or holds no image.
    """
    found: dict[str, Path] = {}
    for source in sources:
        files = images_in(source)
        if not files or not source.exists():
            raise NotThere(f"{source} holds no image; name an image file, or a folder with some")
        for file in files:
            key = (Path(source.resolve().name) / file.relative_to(source)).as_posix() if file != source else file.name
            if found.setdefault(key, file) != file:
                raise DuplicateKey(
                    f"{file} and {found[key]} would both be {key!r}; build them one after the other", [key]
                )
    return list(found.items())


def pixel_encoder(items: Iterable[Item], height: int, width: int, channels: int | None = None) -> PixelEncoder:
    """An encoder for a new set: grey when every image is grey, colour otherwise, unless told.

    Untold, it reads the inputs up to the first one that has colour.
    """
    return PixelEncoder(height, width, channels or (1 if all(_is_grey(item) for item in items) else 3))


def _is_grey(item: Item) -> bool:
    """What can be no image has no say."""
    if item.read is None:
        return True
    try:
        return not has_colour(item.read())
    except (ImageRefused, OSError):
        return True


def encoder_asked(
    collection: Collection | None,
    items: Iterable[Item],
    height: int,
    width: int,
    *,
    channels: int | None = None,
    pipeline: Path | None = None,
    **computed: Any,
) -> Encoder:
    """The encoder for images of this size: of pixels, or of the pipeline in a folder.

    collection: None for a set that is yet to be made from ``items``.
    computed: device and precision, for ``encoder_of``.
    Raises SpaceMismatch or ShapeMismatch where the rows cannot go into the collection.
    """
    if pipeline is not None:
        from negindex.sampler.vae import encoder_of, parts_in

        encoder = encoder_of(parts_in(pipeline), height, width, **computed)
    elif collection is None:
        return pixel_encoder(items, height, width, channels)
    else:
        check_space(collection, PIXELS)
        encoder = PixelEncoder(height, width, channels or collection.shape[0])
    if collection is not None:
        check_fits(collection, encoder)
    return encoder


def encoder_for(collection: Collection, pipeline: Path | None = None, **computed: Any) -> Encoder:
    """The encoder that makes rows of a collection's own space and shape.

    pipeline: the folder of the pipeline whose space it is; a set of pixels needs none.
    computed: see ``encoder_asked``.
    Raises SpaceMismatch where the pipeline is of another space, and where one is needed and not named.
    """
    shape = collection.shape
    if pipeline is None and collection.space != PIXELS:
        raise SpaceMismatch(
            f"{collection.path} holds rows of space {collection.space!r}, which only its pipeline's VAE makes; "
            "name the pipeline's folder (--pipeline)"
        )
    if len(shape) < 3:
        raise ShapeMismatch(f"{collection.path} holds rows of shape {shape}; images need (channels, height, width)")
    if pipeline is None:
        return PixelEncoder(shape[1], shape[2], shape[0])
    from negindex.sampler.vae import downsampling, encoder_of, parts_in

    parts = parts_in(pipeline)
    check_space(collection, space_of(parts))
    factor = downsampling(parts.vae) if hasattr(parts, "vae") else 1
    encoder = encoder_of(parts, shape[-2] * factor, shape[-1] * factor, **computed)
    check_fits(collection, encoder)
    return encoder


def check_fits(collection: Collection, encoder: Encoder) -> None:
    """Raise SpaceMismatch or ShapeMismatch where the encoder's rows cannot go into the collection."""
    check_space(collection, encoder.space)
    if encoder.shape != collection.shape:
        raise ShapeMismatch(
            f"{collection.path} holds rows of shape {collection.shape}, and asked for are rows of {encoder.shape}; "
            "build another set"
        )


def check_space(collection: Collection, space: str) -> None:
    """Raise SpaceMismatch where rows of a space cannot go into the collection."""
    if space != collection.space:
        raise SpaceMismatch(
            f"{collection.path} holds rows of space {collection.space!r}, and asked for are rows of {space!r}; "
            "use the pipeline that the set was built for, or build another set"
        )


def prepare(
    collection: Collection,
    inputs: Sequence[tuple[str, Path]],
    encoder: Encoder,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Prepared:
    """Encode files, and note what each is recognised by: sha256 of its bytes, PDQ and its quality.

    What a claim or an erasure keeps out is refused by its bytes before it is decoded, or else by its PDQ, mirrored
    and turned copies too. Cost beside the encoder's: about 1 ms a small file, 5 ms a megapixel.
    """
    found = Prepared()
    for one in look(collection, given_files(inputs), partial(rows_of, encoder, collection.geometry), progress):
        if one.made is None:
            found.refused.append((one.key, one.refusal))
            continue
        for suffix, row in one.made:
            found.keys.append(one.key + suffix)
            found.rows.append(row)
            found.sources.append(Provenance(one.likeness.content[0], one.likeness.pdqs[0], one.likeness.quality))
    return found

"""From piles of files to rows in a collection, losing count of none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from negindex.collection import Collection
from negindex.errors import DuplicateKey, ImageRefused, NotThere, ShapeMismatch, SpaceMismatch
from negindex.sampler.encode import PIXELS, Encoder, PixelEncoder, images_in, is_grey, space_of

BATCH_BYTES = 64 << 20  # rows that go in as one version,
LATENTS_AT_ONCE = 256  # or so many, where encoding is slow and an interruption costs minutes


@dataclass
class Report:
    """What became of each input."""

    version: int
    added: int = 0
    unchanged: int = 0
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


def pixel_encoder(files: Sequence[Path], height: int, width: int, channels: int | None = None) -> PixelEncoder:
    """An encoder for a new set: grey when every file is grey, colour otherwise, unless told."""
    return PixelEncoder(height, width, channels or (1 if all(is_grey(file) for file in files) else 3))


def encoder_asked(
    collection: Collection | None,
    files: Sequence[Path],
    height: int,
    width: int,
    *,
    channels: int | None = None,
    pipeline: Path | None = None,
) -> Encoder:
    """The encoder for images of this size: of pixels, or of the pipeline in a folder.

    collection: None for a set that is yet to be made from ``files``.
    Raises SpaceMismatch or ShapeMismatch where the rows cannot go into the collection.
    """
    if pipeline is not None:
        from negindex.sampler.vae import encoder_of, parts_in

        encoder = encoder_of(parts_in(pipeline), height, width)
    elif collection is None:
        return pixel_encoder(files, height, width, channels)
    else:
        _check_space(collection, PIXELS)
        encoder = PixelEncoder(height, width, channels or collection.shape[0])
    if collection is not None:
        check_fits(collection, encoder)
    return encoder


def encoder_for(collection: Collection, pipeline: Path | None = None) -> Encoder:
    """The encoder that makes rows of a collection's own space and shape.

    pipeline: the folder of the pipeline whose space it is; a set of pixels needs none.
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
    _check_space(collection, space_of(parts))
    factor = downsampling(parts.vae) if hasattr(parts, "vae") else 1
    encoder = encoder_of(parts, shape[-2] * factor, shape[-1] * factor)
    check_fits(collection, encoder)
    return encoder


def check_fits(collection: Collection, encoder: Encoder) -> None:
    """Raise SpaceMismatch or ShapeMismatch where the encoder's rows cannot go into the collection."""
    _check_space(collection, encoder.space)
    if encoder.shape != collection.shape:
        raise ShapeMismatch(
            f"{collection.path} holds rows of shape {collection.shape}, and asked for are rows of {encoder.shape}; "
            "build another set"
        )


def _check_space(collection: Collection, space: str) -> None:
    if space != collection.space:
        raise SpaceMismatch(
            f"{collection.path} holds rows of space {collection.space!r}, and asked for are rows of {space!r}; "
            "use the pipeline that the set was built for, or build another set"
        )


def ingest(
    collection: Collection,
    inputs: Sequence[tuple[str, Path]],
    encoder: Encoder,
    *,
    label: str | None = None,
    reason: str = "",
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Encode files and put them in force; a file that cannot become a row is named, and stops nothing.

    inputs: (source key, file). What is in force already as the same row stays as it is.
    """
    report = Report(collection.newest().version)
    clashing = "with other pixels" if encoder.space == PIXELS else "as other latents: another image, or another machine"
    for keys, rows in _batches(inputs, encoder, report, progress):
        before = collection.newest().in_force
        try:
            report.version = collection.add(rows, keys, label=label, reason=reason)
        except DuplicateKey as clash:
            report.refused += [(key, f"in force {clashing}; withdraw it first") for key in clash.keys]
            keep = [i for i, key in enumerate(keys) if key not in clash.keys]
            keys, rows = [keys[i] for i in keep], rows[keep]
            report.version = collection.add(rows, keys, label=label, reason=reason)
        fresh = collection.newest().in_force - before
        report.added += fresh
        report.unchanged += len(keys) - fresh
    return report


def _batches(
    inputs: Sequence[tuple[str, Path]], encoder: Encoder, report: Report, progress: Callable[[int], None]
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    size = max(1, BATCH_BYTES // (4 * int(np.prod(encoder.shape))))
    size = size if encoder.space == PIXELS else min(size, LATENTS_AT_ONCE)
    for start in range(0, len(inputs), size):
        keys, rows = [], []
        for done, (key, file) in enumerate(inputs[start : start + size], start + 1):
            try:
                rows.append(encoder.encode(file))
                keys.append(key)
            except ImageRefused as refusal:
                report.refused.append((key, str(refusal)))
            progress(done)
        if rows:
            yield keys, np.stack(rows)

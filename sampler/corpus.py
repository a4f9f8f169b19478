"""From piles of files to rows in a collection, losing count of none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from negindex.collection import Collection
from negindex.errors import DuplicateKey, ImageRefused, NotThere, ShapeMismatch, SpaceMismatch
from negindex.sampler.encode import PIXELS, PixelEncoder, images_in, is_grey

BATCH_BYTES = 64 << 20  # rows that go in as one version


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


def encoder_for(collection: Collection) -> PixelEncoder:
    """The encoder that makes rows of a collection's own shape."""
    if collection.space != PIXELS:
        raise SpaceMismatch(
            f"{collection.path} holds rows of space {collection.space!r}; images can be added to 'pixels'"
        )
    if len(collection.shape) != 3:
        raise ShapeMismatch(
            f"{collection.path} holds rows of shape {collection.shape}; images need (channels, height, width)"
        )
    channels, height, width = collection.shape
    return PixelEncoder(height, width, channels)


def ingest(
    collection: Collection,
    inputs: Sequence[tuple[str, Path]],
    encoder: PixelEncoder,
    *,
    label: str | None = None,
    reason: str = "",
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Encode files and put them in force; a file that cannot become a row is named, and stops nothing.

    inputs: (source key, file). What is in force already with the same pixels stays as it is.
    """
    report = Report(collection.newest().version)
    for keys, rows in _batches(inputs, encoder, report, progress):
        before = collection.newest().in_force
        try:
            report.version = collection.add(rows, keys, label=label, reason=reason)
        except DuplicateKey as clash:
            report.refused += [(key, "in force with other pixels; withdraw it first") for key in clash.keys]
            keep = [i for i, key in enumerate(keys) if key not in clash.keys]
            keys, rows = [keys[i] for i in keep], rows[keep]
            report.version = collection.add(rows, keys, label=label, reason=reason)
        fresh = collection.newest().in_force - before
        report.added += fresh
        report.unchanged += len(keys) - fresh
    return report


def _batches(
    inputs: Sequence[tuple[str, Path]], encoder: PixelEncoder, report: Report, progress: Callable[[int], None]
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    size = max(1, BATCH_BYTES // (4 * int(np.prod(encoder.shape))))
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

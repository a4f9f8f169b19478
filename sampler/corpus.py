"""From piles of files to rows in a collection, losing count of none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from negindex.collection import Collection
from negindex.errors import ContentRefused, DuplicateKey, NotThere, ShapeMismatch, SpaceMismatch
from negindex.log import count
from negindex.sampler.encode import PIXELS, Encoder, PixelEncoder, images_in, is_grey, space_of
from negindex.sampler.sweep import BARRED, look
from negindex.states import Note, Provenance

BATCH_BYTES = 64 << 20  # rows that go in as one version,
LATENTS_AT_ONCE = 256  # or so many, where encoding is slow and an interruption costs minutes


@dataclass
class Prepared:
    """Files as rows with what is kept of each, ready for ``Collection.add`` or ``Claims.open``."""

    keys: list[str] = field(default_factory=list)
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    sources: list[Provenance] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)  # (file, reason)

    def without(self, keys: Sequence[str]) -> Prepared:
        """Those under other keys."""
        keep = [i for i, key in enumerate(self.keys) if key not in set(keys)]
        return Prepared([self.keys[i] for i in keep], [self.rows[i] for i in keep], [self.sources[i] for i in keep])


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
    by: str = "",
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Encode files and put them in force; a file that cannot become a row is named, and stops nothing.

    inputs: (source key, file). What is in force already as the same row stays as it is.
    """
    report = Report(collection.newest().version)
    size = max(1, BATCH_BYTES // (4 * int(np.prod(encoder.shape))))
    size = size if encoder.space == PIXELS else min(size, LATENTS_AT_ONCE)
    for start in range(0, len(inputs), size):

        def so_far(done: int, start: int = start) -> None:
            progress(start + done)

        prepared = prepare(collection, inputs[start : start + size], encoder, progress=so_far)
        report.refused += prepared.refused
        _put(collection, prepared, label, Note(reason, by), report)
    return report


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
    for one in look(collection, inputs, encoder.row, progress):
        if one.made is None:
            found.refused.append((one.key, one.refusal))
            continue
        found.keys.append(one.key)
        found.rows.append(one.made)
        found.sources.append(Provenance(one.likeness.content[0], one.likeness.pdqs[0], one.likeness.quality))
    return found


def _put(collection: Collection, prepared: Prepared, label: str | None, note: Note, report: Report) -> None:
    """Put rows in force; those that clash with the set are named, and the others go in."""
    while prepared.keys:
        before, rows = collection.newest().version, np.stack(prepared.rows)
        try:
            version = collection.add(
                rows, prepared.keys, label=label, reason=note.reason, by=note.by, sources=prepared.sources
            )
        except (DuplicateKey, ContentRefused) as clash:
            if not clash.keys:
                raise
            why = BARRED if isinstance(clash, ContentRefused) else _clash(collection)
            report.refused += [(key, why) for key in clash.keys]
            prepared = prepared.without(clash.keys)
        else:
            entered = _entered(collection, before, version, prepared.keys)
            report.version = version
            report.added += entered
            report.unchanged += len(prepared.keys) - entered
            return


def _clash(collection: Collection) -> str:
    pixels, latents = "with other pixels", "as other latents: another image, or another machine"
    return f"in force {pixels if collection.space == PIXELS else latents}; withdraw it first"


def _entered(collection: Collection, before: int, version: int, keys: Sequence[str]) -> int:
    """How many of the rows came into force at a version, unless it is another process's."""
    (record,) = collection.log(version, version + 1)
    if version == before or record.action != "add" or record.claim is None:
        return 0
    ours = set(collection.claims.show(record.claim).rows.values()) <= set(keys)
    return count(record.entered) if ours else 0

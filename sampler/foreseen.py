"""How many rows sources will become, before any of them is decoded: what the room on a disk is asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from negindex.errors import ImageRefused
from negindex.geometry import Geometry
from negindex.sampler.arrays import ARRAY_SUFFIXES
from negindex.sampler.encode import IMAGE_SUFFIXES, size_of
from negindex.sampler.fetch import is_url
from negindex.sampler.keytables import lines_of
from negindex.sampler.sources import Array, Files, Limits, Listed, Shard, Source
from negindex.sampler.tars import Stream, headers, padded
from negindex.sampler.views import MOST_TILES, laid

SAMPLED = 64 << 20  # unpacked bytes of a compressed shard that are looked at
PEEKED = 1 << 18  # bytes of an image in a shard that are read for its header
MARGIN = 1.25  # as many times what a part of a shard says of the whole

Rows = Callable[[Path | BinaryIO], int]  # of one image


def rows_foreseen(sources: Iterable[Source], geometry: Geometry, size: tuple[int, int]) -> int:
    """At most so many rows come of the sources, as far as that is told without decoding an image.

    size: height and width of the model's images. Counted as one row is what says nothing: a URL, and a file that is
    no image. Cost: with tiles, the header of each image; of a shard, the headers of its members, and of a compressed
    one its first 64 MiB, from which the whole is estimated with a quarter added.
    """

    is_cut = geometry.fit == "tile"

    def rows(image: Path | BinaryIO) -> int:
        return (1 + geometry.flip) * (_tiles(size_of(image), size) if is_cut else 1)

    return sum(_rows_of(source, rows, PEEKED if is_cut else 0) for source in sources)


def _rows_of(source: Source, rows: Rows, peeked: int) -> int:
    if isinstance(source, Files):
        return sum(rows(file) for _, file in source.files)
    if isinstance(source, Shard):
        return _in_shard(source, rows, peeked)
    if isinstance(source, Listed):
        return sum(_named(source.path.parent / line, line, rows) for line in lines_of(source.path) if line)
    return source.count() or 0


def _tiles(image: tuple[int, int] | None, size: tuple[int, int]) -> int:
    """Of an image, whichever way its EXIF turns it."""
    if image is None:
        return 1
    found = []
    for width, height in (image, image[::-1]):
        is_cut = width > size[1] or height > size[0]
        _, down, across = laid((width, height), size) if is_cut else ((0, 0), 1, 1)
        found.append(down * across if down * across <= MOST_TILES else 1)  # more are refused
    return max(found)


def _named(file: Path, line: str, rows: Rows) -> int:
    """Of a line of a list."""
    name = line.lower()
    if name.endswith(ARRAY_SUFFIXES):
        return Array(line, file).count() or 1
    is_image = name.endswith(IMAGE_SUFFIXES) and not is_url(line) and "\0" not in line
    return rows(file) if is_image else 1


def _in_shard(shard: Shard, rows: Rows, peeked: int) -> int:
    """Of the images of an archive; of one that is damaged, those before the damage."""
    found = 0
    with suppress(ImageRefused, OSError), open(shard.path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        packed = not shard.path.name.lower().endswith(".tar")
        stream = Stream(shard.path, file, packed=packed)
        for image in _images(stream, shard.limits, peeked):
            found += rows(io.BytesIO(image))
            if packed and stream.read > SAMPLED:
                return int(found * MARGIN * size / max(1, stream.consumed))
    return found


def _images(stream: Stream, limits: Limits, peeked: int) -> Iterator[bytes]:
    """The first bytes of each member that is an image by its name."""
    for _, (info, name) in zip(range(limits.entries), headers(stream), strict=False):
        start = b""
        if info.isreg() and info.size <= limits.bytes and name.lower().endswith(IMAGE_SUFFIXES):
            start = stream.take(min(info.size, peeked))
            yield start
        stream.skip(padded(info.size) - len(start))

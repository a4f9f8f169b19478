"""What decoding an image would take, known before it is begun: a limit that is the same on every machine."""

from __future__ import annotations

from typing import Any

from PIL import Image

from negindex.errors import ImageRefused

MAX_SCANNED = 2_000_000_000  # pixels times scans of a JPEG: some twenty seconds of a slow core
MAX_RUN_LENGTH = 4 << 20  # bytes of a BMP's runs, and a quarter of its pixels: Pillow reads them in Python

_SCAN = b"\xff\xda"  # the marker before a scan; never within one
_RUNS = (1, 2)  # a BMP's compression: of eight bits, of four
_COMPRESSION, _STRIPS, _TILES, _JPEGS = 259, 273, 324, (6, 7)  # of TIFF


def refuse_costly(image: Image.Image, name: str) -> None:
    """Raise ImageRefused for a file whose few bytes ask for minutes of decoding; read is no more than its bytes.

    Every other decoder that is run takes time by the pixel, of which there is a limit: a JPEG may go over its pixels
    any number of times (progressive, one scan each), and a BMP may hold runs of nothing.
    image: as opened, not yet loaded.
    """
    scans = _scans(image)
    if image.width * image.height * scans > MAX_SCANNED:
        most = MAX_SCANNED // (image.width * image.height)
        raise ImageRefused(
            f"{name} goes {scans:,} times over its {image.width} × {image.height} pixels; the limit at this size is "
            f"{most:,}, so save it again with fewer scans"
        )
    if image.format == "BMP" and image.info.get("compression") in _RUNS:
        length = _size(image)
        if length > MAX_RUN_LENGTH or image.width * image.height > 4 * MAX_RUN_LENGTH:
            raise ImageRefused(
                f"{name} is a BMP of {length:,} bytes packed in runs, for {image.width} × {image.height} pixels; the "
                f"limits are {MAX_RUN_LENGTH:,} bytes and {4 * MAX_RUN_LENGTH:,} pixels, so save it as PNG"
            )


def _scans(image: Any) -> int:
    """How often a decoder goes over the pixels, at most; in a TIFF, over those of one strip times their number."""
    if image.format in ("JPEG", "MPO"):
        return _content(image).count(_SCAN)
    if image.format == "TIFF" and image.tag_v2.get(_COMPRESSION) in _JPEGS:
        parts = image.tag_v2.get(_STRIPS) or image.tag_v2.get(_TILES) or (0,)
        return -(-_content(image).count(_SCAN) // len(parts))
    return 1


def _content(image: Any) -> bytes:
    place = image.fp.tell()
    try:
        image.fp.seek(0)
        content: bytes = image.fp.read()
        return content
    finally:
        image.fp.seek(place)


def _size(image: Any) -> int:
    place = image.fp.tell()
    try:
        return int(image.fp.seek(0, 2))
    finally:
        image.fp.seek(place)

"""A receipt inside the PNG that it speaks of."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from negindex.errors import Damaged, ImageRefused, InvalidInput, NotThere
from negindex.keys import Key
from negindex.receipts import Receipt

KEYWORD = "negindex-receipt"
LIMIT = 16 << 20  # bytes of a receipt inside an image, written or read
MODES = ("1", "L", "LA", "RGB", "RGBA", "I;16")  # what a PNG gives back as it was
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = KEYWORD.encode() + b"\0"


def save_image(image: Image.Image, receipt: Receipt, path: Path | str, *, key: Key | None = None) -> Receipt:
    """Write the image as a PNG with its receipt inside; returns the receipt, bound to the image's pixels.

    The receipt is JSON in an iTXt chunk, "negindex-receipt"; other programs show it as text and most keep it. The
    names of rows' sources stay out of it: they are in the receipt that is returned, to be kept beside the image.
    key: signs it once it is bound. A guard that was given one has done so for the images that it returned.
    Raises ImageRefused for pixels that no PNG gives back as they were, InvalidInput for a receipt too large, and
    NotAllowed for a signed receipt of other pixels where there is no key.
    """
    if image.mode not in MODES:
        raise ImageRefused(f"an image of mode {image.mode} for a PNG; give one of {', '.join(MODES)}")
    bound = receipt.bind(image, key)
    text = bound.without_names().to_json(indent=None)
    if len(text.encode()) > LIMIT:
        raise InvalidInput(
            f"a receipt of {len(text.encode()):,} bytes; {LIMIT:,} go into an image, so save it beside the image"
        )
    info = PngInfo()
    info.add_itxt(KEYWORD, text)
    image.save(path, format="PNG", pnginfo=info)
    return bound


def read_receipt(path: Path | str) -> Receipt:
    """The receipt inside a PNG, whether it matches the pixels or not: ask ``receipt.matches(image)``.

    Pixels are not decoded. Raises NotThere where there is no file or no receipt in it, ImageRefused where it
    is no PNG, Damaged where the file is truncated, says sizes it does not have, or holds no sound receipt.
    """
    path = Path(path)
    if not path.is_file():
        raise NotThere(f"{path} is no file; name a PNG that was saved with its receipt")
    with path.open("rb") as file:
        return receipt_in(file, path.name)


def receipt_in(file: BinaryIO, name: str) -> Receipt:
    """The receipt inside an open PNG, as ``read_receipt`` reads it; name: what errors call it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise ImageRefused(f"{name} is no PNG; receipts are kept inside PNGs")
    found = list(_receipts(file, size, name))
    if not found:
        raise NotThere(f"{name} holds no receipt; look for one beside it, or make the image again")
    if len(found) > 1:
        raise Damaged(f"{name} holds {len(found)} receipts; which one is its own cannot be told")
    return Receipt.from_json(_text(found[0], name))


def _receipts(file: BinaryIO, size: int, name: str) -> Iterator[bytes]:
    """The contents of the chunks with a receipt, none longer than the limit; others are passed over unread."""
    while True:
        head = file.read(8)
        length, kind = int.from_bytes(head[:4]), head[4:]
        if len(head) < 8 or file.tell() + length + 4 > size:
            raise Damaged(f"{name} breaks off, or a chunk says more bytes than there are; copy the file again")
        if kind == b"IEND":
            return
        if kind != b"iTXt":
            file.seek(length + 4, os.SEEK_CUR)
            continue
        start = file.read(min(length, len(_HEAD)))
        if start != _HEAD:
            file.seek(length - len(start) + 4, os.SEEK_CUR)
            continue
        if length > LIMIT + 1024:
            raise Damaged(f"{name} holds a receipt of {length:,} bytes; the limit is {LIMIT:,}")
        content = start + file.read(length - len(start))
        if zlib.crc32(kind + content) != int.from_bytes(file.read(4)):
            raise Damaged(f"{name} holds a receipt whose checksum is wrong; copy the file again")
        yield content


def _text(content: bytes, name: str) -> str:
    """The text of an iTXt chunk: after keyword, two flags, language and translated keyword."""
    flags, rest = content[len(_HEAD) : len(_HEAD) + 2], content[len(_HEAD) + 2 :].split(b"\0", 2)
    if flags != b"\0\0" or len(rest) != 3:
        raise Damaged(f"{name} holds a receipt that is compressed or cut short; negindex writes it as plain text")
    try:
        return rest[2].decode()
    except UnicodeDecodeError as error:
        raise Damaged(f"{name} holds a receipt that is no text ({error})") from error

"""What the service's pages need done with images: rows of uploads and what these are like, and rows as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from negindex.alike import among
from negindex.collection import Collection
from negindex.errors import ImageRefused, InvalidInput, SpaceMismatch
from negindex.receipts import Receipt
from negindex.sampler.beside import SIDE, Beside, png_of, reduced
from negindex.sampler.corpus import check_fits, encoder_for
from negindex.sampler.encode import PIXELS, Encoder, PixelEncoder, read_image
from negindex.sampler.lookup import SPACE, look_up
from negindex.sampler.png import receipt_in
from negindex.sampler.sources import Item, Limits
from negindex.sampler.sweep import look
from negindex.sampler.tiles import drawn
from negindex.sampler.vae import VaeEncoder
from negindex.sampler.views import rows_of
from negindex.service.encoding import RowMaker
from negindex.service.pages.images import Looked, Nearest, Picture, Upload

LIMITS = Limits(pixels=40_000_000)  # of an upload: half a gigabyte while it is decoded
SHOWN = 256  # pixels of a picture's longer side
_MOSAIC = 6  # pixels of a blurred picture's side before it is scaled up: no more than its colours


class ForPages:
    """``Images`` by this package's own decoders. It holds nothing."""

    def load(self, collection: Collection, folder: Path) -> RowMaker:
        if collection.space == PIXELS:
            raise InvalidInput(f"{collection.path} holds pixels, which need no encoder; leave its --encoder out")
        encoder = encoder_for(collection, folder)
        if not isinstance(encoder, VaeEncoder):
            raise InvalidInput(f"{folder} makes rows without a VAE; name the folder of the set's VAE or pipeline")
        return encoder

    def look(
        self, collection: Collection, files: Sequence[tuple[str, bytes]], distance: int, maker: RowMaker | None
    ) -> Looked:
        encoder = _encoder(collection, maker)
        told = Looked()
        keys, likenesses = [], []
        items = [Item(key, key, read=partial(bytes, content)) for key, content in files]
        make = partial(rows_of, encoder, collection.geometry)
        for one in look(collection, items, make, limits=LIMITS, beside=_tile):
            if one.made is None or one.beside.tile is None:
                told.refused.append((one.key, one.refusal))
                continue
            for suffix, row in one.made:
                told.keys.append(one.key + suffix)
                told.rows.append(row)
                told.sources.append(one.beside.kept(one.likeness))
            told.pictures[one.key] = _picture(one.beside.tile)
            keys.append(one.key)
            likenesses.append(one.likeness)
        found = collection.alike(likenesses, distance=distance, ever=True)
        told.similar = [(keys[alike.given], alike) for alike in found]
        told.among = [[keys[place] for place in group] for group in among(likenesses, distance=distance)]
        return told

    def nearest(self, collection: Collection, file: Upload, k: int, maker: RowMaker | None) -> Nearest:
        image = read_image(file.content, file.name, max_pixels=LIMITS.pixels)
        able = maker is not None or (collection.space == PIXELS and len(collection.shape) == 3)
        encoder = _encoder(collection, maker) if able else None
        found = look_up(collection, file.content, k, name=file.name, encoder=encoder)
        without = {**found.without, **({} if able else {SPACE: "this service makes no rows of this set"})}
        return Nearest(_picture(reduced(image, SHOWN)), dict(found.found), without)

    def picture(self, collection: Collection, row: int) -> Picture | None:
        image = drawn(collection, row, SHOWN)
        return None if image is None else _picture(image)

    def receipt(self, file: Upload) -> tuple[Receipt, bool]:
        receipt = receipt_in(BytesIO(file.content), file.name)
        read_image(file.content, file.name, max_pixels=LIMITS.pixels)  # refuses what must not be decoded
        with Image.open(BytesIO(file.content), formats=("PNG",)) as image:
            return receipt, receipt.matches(image)


class _Elsewhere:
    """An encoder whose images are scaled here, and whose VAE computes in another process."""

    def __init__(self, maker: RowMaker) -> None:
        self.size, self.shape, self.space = maker.size, maker.shape, maker.space
        self._maker, self._pixels = maker, PixelEncoder(*maker.size, maker.channels)

    def encode(self, path: Path) -> NDArray[np.float32]:
        return self.row(read_image(path), path.name)

    def row(self, image: Image.Image, name: str) -> NDArray[np.float32]:
        row: NDArray[np.float32] = self._maker.rows(self._pixels.row(image, name)[None])[0]
        if not np.isfinite(row).all():
            raise ImageRefused(f"{name} becomes NaN or Inf in the VAE; leave it out")
        return row


def _encoder(collection: Collection, maker: RowMaker | None) -> Encoder:
    """Of a set's own rows. Raises SpaceMismatch."""
    if collection.space == PIXELS:
        return encoder_for(collection)
    name = collection.path.name
    if maker is None:
        raise SpaceMismatch(
            f"set {name} holds latents, and this service has no encoder for them (`negindex serve --encoder "
            f"{name}=FOLDER`); claim content by its hash, or rows that are there"
        )
    made = _Elsewhere(maker)
    check_fits(collection, made)
    return made


def _tile(image: Image.Image) -> Beside:
    return Beside(tile=reduced(image, SHOWN))


def _picture(image: Image.Image) -> Picture:
    shown = image.convert("RGB")
    scale = max(1, SIDE // max(shown.size))  # rows of a few pixels are shown as squares
    if scale > 1:
        shown = shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.NEAREST)
    small = shown.resize((_MOSAIC, _MOSAIC), Image.Resampling.BOX)
    blurred = small.resize(shown.size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(3))
    return Picture(png_of(blurred), png_of(shown))

"""What the pages need done with images; ``negindex.sampler.for_pages`` does it, and the command line joins the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from negindex.alike import Alike
from negindex.collection import Collection
from negindex.nearest import Neighbour
from negindex.receipts import Receipt
from negindex.service.encoding import RowMaker
from negindex.states import Provenance


class Upload(NamedTuple):
    """A file as it came, in memory."""

    name: str
    content: bytes


class Picture(NamedTuple):
    """An image as people see it, twice: PNG files of at most 256 pixels a side."""

    blurred: bytes
    clear: bytes


@dataclass
class Looked:
    """Uploads as rows, and what they are like."""

    keys: list[str] = field(default_factory=list)  # of the rows
    rows: list[NDArray[np.float32]] = field(default_factory=list)  # each (*S)
    sources: list[Provenance] = field(default_factory=list)
    pictures: dict[str, Picture] = field(default_factory=dict)  # by the upload's key
    similar: list[tuple[str, Alike]] = field(default_factory=list)  # (upload's key, a row that it is or is nearly)
    among: list[list[str]] = field(default_factory=list)  # keys of uploads that are near each other
    refused: list[tuple[str, str]] = field(default_factory=list)  # (key, why it cannot become a row)


@dataclass
class Nearest:
    """The rows nearest to one image by each way of comparing, and why a way is missing."""

    picture: Picture
    found: dict[str, list[Neighbour]] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)


class Images(Protocol):
    """Decodes images in memory, within limits, and draws rows. Usable from several threads; it can be pickled."""

    def load(self, collection: Collection, folder: Path) -> RowMaker:
        """What makes a set's latents, by the VAE in a folder, or by that of the pipeline in it.

        Raises SpaceMismatch where it is another than the set's, NotThere, Damaged, InvalidInput.
        """

    def look(
        self, collection: Collection, files: Sequence[tuple[str, bytes]], distance: int, maker: RowMaker | None
    ) -> Looked:
        """Make rows of (source key, file), and look what they are like; changes nothing.

        maker: of the set's latents. Raises SpaceMismatch where they need one that is not there, or is another's.
        """

    def nearest(self, collection: Collection, file: Upload, k: int, maker: RowMaker | None) -> Nearest:
        """The k rows nearest to an image. Raises ImageRefused, and SpaceMismatch for another set's maker."""

    def picture(self, collection: Collection, row: int) -> Picture | None:
        """A row, in force or not; None where nobody can see it: latents without a thumbnail, or bytes that are gone."""

    def receipt(self, file: Upload) -> tuple[Receipt, bool]:
        """The receipt inside a PNG, and whether the image has the very pixels that it speaks of.

        Raises ImageRefused, NotThere where there is none, Damaged.
        """

"""A contact sheet of a build: what went in, and what was kept out as a near-duplicate, beside its neighbour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from negindex.collection import Collection
from negindex.sampler.ingest import IN, Entry
from negindex.sampler.sieve import Refused
from negindex.sampler.sweep import Look
from negindex.sampler.tiles import Strip, Tile, drawn, save, sheet

MOST_IN = 200  # tiles of what went in,
MOST_PAIRS = 100  # and pairs of what was kept out and its neighbour: what a sheet holds, and the memory

T = TypeVar("T")


class _Pair(NamedTuple):
    key: str
    tile: Image.Image | None
    neighbour: str
    distance: int


class Contact:
    """Gathers a sheet's tiles while a build runs; the first of each kind, up to a maximum."""

    def __init__(self) -> None:
        self._waiting: dict[str, Image.Image] = {}
        self._in: dict[str, Image.Image] = {}
        self._pairs: list[_Pair] = []
        self._count_in = self._count_pairs = 0

    def __call__(self, looks: Iterable[Look[T]]) -> Iterator[Look[T]]:
        """The same inputs; tiles of those that may go in are held."""
        for one in looks:
            tile = one.beside.tile
            if one.made is not None and tile is not None and len(self._waiting) + len(self._in) < MOST_IN:
                self._waiting[one.key] = tile
            yield one

    def refused(self, one: Refused) -> None:
        """Note a near-duplicate that was kept out."""
        self._count_pairs += 1
        if len(self._pairs) < MOST_PAIRS:
            self._pairs.append(_Pair(one.look.key, one.look.beside.tile, one.neighbour, one.distance))

    def told(self, entry: Entry) -> None:
        """Note what became of an input."""
        tile = self._waiting.pop(entry.key, None)
        if entry.outcome == IN:
            self._count_in += 1
            if tile is not None:
                self._in[entry.key] = tile

    def write(self, path: Path, collection: Collection) -> None:
        """Draw the sheet; a neighbour of which there is no picture gets a blank tile with its name."""
        went = [Tile(tile, key) for key, tile in self._in.items()]
        pairs = [tile for pair in self._pairs for tile in self._beside(pair, collection)]
        said = f"{self._count_in:,} went in, {len(went):,} of them shown"
        kept = (
            f"{self._count_pairs:,} kept out as near-duplicates, {len(self._pairs):,} shown, each before its neighbour"
        )
        save(sheet([Strip(said, went), Strip(kept, pairs)]), path)

    def _beside(self, pair: _Pair, collection: Collection) -> tuple[Tile, Tile]:
        tile = self._in.get(pair.neighbour)
        if tile is None:
            found = collection.held([pair.neighbour]).get(pair.neighbour)
            tile = None if found is None else drawn(collection, found.row)
        return Tile(pair.tile, f"{pair.key}\n{pair.distance} bits from"), Tile(tile, pair.neighbour)

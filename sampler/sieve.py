"""Near-duplicates kept out while a corpus goes in: of a row of the set, or of an input that came before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np

from negindex.alike import MIN_QUALITY, Likeness
from negindex.collection import Collection
from negindex.hamming import NEAR, Hashes, within
from negindex.sampler.sweep import Look

T = TypeVar("T")
_AT_ONCE = 128  # inputs that the set is asked about together


class Refused(NamedTuple):
    """A near-duplicate that was kept out, and what it is near to."""

    look: Look[Any]
    neighbour: str  # source key
    distance: int  # bits of PDQ; 0 by bytes


class _Near(NamedTuple):
    distance: int
    key: str
    same: bool  # the same bytes


class Sieve:
    """Refuses what is near a row of the set, or near an input of this run that went through, mirrored and turned too.

    Blank images are near nothing but their own copies. Held are 32 bytes and a key an input that went through. One that
    went through may still be refused later, for its key or its values; what is near it is refused all the same.
    """

    def __init__(
        self,
        collection: Collection,
        distance: int = NEAR,
        tell: Callable[[Refused], None] = lambda refused: None,
    ) -> None:
        self._collection, self._distance, self._tell = collection, distance, tell
        self._keys: list[str] = []  # of what went through and has a hash that says something
        self._bits = bytearray()
        self._content: dict[str, str] = {}  # sha256 of a file: the first key that it went through under

    def __call__(self, looks: Iterable[Look[T]]) -> Iterator[Look[T]]:
        """The same inputs in their order, near-duplicates with a refusal that names their neighbour."""
        looks = iter(looks)
        while some := list(islice(looks, _AT_ONCE)):
            images = [one for one in some if one.likeness.content and not (one.refusal or one.done)]
            near = dict(zip(map(id, images), self._in_set(images), strict=True))
            for one in some:
                if id(one) in near:
                    self._decide(one, near[id(one)])
                yield one

    def _in_set(self, images: list[Look[T]]) -> list[_Near | None]:
        """For each image the nearest row of the set under another key."""
        found: list[_Near | None] = [None] * len(images)
        likenesses = [one.likeness for one in images]
        for alike in self._collection.alike(likenesses, distance=self._distance):
            if found[alike.given] is None and alike.source_key != images[alike.given].key:
                found[alike.given] = _Near(int(alike.distance), alike.source_key, alike.by == "bytes")
        return found

    def _decide(self, one: Look[T], in_set: _Near | None) -> None:
        near = min((found for found in (in_set, self._before(one)) if found is not None), default=None)
        if near is None:
            self._remember(one)
            return
        how = "the same image as" if near.same else f"a near-duplicate, {near.distance} bits of PDQ from"
        one.made, one.refusal = None, f"{how} {near.key!r}; leave it out"
        self._tell(Refused(one, near.key, near.distance))

    def _before(self, one: Look[T]) -> _Near | None:
        """The nearest input that went through under another key."""
        key = self._content.get(one.likeness.content[0])
        if key is not None:
            return None if key == one.key else _Near(0, key, True)
        if not (self._bits and _tells(one.likeness)):
            return None
        pairs = within(Hashes.of(one.likeness.pdqs), self._hashes(), self._distance)
        near = sorted(zip(pairs.distance.tolist(), pairs.row.tolist(), strict=True))
        known = (_Near(bits, self._keys[row], False) for bits, row in near)
        return next((found for found in known if found.key != one.key), None)

    def _hashes(self) -> Hashes:
        return Hashes(np.frombuffer(self._bits, np.uint8).reshape(-1, 32))

    def _remember(self, one: Look[T]) -> None:
        self._content.setdefault(one.likeness.content[0], one.key)
        if _tells(one.likeness):
            self._keys.append(one.key)
            self._bits += one.likeness.pdqs[0]


def _tells(one: Likeness) -> bool:
    """Whether the hash says enough to be compared."""
    return bool(one.pdqs) and any(one.pdqs[0]) and (one.quality or 0) >= MIN_QUALITY

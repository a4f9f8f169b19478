"""How images become rows of a set, and the source keys of rows that are views of one image.

Both are stated in the set's space, which version 0 of its log binds: "pixels fit=contain augment=flip". Rows of one
space stay comparable whatever the images' shape was, so everywhere else the space goes without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple, TypeVar

from negindex.errors import InvalidInput

T = TypeVar("T")
FITS = ("cover", "contain", "tile")
VIEW = "#view="  # in a source key, before what tells a further view of one image from the first
_STATED = re.compile(r"^(.*?)(?: fit=(\S+))?(?: augment=(\S+))?$", re.DOTALL)


class Geometry(NamedTuple):
    """How an image fills the model's height and width."""

    fit: str = "cover"  # cover: scaled and cropped; contain: scaled and padded white; tile: cut into parts
    flip: bool = False  # whether each view comes mirrored too

    @property
    def is_many(self) -> bool:
        """Whether an image may become more rows than one."""
        return self.flip or self.fit == "tile"

    def __str__(self) -> str:
        return f"fit={self.fit}" + (" augment=flip" if self.flip else "")


COVER = Geometry()


def stated(space: str, geometry: Geometry) -> str:
    """A space as a set states it; scaling to cover goes unsaid.

    >>> stated("pixels", Geometry("contain", flip=True)), stated("pixels", Geometry())
    ('pixels fit=contain augment=flip', 'pixels')
    """
    return space if geometry == COVER else f"{space} {geometry}"


def apart(said: str) -> tuple[str, Geometry]:
    """The space and the geometry of what a set states. Raises InvalidInput for a geometry that is not known.

    >>> apart("pixels fit=tile")
    ('pixels', Geometry(fit='tile', flip=False))
    """
    found = _STATED.match(said)
    space, fit, augment = found.groups() if found else (said, None, None)
    if fit is None:
        return said, COVER
    if fit not in FITS or augment not in (None, "flip"):
        raise InvalidInput(f"a set of {said!r}; known are fit={'|'.join(FITS)} and augment=flip: use a newer negindex")
    return space, Geometry(fit, augment == "flip")


def item_of(source_key: str) -> str:
    """The source key of the image that a row is a view of.

    >>> item_of("cats/1.png#view=0.1.flip")
    'cats/1.png'
    """
    return source_key.partition(VIEW)[0]


def first_views(found: Iterable[T], image: Callable[[T], Hashable]) -> list[T]:
    """Of what belongs to one image the first alone, in the same order; ``image`` says which one it is.

    >>> first_views(["a#view=flip", "b", "a"], item_of)
    ['a#view=flip', 'b']
    """
    first: dict[Hashable, T] = {}
    for one in found:
        first.setdefault(image(one), one)
    return list(first.values())

"""Which rows are an image that is looked for, or nearly it: by its bytes, by PDQ, by embedding.

Exact: every row that is on record is compared. A hash of too little quality says nothing, so that blank images are
found by their bytes alone and are near no photograph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from negindex.catalogue import Catalogue
from negindex.errors import Damaged, InvalidInput, OutOfRange, ShapeMismatch
from negindex.hamming import NEAR, Hashes, groups, within
from negindex.segment import Segment
from negindex.segments import Segments
from negindex.states import Provenance

MIN_QUALITY = 50  # PDQ's authors': below it, an image has too little in it to be told from others
_AT_ONCE = 1 << 22  # numbers of embeddings compared at a time

Embedding = NDArray[np.floating]


class Likeness(NamedTuple):
    """What an image is recognised by."""

    content: tuple[str, ...] = ()  # sha256, hex, of the file's bytes and of the row's, as far as they are known
    pdqs: tuple[bytes, ...] = ()  # 32 bytes each: the image's, then those of its turned and mirrored forms
    quality: int | None = None  # PDQ's, 0 to 100; None where nobody told it
    embedding: Embedding | None = None  # (E,)


def likeness(digest: str, source: Provenance) -> Likeness:
    """A row's: of its stored bytes (sha256, hex) and what is kept of its source image."""
    content = (digest, source.image_sha256) if source.image_sha256 else (digest,)
    return Likeness(content, (source.pdq,) if source.pdq is not None else (), source.quality)


class Alike(NamedTuple):
    """A row that is what was looked for, or near it."""

    given: int  # place among what was looked for
    row: int  # id
    source_key: str
    by: str  # "bytes", "pdq" or "embedding": the surest that holds
    distance: float  # by bytes 0; by PDQ the bits that differ; by embedding 1 - cosine
    in_force: bool


def alike(
    catalogue: Catalogue,
    segments: Segments,
    looked_for: Sequence[Likeness],
    *,
    distance: int = NEAR,
    cosine: float | None = None,
    ever: bool = False,
) -> list[Alike]:
    """Rows like what is looked for, in its order, the surest and nearest first within each; see ``Collection.alike``.

    Cost: rows × forms of each image compared by PDQ, and rows × images by embedding, in blocks.
    """
    _check(looked_for, cosine)
    found: dict[tuple[int, int], tuple[int, str, float]] = {}
    ways = (
        ("bytes", _by_bytes(catalogue, looked_for)),
        ("pdq", _by_pdq(catalogue, looked_for, distance, ever)),
        ("embedding", _by_embedding(catalogue, segments, looked_for, cosine)),
    )
    for rank, (by, near) in enumerate(ways):
        for given, row, apart in near:
            found.setdefault((given, row), (rank, by, apart))
    held = catalogue.standing(sorted({row for _, row in found}), ever)
    return [
        Alike(given, row, held[row][0], by, apart, held[row][1])
        for (given, row), (_, by, apart) in sorted(found.items(), key=lambda item: (item[0][0], item[1], item[0][1]))
        if row in held
    ]


def among(looked_for: Sequence[Likeness], *, distance: int = NEAR, cosine: float | None = None) -> list[list[int]]:
    """Places of images that are like each other, link by link: groups of two or more, in order.

    A link joins neighbours: the ends of a long group can be farther apart than ``distance``.
    """
    _check(looked_for, cosine)
    hashes = _hashes(looked_for)
    same: dict[str, list[int]] = {}
    for place, one in enumerate(looked_for):
        for digest in one.content:
            same.setdefault(digest, []).append(place)
    near = (sorted(set(hashes.ids[places].tolist())) for places in groups(hashes, distance))
    return _joined(len(looked_for), chain(same.values(), near, _pairs(looked_for, cosine)))


def groups_held(catalogue: Catalogue, *, distance: int = NEAR, ever: bool = False) -> list[list[int]]:
    """Ids of rows of the set that are like each other, by bytes or PDQ: groups of two or more, ascending.

    Mirrored and turned copies stay apart, since a row's record holds the hash of the image as it is.
    """
    (hashes, qualities), same = catalogue.pdqs(ever=ever), catalogue.twins(ever)
    hashes = hashes.where((qualities >= MIN_QUALITY) & _telling(hashes))
    near = (hashes.ids[places].tolist() for places in groups(hashes, distance))
    ids = sorted({row for group in same for row in group} | set(hashes.ids.tolist()))
    place = {row: at for at, row in enumerate(ids)}
    joined = _joined(len(ids), ([place[row] for row in group] for group in chain(same, near)))
    return [[ids[at] for at in group] for group in joined]


def listed_near(
    listed: Hashes, images: Hashes, qualities: NDArray[np.int64], distance: int = NEAR
) -> list[tuple[int, int]]:
    """(id in a list of hashes, id of an image near it), sorted. Nobody told the listed hashes' quality.

    An image of too little quality matches by equal bits alone, and the hash of a blank image matches nothing.
    qualities: (N,) of the images.
    """
    listed, enough = listed.where(_telling(listed)), qualities >= MIN_QUALITY
    found: set[tuple[int, int]] = set()
    for some, bits in ((images.where(enough), distance), (images.where(~enough), 0)):
        swap = len(listed) > len(some)  # the longer of the two goes through in larger blocks
        pairs = within(some, listed, bits) if swap else within(listed, some, bits)
        a, b = (pairs.row, pairs.query) if swap else (pairs.query, pairs.row)
        found |= set(zip(listed.ids[a].tolist(), some.ids[b].tolist(), strict=True))
    return sorted(found)


def hashes_of(looked_for: Sequence[Likeness]) -> tuple[Hashes, NDArray[np.int64]]:
    """All hashes of images, each with its image's place, and their qualities; an untold one counts as enough."""
    forms = [(place, form) for place, one in enumerate(looked_for) for form in one.pdqs]
    places = np.array([place for place, _ in forms], np.int64)
    qualities = np.array([100 if one.quality is None else one.quality for one in looked_for], np.int64)
    return Hashes.of((form for _, form in forms), places), qualities[places]


# -- the three ways ----------------------------------------------------------------------------


def _by_bytes(catalogue: Catalogue, looked_for: Sequence[Likeness]) -> Iterator[tuple[int, int, float]]:
    known = catalogue.with_content(sorted({digest for one in looked_for for digest in one.content}))
    for place, one in enumerate(looked_for):
        yield from ((place, row, 0.0) for digest in one.content for row in known.get(digest, ()))


def _by_pdq(
    catalogue: Catalogue, looked_for: Sequence[Likeness], distance: int, ever: bool
) -> Iterator[tuple[int, int, float]]:
    queries = _hashes(looked_for)
    if not len(queries):
        return
    rows, qualities = catalogue.pdqs(ever=ever)
    rows = rows.where((qualities >= MIN_QUALITY) & _telling(rows))
    near = within(queries, rows, distance)
    for at in np.argsort(near.distance, kind="stable").tolist():  # the nearest form of each image first
        yield int(queries.ids[near.query[at]]), int(rows.ids[near.row[at]]), float(near.distance[at])


def _by_embedding(
    catalogue: Catalogue, segments: Segments, looked_for: Sequence[Likeness], cosine: float | None
) -> Iterator[tuple[int, int, float]]:
    places, given = _embeddings(looked_for)
    if given is None or cosine is None:
        return
    for segment in _embedded(catalogue, segments, given.shape[1]):
        for start, block in _blocks(np.asarray(segment.embeddings)):
            for query, row, value in _cosines(given, block, cosine):
                yield places[query], int(segment.ids[start + row]), 1 - value


def _embedded(catalogue: Catalogue, segments: Segments, size: int) -> list[Segment]:
    """The sealed files with embeddings of a size; raises ShapeMismatch where all have another."""
    while True:
        files = catalogue.segments()
        sizes = {file.embedding for file in files} - {0}
        if sizes and size not in sizes:
            raise ShapeMismatch(f"an embedding of {size} numbers, and the set's have {sorted(sizes)}; use their model")
        try:
            return [segments.open(file) for file in files if file.embedding == size]
        except Damaged:
            if {file.file for file in files} <= {file.file for file in catalogue.segments()}:
                raise  # else the file was replaced meanwhile: look again where its rows lie now


def _pairs(looked_for: Sequence[Likeness], cosine: float | None) -> Iterator[list[int]]:
    places, given = _embeddings(looked_for)
    if given is None or cosine is None:
        return
    for start, block in _blocks(given):
        yield from ([places[a], places[start + b]] for a, b, _ in _cosines(given, block, cosine) if a < start + b)


def _cosines(given: Embedding, block: Embedding, least: float) -> Iterator[tuple[int, int, float]]:
    """(place in ``given``, place in ``block``, cosine) from ``least`` on, in float32."""
    rows = _unit(block)
    for start, some in _blocks(given):
        values = _unit(some) @ rows.T
        for a, b in np.argwhere(values >= least).tolist():
            yield start + a, b, float(values[a, b])


def _blocks(rows: Embedding) -> Iterator[tuple[int, Embedding]]:
    step = max(1, _AT_ONCE // max(2048, rows.shape[1]))
    return ((start, rows[start : start + step]) for start in range(0, len(rows), step))


def _unit(rows: Embedding) -> NDArray[np.float32]:
    """At length 1; nought stays nought, which is near nothing."""
    wide = rows.astype(np.float32)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return wide


# -- inside ------------------------------------------------------------------------------------


def _hashes(looked_for: Sequence[Likeness]) -> Hashes:
    """The hashes that say enough, each with its image's place."""
    hashes, qualities = hashes_of(looked_for)
    return hashes.where((qualities >= MIN_QUALITY) & _telling(hashes))


def _telling(hashes: Hashes) -> NDArray[np.bool_]:
    """Whether any bit is set: none is in the hash of a blank image, whatever its quality is said to be."""
    return np.asarray(hashes.bits.any(axis=1))


def _embeddings(looked_for: Sequence[Likeness]) -> tuple[list[int], Embedding | None]:
    """Places of the images that have one, and their embeddings (Q, E)."""
    known = [(place, one.embedding) for place, one in enumerate(looked_for) if one.embedding is not None]
    return [place for place, _ in known], np.stack([wide for _, wide in known]) if known else None


def _joined(size: int, links: Iterable[Sequence[int]]) -> list[list[int]]:
    """What hangs together of ``size`` things, where it is two or more."""
    first = list(range(size))

    def root(at: int) -> int:
        while first[at] != at:
            first[at] = at = first[first[at]]
        return at

    for group in links:
        for one in group[1:]:
            a, b = sorted((root(group[0]), root(one)))
            first[b] = a
    found: dict[int, list[int]] = {}
    for at in range(size):
        found.setdefault(root(at), []).append(at)
    return [group for group in found.values() if len(group) > 1]


def _check(looked_for: Sequence[Likeness], cosine: float | None) -> None:
    shapes = {one.embedding.shape for one in looked_for if one.embedding is not None}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ShapeMismatch(f"embeddings of shapes {sorted(shapes)}; give (E,), the same for all")
    if shapes and cosine is None:
        raise InvalidInput("embeddings without a cosine; say from which on two are alike, measured for their model")
    if cosine is not None and not 0 < cosine <= 1:
        raise OutOfRange(f"a cosine of {cosine}; give one above 0 and up to 1")

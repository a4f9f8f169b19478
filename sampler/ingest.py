"""From piles of inputs to rows in a collection, losing count of none: each has one outcome, in one ledger."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negindex.collection import Collection
from negindex.errors import ContentRefused, Damaged, DuplicateKey, NotThere, ShapeMismatch
from negindex.incoming import finite_rows
from negindex.sampler.beside import NOTHING, Beside, same_embedding
from negindex.sampler.corpus import check_space
from negindex.sampler.encode import PIXELS, Encoder
from negindex.sampler.sources import DEFAULTS, Held, Item, Limits, Source
from negindex.sampler.sweep import BARRED, Look, look
from negindex.states import Provenance

IN, THERE, DUPLICATE, REFUSED, FAILED = OUTCOMES = ("in", "there already", "duplicate", "refused", "failed")
ENCODED_BYTES = 16 << 20  # stored bytes of rows that go in as one version,
READY_BYTES = 64 << 20  # or so many where nothing is encoded,
LATENTS_AT_ONCE = 256  # or so many rows, where encoding is slow and an interruption costs minutes,
SECONDS = 60.0  # or what came in so long
MOST_NAMED = 1000  # refusals that a report holds; the ledger has them all


class Entry(NamedTuple):
    """What became of one input."""

    key: str
    source: str  # where it lay
    outcome: str  # one of OUTCOMES
    reason: str = ""
    row: int | None = None  # its id, where it is in force
    version: int | None = None  # the one that it came into force at
    sha256: str | None = None  # of the image's file, or of the row where there is none
    label: str | None = None
    caption: str = ""

    def to_json(self) -> str:
        """One line of a ledger, ASCII; what is not known is left out."""
        return json.dumps({name: value for name, value in self._asdict().items() if value not in ("", None)})


@dataclass
class Report:
    """How many inputs came to which end."""

    version: int
    counts: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[str, str]] = field(default_factory=list)  # (source key, reason) of the first MOST_NAMED

    @property
    def added(self) -> int:
        """Rows that came into force."""
        return self.counts[IN]

    @property
    def unchanged(self) -> int:
        """Inputs that were there already, from before or from earlier in the run."""
        return self.counts[THERE] + self.counts[DUPLICATE]

    @property
    def left_out(self) -> int:
        """Inputs that are refused, or that could not be read."""
        return self.counts[REFUSED] + self.counts[FAILED]


def ingest(
    collection: Collection,
    items: Iterable[Item],
    encoder: Encoder | None = None,
    *,
    label: str | None = None,
    reason: str = "",
    by: str = "",
    limits: Limits = DEFAULTS,
    progress: Callable[[int], None] = lambda done: None,
    tell: Callable[[Entry], None] = lambda entry: None,
    beside: Callable[[Image.Image], Beside] = lambda image: NOTHING,
    through: Callable[[Iterator[Look[NDArray[Any]]]], Iterable[Look[NDArray[Any]]]] = iter,
) -> Report:
    """Put inputs in force; one that cannot become a row is named, and stops nothing.

    encoder: makes images into rows; without one every image is refused, and ready rows go in. label: for all rows,
    instead of those that the inputs bring. tell: is told what became of each input, once it is certain.
    beside: what of an image is kept beside its row. through: may refuse inputs that were looked at; each comes out.
    Killed at any moment, the same call goes on: an input whose key is in force with the same file's sha256 is not
    decoded again. Held in memory are one version's rows and what ``look`` holds.
    """
    run = _Run(collection, encoder, label, reason, by, tell)
    for one in through(look(collection, items, run.make, progress, limits=limits, spare=run.spare, beside=beside)):
        run.take(one)
    run.put()
    return run.report


def chosen(
    sources: Sequence[Source],
    shape: tuple[int, ...],
    *,
    shard: tuple[int, int] | None = None,
    keys: set[str] | None = None,
) -> Iterator[Item]:
    """The inputs of sources in their order; those of one of N shards by key, and under some keys, where told."""
    for source in sources:
        for item in source.items(shape):
            if (shard is None or item.within(*shard)) and (keys is None or item.key in keys):
                yield item


def left_out_in(ledger: Path) -> set[str]:
    """The keys that a ledger names as refused or failed. Raises NotThere, Damaged."""
    found: set[str] = set()
    try:
        with open(ledger, encoding="ascii") as lines:
            for line in lines:
                entry: Any = json.loads(line)
                if entry["outcome"] in (REFUSED, FAILED):
                    found.add(entry["key"])
    except OSError as error:
        raise NotThere(f"{ledger} cannot be read ({error.strerror}); name a file that --ledger wrote") from error
    except (ValueError, LookupError, TypeError) as error:
        raise Damaged(f"{ledger} is no ledger, or cut short ({error!r}); name one that --ledger wrote") from error
    return found


def check_parts(shape: tuple[int, ...], space: str, parts: Iterable[Source]) -> None:
    """Raise SpaceMismatch or ShapeMismatch where rows of other collections cannot go into one as they are."""
    for part in parts:
        if isinstance(part, Held):
            check_space(part.collection, space)
            if part.collection.shape != shape:
                raise ShapeMismatch(
                    f"{part.collection.path} holds rows of shape {part.collection.shape}, and the set's are {shape}; "
                    "build it anew from its sources"
                )


class _Run:
    """One call of ``ingest``."""

    def __init__(
        self,
        collection: Collection,
        encoder: Encoder | None,
        label: str | None,
        reason: str,
        by: str,
        tell: Callable[[Entry], None],
    ) -> None:
        self._collection, self._encoder, self._label, self._tell = collection, encoder, label, tell
        self._words = {"reason": reason, "by": by}
        self._began = collection.newest().version
        self.report = Report(self._began)
        self._batch = _Batch()
        self._row_bytes = int(np.prod(collection.shape)) * np.dtype(collection.dtype).itemsize

    def make(self, image: Image.Image, name: str) -> NDArray[Any]:
        """The row of an image, as it will be stored; what is beyond the stored type becomes Inf."""
        row = self._encoder.row(image, name) if self._encoder is not None else np.zeros(0, np.float32)
        with np.errstate(over="ignore"):
            return row.astype(self._collection.dtype)

    def spare(self, some: Sequence[Look[NDArray[Any]]]) -> None:
        """Mark images that are in force already; the set's space and shape say how their rows were made."""
        images = [one for one in some if one.likeness.content]
        held = self._collection.held([one.key for one in images])
        for one in images:
            found = held.get(one.key)
            if found is not None and found.in_house and found.image_sha256 == one.likeness.content[0]:
                one.done = True
                how = DUPLICATE if found.added > self._began else THERE
                self._say(one.item, how, "", found.row, found.added, found.image_sha256)
            elif self._encoder is None:
                one.refusal = "an image, and nothing makes rows of images here; name the model's image size (--size)"

    def take(self, one: Look[NDArray[Any]]) -> None:
        """Have one input go in with the next version, unless it is done with."""
        if one.done:
            return
        row = one.item.row if one.made is None else one.made
        if one.refusal or row is None:
            self._say(one.item, FAILED if one.failed else REFUSED, one.refusal)
        elif row.shape != self._collection.shape:
            why = f"a row of shape {row.shape} for a collection of {self._collection.shape} rows; leave it out"
            self._say(one.item, REFUSED, why)
        else:
            item, kept = one.item, one.item.kept or Provenance()
            if one.likeness.content:
                item, kept = one.beside.of(item), one.beside.kept(one.likeness)
            if self._batch.items and not same_embedding(self._batch.items[-1], item):
                self.put()
            self._batch.add(item, row, kept)
            if self._is_full():
                self.put()

    def _is_full(self) -> bool:
        count, encoder = len(self._batch.items), self._encoder
        if encoder is not None and encoder.space != PIXELS and count >= LATENTS_AT_ONCE:
            return True
        most = READY_BYTES if encoder is None else ENCODED_BYTES
        return count * self._row_bytes >= most or time.monotonic() - self._batch.since > SECONDS

    def put(self) -> None:
        """Put what has come in in force as one version; what clashes is named, and the rest goes in."""
        batch, self._batch = self._batch, _Batch()
        if not batch.items:
            return
        rows = batch.stacked(self._collection.shape, self._collection.dtype)
        left = self._sound(batch, rows)
        while left:
            items = [batch.items[i] for i in left]
            before = self._collection.newest().version
            try:
                version = self._collection.add(
                    rows if len(left) == len(rows) else rows[left],
                    [item.key for item in items],
                    label=[self._label or item.label for item in items],
                    sources=[batch.kept[i] for i in left],
                    embeddings=_embeddings(items),
                    embedded_by=items[0].embedded_by,
                    **self._words,
                )
            except (DuplicateKey, ContentRefused) as clash:
                if not clash.keys:
                    raise
                gone, why = set(clash.keys), BARRED if isinstance(clash, ContentRefused) else self._clash()
                for item in items:
                    if item.key in gone:
                        self._say(item, REFUSED, why)
                left = [i for i in left if batch.items[i].key not in gone]
            else:
                self.report.version = version
                self._account(batch, left, before)
                left = []
        self._repeated(batch, rows)

    def _sound(self, batch: _Batch, rows: NDArray[Any]) -> list[int]:
        """Places of the rows that can be stored, the first under each key."""
        finite = finite_rows(rows)
        corner = rows.reshape(len(rows), -1)[:, 0] == 0  # few rows need to be looked through for another number
        first: dict[str, int] = {}
        for place, item in enumerate(batch.items):
            if not finite[place]:
                self._say(item, REFUSED, _not_finite(batch.rows[place], rows.dtype))
            elif item.row is not None and item.kept is None and corner[place] and not rows[place].any():
                self._say(item, REFUSED, "a row of nothing but zeros; leave it out")
            elif item.key in first:
                batch.again.append((place, first[item.key]))
            else:
                first[item.key] = place
        return list(first.values())

    def _account(self, batch: _Batch, places: Sequence[int], before: int) -> None:
        """Tell what became of rows that ``add`` took."""
        held = self._collection.held([batch.items[i].key for i in places])
        for place in places:
            item, found = batch.items[place], held.get(batch.items[place].key)
            if found is None:  # withdrawn since, by somebody else
                self._say(item, IN)
                continue
            how = IN if found.added > before else DUPLICATE if found.added > self._began else THERE
            digest = batch.kept[place].image_sha256 or found.sha256
            self._say(item, how, "", found.row, found.added, digest)
            batch.ends[place] = found.row, found.added, digest

    def _repeated(self, batch: _Batch, rows: NDArray[Any]) -> None:
        """Tell of inputs whose key came twice in one version."""
        for place, first in batch.again:
            same = rows[place].tobytes() == rows[first].tobytes()
            if same and first in batch.ends:
                self._say(batch.items[place], DUPLICATE, "", *batch.ends[first])
            else:
                why = "as the first under its key" if same else "its key came before, with other bytes; rename one"
                self._say(batch.items[place], REFUSED, why)

    def _clash(self) -> str:
        pixels, latents = "with other pixels", "as other latents: another image, or another machine"
        return f"in force {pixels if self._collection.space == PIXELS else latents}; withdraw it first"

    def _say(
        self,
        item: Item,
        outcome: str,
        reason: str = "",
        row: int | None = None,
        version: int | None = None,
        sha256: str | None = None,
    ) -> None:
        self.report.counts[outcome] += 1
        if outcome in (REFUSED, FAILED) and len(self.report.refused) < MOST_NAMED:
            self.report.refused.append((item.key, reason))
        label = self._label or item.label
        self._tell(Entry(item.key, item.source, outcome, reason, row, version, sha256, label, item.caption))


class _Batch:
    """Rows on their way into one version."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.rows: list[NDArray[Any]] = []
        self.kept: list[Provenance] = []
        self.again: list[tuple[int, int]] = []  # (place, place of the first under the same key)
        self.ends: dict[int, tuple[int, int, str]] = {}  # place: (row, version, sha256)
        self.since = time.monotonic()

    def add(self, item: Item, row: NDArray[Any], kept: Provenance) -> None:
        self.items.append(item)
        self.rows.append(row)
        self.kept.append(kept)

    def stacked(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """The rows (N, *S) as they will be stored; what is beyond the stored type is Inf."""
        rows = np.empty((len(self.rows), *shape), dtype)
        with np.errstate(over="ignore"):
            for place, row in enumerate(self.rows):
                rows[place] = row
        return rows


def _not_finite(row: NDArray[Any], dtype: np.dtype[Any]) -> str:
    if np.isnan(row).any():
        return "a row that holds NaN; leave it out"
    if np.isinf(row).any() and row.dtype != dtype:
        return "a row that holds Inf; leave it out"
    return f"a row that holds Inf, or values beyond {dtype}'s {np.finfo(dtype).max:g}; leave it out"


def _embeddings(items: Sequence[Item]) -> NDArray[np.floating] | None:
    """Those of all rows; None where they have none."""
    wide = [item.embedding for item in items if item.embedding is not None]
    return np.stack(wide) if wide else None

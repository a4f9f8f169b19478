"""From piles of inputs to rows in a collection, losing count of none: each has one outcome, in one ledger."""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from negindex.collection import Collection
from negindex.errors import ContentRefused, Damaged, DuplicateKey, ImageRefused, NotThere, ShapeMismatch, SpaceMismatch
from negindex.geometry import Geometry, item_of
from negindex.incoming import finite_rows
from negindex.sampler.batches import Batches, Slot
from negindex.sampler.beside import NOTHING, Beside
from negindex.sampler.encode import PIXELS, Encoder
from negindex.sampler.sources import DEFAULTS, Array, Block, Bundled, Embedded, Held, Item, Limits, Source, is_within
from negindex.sampler.sweep import BARRED, Look, look
from negindex.sampler.views import views
from negindex.states import Provenance
from negindex.text import all_unicode

IN, THERE, DUPLICATE, REFUSED, FAILED = OUTCOMES = ("in", "there already", "duplicate", "refused", "failed")
ENCODED_BYTES = 16 << 20  # stored bytes of rows that go in as one version,
READY_BYTES = 64 << 20  # or so many where nothing is encoded,
LATENTS_AT_ONCE = 256  # or so many rows, where encoding is slow and an interruption costs minutes,
SECONDS = 60.0  # or what came in so long
Views = list[tuple[str, Slot]]  # (end of its source key, row) of each view of an image
_NOTHING = Provenance()
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
    items: Iterable[Item | Block],
    encoder: Encoder | None = None,
    *,
    label: str | None = None,
    reason: str = "",
    by: str = "",
    limits: Limits = DEFAULTS,
    progress: Callable[[int], None] = lambda done: None,
    tell: Callable[[Entry], None] = lambda entry: None,
    beside: Callable[[Image.Image], Beside] = lambda image: NOTHING,
    through: Callable[[Iterator[Look[Views]]], Iterable[Look[Views]]] = iter,
    only_refusals: bool = False,
    together: int | None = None,
) -> Report:
    """Put inputs in force; one that cannot become a row is named, and stops nothing.

    encoder: makes images into rows; without one every image is refused, and ready rows go in. label: for all rows,
    instead of those that the inputs bring. tell: is told what became of each input, once it is certain;
    only_refusals: of those that are left out alone, which spares a look-up a row.
    beside: what of an image is kept beside its row. through: may refuse images that were looked at; each comes out.
    together: images that are encoded at a time; see ``Batches``.
    Killed at any moment, the same call goes on: an input whose key is in force with the same file's sha256 is not
    decoded again. Held in memory are one version's rows and what ``look`` holds.
    """
    run, reached = _Run(collection, encoder, label, reason, by, tell, only_refusals, together), 0
    for is_ready, some in groupby(items, lambda one: isinstance(one, Block)):
        if is_ready:
            for block in cast(Iterator[Block], some):
                run.take_block(block)
                reached += len(block)
                progress(reached)
        else:
            single, told = cast(Iterator[Item], some), partial(_further, progress, reached)
            for one in through(look(collection, single, run.make, told, limits=limits, spare=run.spare, beside=beside)):
                run.take(one)
                reached += 1
    run.put()
    return run.report


def _further(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def chosen(
    sources: Sequence[Source],
    shape: tuple[int, ...],
    *,
    shard: tuple[int, int] | None = None,
    keys: set[str] | None = None,
) -> Iterator[Item | Block]:
    """The inputs of sources in their order; those of one of N shards by key, and under some keys, where told."""

    def is_wanted(key: str) -> bool:
        return (shard is None or is_within(key, *shard)) and (keys is None or key in keys)

    for source in sources:
        for part in source.blocks(shape) if isinstance(source, Array | Held | Bundled) else source.items(shape):
            if isinstance(part, Block):
                part = part if shard is None and keys is None else part.chosen(is_wanted)
                if len(part):
                    yield part
            elif is_wanted(part.key):
                yield part


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


def check_parts(shape: tuple[int, ...], space: str, parts: Iterable[Source], geometry: Geometry) -> None:
    """Raise SpaceMismatch or ShapeMismatch where rows of other collections cannot go into one as they are."""
    for about in (part.about for part in parts if isinstance(part, Held | Bundled)):
        if about.space != space:
            raise SpaceMismatch(
                f"{about.name} holds rows of space {about.space!r}, and the set's are of {space!r}; build another set"
            )
        if about.geometry != geometry:
            raise SpaceMismatch(
                f"{about.name} holds rows of images by {about.geometry}, and the set's are by {geometry}; build it "
                "anew from its sources"
            )
        if about.shape != shape:
            raise ShapeMismatch(
                f"{about.name} holds rows of shape {about.shape}, and the set's are {shape}; build it anew from its "
                "sources"
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
        only_refusals: bool,
        together: int | None,
    ) -> None:
        self._collection, self._encoder, self._label, self._tell = collection, encoder, label, tell
        self._only_refusals = only_refusals
        self._batches = None if encoder is None else Batches(encoder, together)
        self._words = {"reason": reason, "by": by}
        self._began = collection.newest().version
        self.report = Report(self._began)
        self._batch = _Batch()
        self._room = np.empty((0, *collection.shape), collection.dtype)  # for one version's rows, used again
        self._row_bytes = int(np.prod(collection.shape)) * np.dtype(collection.dtype).itemsize

    def make(self, image: Image.Image, name: str) -> list[tuple[str, Slot]]:
        """(end of its key, the row) of each of an image's views; the rows may still be on their way."""
        if self._encoder is None or self._batches is None:
            return []
        seen = views(image, self._collection.geometry, self._encoder.size, name)
        return [(suffix, self._batches.put(view, name)) for suffix, view in seen]

    def _made(self, one: Look[Views]) -> list[tuple[str, NDArray[Any]]]:
        """The rows of an input, as stored; what is beyond the stored type becomes Inf. An image may be refused yet."""
        if one.item.row is not None:
            return [("", one.item.row)]
        try:
            with np.errstate(over="ignore"):
                return [(suffix, slot.row().astype(self._collection.dtype)) for suffix, slot in one.made or []]
        except ImageRefused as refusal:
            one.refusal = str(refusal)
            return []

    def spare(self, some: Sequence[Look[Views]]) -> None:
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

    def take(self, one: Look[Views]) -> None:
        """Have one input go in with the next version, unless it is done with; all its views in the same."""
        if one.done:
            return
        made = [] if one.refusal else self._made(one)
        odd = [row.shape for _, row in made if row.shape != self._collection.shape]
        if one.refusal or not made:
            self._say(one.item, FAILED if one.failed else REFUSED, one.refusal)
        elif bad := [row for _, row in made[1:] if not np.isfinite(row).all()]:
            self._say(one.item, REFUSED, _not_finite(bad[0], bad[0].dtype))
        elif odd:
            why = f"a row of shape {odd[0]} for a collection of {self._collection.shape} rows; leave it out"
            self._say(one.item, REFUSED, why)
        else:
            item, kept = one.item, one.item.kept
            if one.likeness.content:
                item, kept = one.beside.of(item), one.beside.kept(one.likeness)
            if self._collection.geometry.is_many and one.key in self._batch.items:
                self.put()  # so that its views are not taken for those of the image before
            self._make_room_for(None if item.embedding is None else (len(item.embedding), item.embedded_by))
            self._batch.items.add(one.key)
            for suffix, row in made:
                self._batch.add(item, row, kept, suffix)
            if self._is_full():
                self.put()

    def take_block(self, block: Block) -> None:
        """Have ready rows go in with the next version."""
        if not all_unicode(block.keys):
            for item in block.items():
                self.take(next(look(self._collection, [item], self.make)))
            return
        self._make_room_for(block.embedded)
        self._batch.extend(block)
        if self._is_full():
            self.put()

    def _make_room_for(self, embedded: Embedded) -> None:
        """Put what has come in, where its embeddings are of another kind than those that come: a file has one kind."""
        if len(self._batch) and self._batch.embedded != embedded:
            self.put()

    def _is_full(self) -> bool:
        count, encoder = len(self._batch), self._encoder
        if encoder is not None and encoder.space != PIXELS and count >= LATENTS_AT_ONCE:
            return True
        most = READY_BYTES if encoder is None else ENCODED_BYTES
        return count * self._row_bytes >= most or time.monotonic() - self._batch.since > SECONDS

    def put(self) -> None:
        """Put what has come in in force as one version; what clashes is named, and the rest goes in."""
        batch, self._batch = self._batch, _Batch()
        if not len(batch):
            return
        if len(self._room) < len(batch):
            self._room = np.empty((len(batch), *self._collection.shape), self._collection.dtype)
        rows = self._room[: len(batch)]
        batch.stack(rows)
        left = self._sound(batch, rows)
        while left:
            before = self._collection.newest().version
            try:
                version = self._collection.add(
                    rows if len(left) == len(rows) else rows[left],
                    [batch.keys[i] for i in left],
                    label=[self._label or batch.labels[i] for i in left],
                    sources=[batch.kept[i] or _NOTHING for i in left],
                    embeddings=None if batch.embedded is None else np.stack([batch.embeddings[i] for i in left]),
                    embedded_by="" if batch.embedded is None else batch.embedded[1],
                    **self._words,
                )
            except (DuplicateKey, ContentRefused) as clash:
                if not clash.keys:
                    raise
                gone, why = (
                    set(map(item_of, clash.keys)),
                    BARRED if isinstance(clash, ContentRefused) else self._clash(),
                )
                for i in left:
                    if item_of(batch.keys[i]) in gone and i not in batch.views:
                        self._say(batch.item(i), REFUSED, why)
                left = [i for i in left if item_of(batch.keys[i]) not in gone]
            else:
                self.report.version = version
                self._account(batch, left, before)
                left = []
        self._repeated(batch, rows)

    def _sound(self, batch: _Batch, rows: NDArray[Any]) -> list[int]:
        """Places of the rows that can be stored, the first under each key."""
        finite = finite_rows(rows)
        corner = rows.reshape(len(rows), -1)[:, 0] == 0  # few rows need to be looked through for another number
        odd = dict.fromkeys(np.flatnonzero(~finite | corner).tolist(), "")
        first: dict[str, int] = {}
        for place, key in enumerate(batch.keys):
            if place in odd and (why := self._fault(batch, rows, place, bool(finite[place]))):
                self._say(batch.item(place), REFUSED, why)
            elif first.setdefault(key, place) != place:
                batch.again.append((place, first[key]))
        return list(first.values())

    def _fault(self, batch: _Batch, rows: NDArray[Any], place: int, is_finite: bool) -> str:
        """Why a row cannot be stored; "" where it can."""
        if not is_finite:
            return _not_finite(batch.row(place), rows.dtype)
        is_empty = batch.kept[place] is None and not rows[place].any()
        return "a row of nothing but zeros; leave it out" if is_empty else ""

    def _account(self, batch: _Batch, places: Sequence[int], before: int) -> None:
        """Tell what became of rows that ``add`` took."""
        newest = self._collection.newest()
        if self._only_refusals and not batch.again and newest.version == before + 1 and newest.changed == len(places):
            self.report.counts[IN] += len(places) - len(batch.views)
            return
        held = self._collection.held([batch.keys[i] for i in places])
        for place in places:
            if place in batch.views:
                continue
            item, found = batch.item(place), held.get(batch.keys[place])
            if found is None:  # withdrawn since, by somebody else
                self._say(item, IN)
                continue
            how = IN if found.added > before else DUPLICATE if found.added > self._began else THERE
            digest = (batch.kept[place] or _NOTHING).image_sha256 or found.sha256
            self._say(item, how, "", found.row, found.added, digest)
            batch.ends[place] = found.row, found.added, digest

    def _repeated(self, batch: _Batch, rows: NDArray[Any]) -> None:
        """Tell of inputs whose key came twice in one version."""
        for place, first in batch.again:
            same = rows[place].tobytes() == rows[first].tobytes()
            if same and first in batch.ends:
                self._say(batch.item(place), DUPLICATE, "", *batch.ends[first])
            else:
                why = "as the first under its key" if same else "its key came before, with other bytes; rename one"
                self._say(batch.item(place), REFUSED, why)

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
        if self._only_refusals and outcome not in (REFUSED, FAILED):
            return
        label = self._label or item.label
        self._tell(Entry(item.key, item.source, outcome, reason, row, version, sha256, label, item.caption))


class _Batch:
    """Rows on their way into one version, column by column."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.sources: list[str] = []
        self.labels: list[str | None] = []
        self.captions: dict[int, str] = {}  # by place
        self.views: set[int] = set()  # places of further views of an image, of which nothing is told
        self.items: set[str] = set()  # keys of images
        self.kept: list[Provenance | None] = []  # None of a row that came without an image
        self.embedded: Embedded = None
        self.embeddings: list[NDArray[np.floating]] = []  # one a row, or none at all
        self.parts: list[NDArray[Any]] = []  # (n, *S) each
        self.starts: list[int] = []  # the place of each part's first row
        self.again: list[tuple[int, int]] = []  # (place, place of the first under the same key)
        self.ends: dict[int, tuple[int, int, str]] = {}  # place: (row, version, sha256)
        self.since = time.monotonic()

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, item: Item, row: NDArray[Any], kept: Provenance | None, suffix: str = "") -> None:
        """suffix: what the row's key ends in, of a further view of the item's image."""
        if suffix:
            self.views.add(len(self))
        if item.caption:
            self.captions[len(self)] = item.caption
        embeddings = None if item.embedding is None else item.embedding[None]
        source, by = [item.source], item.embedded_by
        self.extend(Block([item.key + suffix], source, row[None], [kept], [item.label], embeddings, by))

    def extend(self, block: Block) -> None:
        nothing = [None] * len(block)
        self.starts.append(len(self))
        self.parts.append(block.rows)
        self.keys += block.keys
        self.sources += block.sources
        self.labels += block.labels or nothing
        self.kept += block.kept or nothing
        self.embedded = block.embedded
        self.embeddings += [] if block.embeddings is None else list(block.embeddings)

    def item(self, place: int) -> Item:
        """One of them, for people."""
        caption = self.captions.get(place, "")
        return Item(self.keys[place], self.sources[place], label=self.labels[place], caption=caption)

    def row(self, place: int) -> NDArray[Any]:
        """One of them as it came."""
        part = bisect_right(self.starts, place) - 1
        row: NDArray[Any] = self.parts[part][place - self.starts[part]]
        return row

    def stack(self, rows: NDArray[Any]) -> None:
        """Fill in the rows (N, *S) as they will be stored; what is beyond the stored type is Inf."""
        with np.errstate(over="ignore"):
            for start, part in zip(self.starts, self.parts, strict=True):
                rows[start : start + len(part)] = part


def _not_finite(row: NDArray[Any], dtype: np.dtype[Any]) -> str:
    if np.isnan(row).any():
        return "a row that holds NaN; leave it out"
    if np.isinf(row).any() and row.dtype != dtype:
        return "a row that holds Inf; leave it out"
    return f"a row that holds Inf, or values beyond {dtype}'s {np.finfo(dtype).max:g}; leave it out"

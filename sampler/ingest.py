"""From piles of inputs to rows in a collection, losing count of none: each has one outcome, in one ledger."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
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
from negindex.sampler.batches import Batches, Slot
from negindex.sampler.beside import NOTHING, Beside
from negindex.sampler.encode import PIXELS, Encoder
from negindex.sampler.gathered import AHEAD, Gathered, Ready, Readying, not_finite
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
    decoded again. Held in memory are the rows of up to four versions, and what ``look`` holds.
    """
    run, reached = _Run(collection, encoder, label, reason, by, tell, only_refusals, together), 0
    with closing(run):
        for is_ready, some in groupby(items, lambda one: isinstance(one, Block)):
            if is_ready:
                for block in cast(Iterator[Block], some):
                    run.take_block(block)
                    reached += len(block)
                    progress(reached)
                continue
            run.wait()  # the set is asked below what it holds already
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
        self._batch = Gathered()
        self._readying = Readying(collection, label)
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

    def close(self) -> None:
        """Give up what was not put in force."""
        self._readying.close()

    def take(self, one: Look[Views]) -> None:
        """Have one input go in with the next version, unless it is done with; all its views in the same."""
        if one.done:
            return
        made = [] if one.refusal else self._made(one)
        odd = [row.shape for _, row in made if row.shape != self._collection.shape]
        if one.refusal or not made:
            self._say(one.item, FAILED if one.failed else REFUSED, one.refusal)
        elif bad := [row for _, row in made[1:] if not np.isfinite(row).all()]:
            self._say(one.item, REFUSED, not_finite(bad[0], bad[0].dtype))
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
            self._put_behind()
            self.wait(most=AHEAD)

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
        """Put all that has come in in force; what clashes is named, and the rest goes in."""
        self._put_behind()
        self.wait()

    def wait(self, most: int = 0) -> None:
        """Put in force what is full, until at most so many versions are still under way."""
        while len(self._readying) > most:
            with closing(self._readying.take()) as ready:
                self._store(ready)

    def _put_behind(self) -> None:
        """Have what has come in made ready for a version of its own, while the one before it is written."""
        batch, self._batch = self._batch, Gathered()
        if len(batch):
            self._readying.put(batch)

    def _store(self, ready: Ready) -> None:
        batch, places, given = ready.batch, ready.places, ready.given
        for place, why in ready.refused:
            self._say(batch.item(place), REFUSED, why)
        while places:
            before = self._collection.newest().version
            try:
                version = self._collection.add_incoming(given, **self._words)
            except (DuplicateKey, ContentRefused) as clash:
                if not clash.keys:
                    raise
                why = BARRED if isinstance(clash, ContentRefused) else self._clash()
                gone = set(map(item_of, clash.keys))
                for i in places:
                    if item_of(batch.keys[i]) in gone and i not in batch.views:
                        self._say(batch.item(i), REFUSED, why)
                left = [number for number, i in enumerate(places) if item_of(batch.keys[i]) not in gone]
                places, given = [places[number] for number in left], given.chosen(left)
            else:
                self.report.version = version
                self._readying.begins = version > before and self._collection.newest().changed >= len(places)
                self._account(batch, places, before)
                break
        self._repeated(batch)

    def _account(self, batch: Gathered, places: Sequence[int], before: int) -> None:
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

    def _repeated(self, batch: Gathered) -> None:
        """Tell of inputs whose key came twice in one version."""
        for place, first, same in batch.again:
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

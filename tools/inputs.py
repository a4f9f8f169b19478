"""What commands that take in corpora share: their options, the ledger, and what they print."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from negindex.tools.beside import More
from negindex.tools.common import PARTLY

if TYPE_CHECKING:
    from negindex import Collection
    from negindex.geometry import Geometry
    from negindex.sampler.encode import Encoder
    from negindex.sampler.ingest import Entry, Report
    from negindex.sampler.sources import Limits, Source

LEDGER = click.option(
    "--ledger",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write one JSON line an input to this file: its key, and what became of it. It holds keys and captions, and "
    "no erasure reaches it: keep it as you keep the corpus.",
)
SUMMARY = click.option("--json", "as_json", is_flag=True, help="The summary for machines.")
_RETRY = click.option(
    "--retry-failed",
    metavar="LEDGER",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Only the inputs that this ledger of an earlier run names as refused or failed.",
)
_OPTIONS = (
    click.option("--list", "lists", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
                 help="A text file that names images and arrays, one a line; the same as @FILE among the sources."),
    click.option("--keys", metavar="FILE", type=click.Path(path_type=Path),
                 help="The source keys of an array's rows, one a line, or a table; default: FILE/0, FILE/1 and so on."),
    click.option("--key-column", metavar="NAME",
                 help="Of a --keys table (.csv, .tsv, .jsonl, .parquet): its keys; default: key, image_path or url."),
    click.option("--label-from", metavar="NAME",
                 help="Where each row's label stands: a column of the --keys table; of a shard cls, txt, or a field of "
                 ".json."),
    click.option("--max-pixels", metavar="N", type=click.IntRange(1, 170_000_000), default=100_000_000,
                 show_default=True, help="Of an image, by its header."),
    click.option("--max-bytes", metavar="N", type=click.IntRange(1), default=256 << 20, show_default=True,
                 help="Of an image's file."),
    click.option("--max-entries", metavar="N", type=click.IntRange(1), default=1_000_000, show_default=True,
                 help="Of one archive."),
    click.option("--device", default="auto", show_default=True,
                 help="Where a VAE computes: cpu, cuda, cuda:1; auto is a GPU where there is one."),
    click.option("--precision", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32",
                 show_default=True, help="What a VAE computes in; other precisions make other rows."),
    click.option("--batch", metavar="N", type=click.IntRange(1),
                 help="Images that a VAE takes at a time; default: as many as are faster and make the same rows."),
    click.option("--max-memory", metavar="SIZE",
                 help="Refuse before it starts a build that is estimated to take more, such as 4G."),
    click.option("--shard", metavar="I/N", help="Only the I-th of N shares of the inputs, by their keys; I from 1."),
    LEDGER,
    _RETRY,
    SUMMARY,
)  # fmt: skip


@dataclass
class Asked:
    """The options as they were given."""

    lists: tuple[Path, ...]
    keys: Path | None
    max_pixels: int
    max_bytes: int
    max_entries: int
    shard: str | None
    ledger: Path | None
    retry_failed: Path | None
    as_json: bool
    key_column: str | None = None
    label_from: str | None = None
    device: str = "auto"
    precision: str = "float32"
    batch: int | None = None
    max_memory: str | None = None

    def computed(self) -> dict[str, Any]:
        """Where and how a VAE computes, for ``encoder_of``. Raises OutOfRange for a device that is not there."""
        import torch

        from negindex.sampler.room import device_found

        return {"device": device_found(self.device), "precision": getattr(torch, self.precision)}

    def check_room(
        self,
        path: Path,
        sources: list[Source],
        shape: tuple[int, ...],
        dtype: str,
        encoder: Encoder | None,
        geometry: Geometry,
        there: Collection | None = None,
    ) -> None:
        """Refuse what the disk or --max-memory has no room for. Raises NotAllowed, OutOfRange.

        there: a set whose rows need no room again, where the first input is in force in it: the build goes on.
        """
        from negindex.sampler.foreseen import rows_foreseen
        from negindex.sampler.ingest import chosen
        from negindex.sampler.room import check_disk, check_memory, disk_needed, parsed
        from negindex.sampler.sources import shard_of, singly

        most = None if self.max_memory is None else parsed(self.max_memory)
        check_memory(encoder, self.max_pixels, most)
        if self.retry_failed is not None:
            return
        shard = None if self.shard is None else shard_of(self.shard)
        first = None if there is None else next(singly(chosen(sources, shape, shard=shard)), None)
        goes_on = there is not None and first is not None and bool(there.held([first.key]))
        known = len(there) if there is not None and goes_on else 0
        rows = rows_foreseen(sources, geometry, (0, 0) if encoder is None else encoder.size)
        check_disk(path, disk_needed(rows, shape, dtype, shards=1 if shard is None else shard[1], known=known))

    @property
    def limits(self) -> Limits:
        """What one input may be."""
        from negindex.sampler.sources import Limits

        return Limits(self.max_pixels, self.max_bytes, self.max_entries)

    def sources(self, paths: tuple[str, ...], more: More, label: str | None) -> list[Source]:
        """What was named; a usage error where nothing was, and where labels are named twice."""
        from negindex.sampler.sources import sources_of

        if label is not None and self.label_from is not None:
            raise click.UsageError("--label is one for all rows, and --label-from each row's own; give one of them")
        if not paths and not self.lists:
            raise click.UsageError("name at least one source, or a --list of files")
        return sources_of(
            paths,
            lists=self.lists,
            keys=self.keys,
            key_column=self.key_column,
            label_from=self.label_from,
            limits=self.limits,
            fetch=more.fetcher(self.max_bytes),
        )

    def only(self) -> tuple[tuple[int, int] | None, set[str] | None]:
        """The shard and the keys that the run is held to."""
        from negindex.sampler.ingest import left_out_in
        from negindex.sampler.sources import shard_of

        if self.ledger and self.retry_failed and self.ledger.resolve() == self.retry_failed.resolve():
            raise click.UsageError("--ledger would replace the ledger that is retried; name another file")
        keys = None if self.retry_failed is None else left_out_in(self.retry_failed)
        return None if self.shard is None else shard_of(self.shard), keys


def takes_inputs(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of one that takes in a corpus, as ``asked``."""

    @wraps(command)
    def run(**given: Any) -> Any:
        names = Asked.__dataclass_fields__
        asked = Asked(**{name: given.pop(name) for name in names})
        return command(asked=asked, **given)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def take_in(
    collection: Collection,
    sources: list[Source],
    encoder: Encoder | None,
    asked: Asked,
    *,
    label: str | None,
    reason: str,
    by: str,
    more: More | None = None,
) -> None:
    """Put sources in force, and say what became of each input; leaves with exit code 3 where one was left out."""
    from negindex.sampler.ingest import chosen, ingest

    shard, keys = asked.only()
    more = more or More()
    more.check(collection, sources)
    items = chosen(sources, collection.shape, shard=shard, keys=keys)
    counts = [source.count() for source in sources]
    whole = shard is None and keys is None and None not in counts
    with _ledger(asked.ledger) as tell, Progress(sum(filter(None, counts)) if whole else None) as progress:
        report = ingest(
            collection, items, encoder, label=label, reason=reason, by=by, limits=asked.limits,
            progress=progress.reached, only_refusals=asked.ledger is None and more.sheet is None,
            together=asked.batch, **more.options(collection, tell),
        )  # fmt: skip
    more.finish(collection)
    _say(collection, report, asked.as_json, progress.seconds)
    if report.left_out:
        sys.exit(PARTLY)


def _say(collection: Collection, report: Report, as_json: bool, seconds: float) -> None:
    from negindex.sampler.ingest import DUPLICATE, OUTCOMES, REFUSED

    if as_json:
        counts = {outcome.replace(" ", "_"): report.counts[outcome] for outcome in OUTCOMES}
        said = {"set": str(collection.path), "version": report.version, "rows_in_force": len(collection)}
        click.echo(json.dumps(said | counts | {"inputs": report.counts.total(), "seconds": round(seconds, 3)}))
        return
    more = [f"{report.counts[DUPLICATE]} given twice"] if report.counts[DUPLICATE] else []
    failed = report.left_out - report.counts[REFUSED]
    more += [f"{failed} could not be read"] if failed else []
    click.echo(
        f"{collection.path}: version {report.version}, {len(collection)} rows in force "
        f"({report.added} added, {report.unchanged - report.counts[DUPLICATE]} already there, "
        f"{', '.join([f'{report.counts[REFUSED]} refused', *more])})"
    )


@contextmanager
def _ledger(path: Path | None) -> Iterator[Callable[[Entry], None]]:
    """What tells refusals on stderr, and writes every entry to a ledger where one is named.

    Raises NotThere where the file cannot be made.
    """
    from negindex.errors import NotThere

    if path is None:
        yield _tell
        return
    if not path.parent.is_dir():
        raise NotThere(f"{path.parent} is no folder; name a ledger in one that is there")
    with open(path, "w", encoding="ascii") as file:
        yield lambda entry: _write(file, entry)
        file.flush()
        os.fsync(file.fileno())


def _write(file: TextIO, entry: Entry) -> None:
    _tell(entry)
    file.write(entry.to_json() + "\n")


def _tell(entry: Entry) -> None:
    from negindex.tools.showing import one_line

    if entry.outcome in ("refused", "failed"):
        click.echo(f"{entry.outcome}: {one_line(entry.key)}: {one_line(entry.reason)}", err=True)


_BETWEEN = 30.0  # seconds between lines where nobody watches a terminal


class Progress:
    """A line on stderr: how many, how fast, how long still; once a second on a terminal, else every half minute."""

    def __init__(self, whole: int | None) -> None:
        self._whole, self._began, self._said = whole, time.monotonic(), 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._said and sys.stderr.isatty():
            click.echo(err=True)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def reached(self, done: int) -> None:
        """So many inputs have been looked at."""
        now, watched = time.monotonic(), sys.stderr.isatty()
        if now - max(self._said, self._began) < (1 if watched else _BETWEEN):
            return
        self._said = now
        rate = done / (now - self._began)
        of = "" if self._whole is None else f" of {self._whole:,}, {_left(max(0, self._whole - done) / rate)} left"
        line = f"{done:,}{of}, {rate:,.1f} a second"
        click.echo(f"\r{line}\x1b[K" if watched else line, err=True, nl=not watched)


def _left(seconds: float) -> str:
    """A time as hours, minutes and seconds.

    >>> _left(59.6), _left(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

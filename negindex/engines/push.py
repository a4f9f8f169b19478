"""An engine made, or made again, to hold what the index of a set holds. The index file is what is copied.

Write order: 1 the set notes the engine; 2 rows are written, and counted there; 3 tables of older indices are dropped,
but for those that readers hold. What a crash leaves after 1 or 2 is a table with rows missing: to ask it raises
EngineBehind, and the next push completes it; after 3, nothing.
An index that is made anew is written before the record names it (``EnginesAhead``): look-ups always find one whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor

from negindex.collection import Collection
from negindex.derived import DERIVED
from negindex.engines.address import Address
from negindex.engines.link import IN_FORCE, LABEL_BYTES, MOST_DIMENSIONS, EngineRow, Link, as_sent, same
from negindex.engines.table import pages_of
from negindex.errors import EngineBehind, NegindexError, NotAllowed, OutOfRange, Unreachable
from negindex.index import Index

Say = Callable[[str], None]


class Compared(NamedTuple):
    """Rows of an engine beside those of the index."""

    rows: int  # that the index holds
    missing: int  # from the engine
    different: int  # in any field: numbers, cluster, label, versions
    alien: int  # in the engine, and not in the index

    @property
    def wrong(self) -> int:
        """All that is not as it should be."""
        return self.missing + self.different + self.alien


class Standing(NamedTuple):
    """What an engine holds, counted."""

    address: str
    table: str  # "" where the set has no index to be held
    rows: int  # that the index holds
    held: int  # of them, by number; 0 where nothing was pushed
    older: tuple[str, ...]  # tables of indices before it
    trouble: str  # why it could not be asked; ""

    @property
    def is_whole(self) -> bool:
        """Whether it can answer for the newest version."""
        return not self.trouble and self.table != "" and self.held == self.rows


class EnginesAhead:
    """Has engines hold an index before it is on record, so that look-ups go on by the one before until they do.

    While it is entered, nobody else changes these engines: a table of what is not on record is dropped by whoever may.
    Entering it raises Unreachable, EngineBehind, OutOfRange and Locked. In the end tables of what is on record no more
    are dropped; one that a reader holds, or that is left over by a failure, goes with the next push.
    """

    def __init__(self, collection: Collection, addresses: Sequence[Address], say: Say = lambda said: None) -> None:
        """addresses: of engines of the set, such as all that are known to it."""
        self._collection, self._addresses, self._say = collection, addresses, say
        self.sent: Compared | None = None  # what the last of them lacked, which is all

    @contextmanager
    def __call__(self, index: Index) -> Iterator[None]:
        collection, links = self._collection, []
        with ExitStack() as held:
            for address in self._addresses:
                _check_width(index)
                held.enter_context(collection.engines.held(address))
                links.append(link := held.enter_context(closing(Link(address))))
                self.sent = _fill(collection, index, link, self._say)
            yield
            for link in links:
                with suppress(Unreachable):
                    _drop_stale(collection, link)

    def check(self) -> None:
        """Raise Unreachable where one does not answer: before what takes long, and would be in vain."""
        for address in self._addresses:
            try:
                with closing(Link(address)) as link:
                    link.tables(self._collection.engines.prefix(address))
            except Unreachable as error:
                said = f"{error}; or `negindex engine drop SET {address.text} --gone`, if it is no more"
                raise Unreachable(said) from error


def push(collection: Collection, address: Address, say: Say = lambda said: None) -> Compared:
    """Have the engine hold the rows of the set's index, in whatever state it was; returns what it lacked.

    Cost: the first time, all rows are sent; later, all are read and those that differ are sent. Withdrawals since the
    index was made are noted there. The index is made anew first where it lacks many rows (as ``compact`` does).
    Raises NotAllowed for a set without an index, OutOfRange for a kernel of more dimensions than an engine takes,
    Unreachable, and EngineBehind if the rows are not there afterwards.
    """
    collection.compact(index=False)
    found = _made_anew(collection, address, say)
    index = _index(collection)
    collection.engines.note(address)
    with collection.engines.held(address), closing(Link(address)) as link:
        found = found or _fill(collection, index, link, say)
        _drop_stale(collection, link)
    if any(one.what == "engine" for one in collection.outstanding()):
        collection.settle()
    return found


def keep_up(collection: Collection, address: Address, say: Say = lambda said: None) -> Compared | None:
    """Make the index anew where it lacks many rows, and push where the engine, counted, could not answer by it.

    Tables of indices before it are dropped once no reader has their files. Returns what the engine lacked, None where
    nothing was sent. Raises what ``push`` raises; the index that was on record then still is.
    """
    found = _made_anew(collection, address, say)
    index = collection.index()
    if index is None:
        return None
    standing = _standing(collection, index, address)
    if not standing.is_whole:
        return push(collection, address, say)
    if standing.older:
        with collection.engines.held(address), closing(Link(address)) as link:
            _drop_stale(collection, link)
    return found


def _drop_stale(collection: Collection, link: Link) -> None:
    """Drop tables of indices that are not on record, but for those that readers hold."""
    on_record = {file.file for file in collection.derived() if file.kind == "index"}
    collection.engines.drop_stale(link, on_record, collection.path / DERIVED)


def _made_anew(collection: Collection, address: Address, say: Say) -> Compared | None:
    """What was sent of an index that had to be made anew; None where none had to be, or the engine is none yet."""
    ahead = EnginesAhead(collection, [one for one in collection.engines.known() if one == address], say)
    return ahead.sent if collection.reindex(ahead) else None


def check(collection: Collection, address: Address, *, repair: bool = False, say: Say = lambda said: None) -> Compared:
    """Compare every row, in every field, with the index file; with ``repair``, put right what differs.

    Raises what ``push`` raises, NotThere where the set has not pushed there.
    """
    if repair:
        with collection.engines.held(address):
            pass
        return push(collection, address, say)
    index = _index(collection)
    with collection.engines.held(address), closing(Link(address)) as link:
        table = collection.engines.table(address, index.file)
        if not link.has(table):
            return Compared(len(index.clusters.ids), len(index.clusters.ids), 0, 0)
        return _compared(_differences(collection, index, link, table, say), index)


def status(collection: Collection) -> list[Standing]:
    """What each engine of the set holds, by number."""
    index = collection.index()
    return [_standing(collection, index, address) for address in collection.engines.known()]


def drop(collection: Collection, address: Address, *, gone: bool = False) -> int:
    """Take all that the set has in an engine out of it, and forget it; returns how many tables went.

    gone: it is no more, or is out of reach for good: it is only forgotten, and erasures owe it nothing.
    """
    with collection.engines.held(address):
        tables = []
        if not gone:
            with closing(Link(address)) as link:
                tables = link.tables(collection.engines.prefix(address))
                for table in tables:
                    link.drop(table)
        collection.engines.forget(address)
    if any((one.what, one.name) == ("engine", address.text) for one in collection.outstanding()):
        collection.settle()
    return len(tables)


def _index(collection: Collection) -> Index:
    """The one on record."""
    index = collection.index()
    if index is None:
        raise NotAllowed(
            f"{collection.path} has no index that an engine could hold: a small set is scanned, and any other needs "
            "`negindex calibrate` first"
        )
    _check_width(index)
    return index


def _check_width(index: Index) -> None:
    if index.clusters.space.width > MOST_DIMENSIONS:
        raise OutOfRange(
            f"the kernel sees rows in {index.clusters.space.width} dimensions, and an engine takes {MOST_DIMENSIONS}; "
            "calibrate with fewer"
        )


def _fill(collection: Collection, index: Index, link: Link, say: Say) -> Compared:
    table, width, numbers = collection.engines.table(link.address, index.file), *_widths(index)
    whole = len(index.clusters.ids)
    if not link.has(table):
        link.create(table, width, numbers)
        done = 0
        for _, part in _pages(index):
            link.put(table, expected(collection, index, part), width, new=True)
            say(f"{link.address.text}: {(done := done + len(part))} of {whole} rows")
        found = Compared(whole, whole, 0, 0)
    else:
        found = Compared(whole, 0, 0, 0)
        for wrong in _differences(collection, index, link, table, say):
            link.put(table, wrong.rows, width)
            link.delete(table, wrong.alien)
            found = _added(found, wrong)
    link.settle(table)
    there = link.count(table, strong=True)
    if there != whole:
        raise EngineBehind(
            f"{link.address.text} counts {there} rows in {table} after {whole} were pushed; "
            "`negindex engine check SET --repair` compares them one by one"
        )
    return found


class _Wrong(NamedTuple):
    """What is wrong in one page."""

    missing: int
    rows: list[EngineRow]  # as they should be: missing and different ones
    alien: list[int]


def _differences(collection: Collection, index: Index, link: Link, table: str, say: Say) -> Iterator[_Wrong]:
    width, done = index.clusters.space.width, 0
    for where, part in _pages(index):
        there, missing, wrong = link.sent(table, where), 0, []
        for row in expected(collection, index, part):
            one = there.pop(row.id, None)
            missing += one is None
            if one is None or not same(one, as_sent(row, width)):
                wrong.append(row)
        yield _Wrong(missing, wrong, _alien(list(there), index))
        done += len(part)
        say(f"{link.address.text}: {done} of {len(index.clusters.ids)} rows compared")


def _alien(ids: list[int], index: Index) -> list[int]:
    """Those of the ids that no row of the index has; one that lies in a cluster not its own is put right in its own."""
    numbers = index.numbers_of(torch.tensor(ids, dtype=torch.int64).numpy())
    return [row_id for row_id, number in zip(ids, numbers.tolist(), strict=True) if number < 0]


def _pages(index: Index) -> Iterator[tuple[str, Tensor]]:
    """Every row of the index once, and then what no cluster of it has."""
    count = len(index.clusters.counts)
    yield from pages_of(index.clusters, range(count))
    yield f"cluster < 0 or cluster >= {count}", torch.empty(0, dtype=torch.int64)


def expected(collection: Collection, index: Index, numbers: Tensor) -> list[EngineRow]:
    """Rows (n,) of the index as an engine is to hold them."""
    clusters = index.clusters
    ids = clusters.ids[numbers].tolist()
    marks = collection.marks(ids)
    owner = torch.bucketize(numbers, clusters.offsets[1:], right=True).tolist()
    seen = torch.cat([clusters.reduced[numbers], clusters.sketch[numbers]], 1).numpy()
    rows = []
    for row_id, cluster, numbers_of in zip(ids, owner, seen, strict=True):
        added, withdrawn, label = marks.get(row_id, (None, None, None))
        short = (label or "").encode()[:LABEL_BYTES].decode(errors="ignore")
        rows.append(
            EngineRow(row_id, cluster, added or 0, IN_FORCE if withdrawn is None else withdrawn, short, numbers_of)
        )
    return rows


def _widths(index: Index) -> tuple[int, int]:
    """Dimensions that Milvus searches, and numbers that are kept of a row."""
    space = index.clusters.space
    return space.width, space.width + space.marks


def _compared(parts: Iterator[_Wrong], index: Index) -> Compared:
    found = Compared(len(index.clusters.ids), 0, 0, 0)
    for wrong in parts:
        found = _added(found, wrong)
    return found


def _added(found: Compared, wrong: _Wrong) -> Compared:
    different = len(wrong.rows) - wrong.missing
    return Compared(
        found.rows, found.missing + wrong.missing, found.different + different, found.alien + len(wrong.alien)
    )


def _standing(collection: Collection, index: Index | None, address: Address) -> Standing:
    table = "" if index is None else collection.engines.table(address, index.file)
    rows = 0 if index is None else len(index.clusters.ids)
    try:
        with closing(Link(address)) as link:
            there = link.tables(collection.engines.prefix(address))
            held = link.count(table, strong=True) if table in there else 0
    except NegindexError as error:
        return Standing(address.text, table, rows, 0, (), str(error))
    return Standing(address.text, table, rows, held, tuple(one for one in there if one != table), "")

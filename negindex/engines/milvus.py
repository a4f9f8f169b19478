"""A collection whose index lies in Milvus: a ``Negatives`` that answers as the collection does, from other memory.

Guaranteed: an answer is that of the version it names, to the rounding of float32 beside the same index on this machine;
a row that is not in force at that version answers nothing, whatever the engine says of it; rows of the version that the
engine does not give, for whatever reason, raise EngineBehind, and an engine that does not answer raises Unreachable.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from negindex.catalogue import Catalogue
from negindex.collection import Collection
from negindex.derived import Derived
from negindex.engines.address import Address
from negindex.engines.link import Link
from negindex.engines.on_engine import OnEngine
from negindex.engines.table import CACHE_ROWS, Table
from negindex.errors import EngineBehind
from negindex.kernel import Kernel
from negindex.labelled import Labelled
from negindex.negatives import Following
from negindex.snapshot import Parts, Snapshot, Split


class EngineSnapshot(Snapshot):
    """The rows in force at one version, asked through an engine where an index answers; immutable.

    Small sets, rows that came since the index was made, and kernels other than the calibrated one are answered by this
    machine alone, as in a ``Snapshot``.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        version: int,
        parts: Parts,
        derived: Derived | None,
        tables: Callable[[str], Table],
        *,
        before: Split | None = None,
        whole: bool = True,
    ) -> None:
        """tables: the table that holds the rows of an index file, by the file's name."""
        super().__init__(catalogue, version, parts, derived, before=before, whole=whole)
        self._tables = tables

    @property
    def elsewhere(self) -> bool:
        return True

    @classmethod
    def of(cls, snapshot: Snapshot, tables: Callable[[str], Table], before: Split | None = None) -> EngineSnapshot:
        """The same rows."""
        return cls(snapshot._catalogue, snapshot.version, snapshot.parts, snapshot._derived, tables, before=before)

    def check_engine(self) -> None:
        """Raise unless the engine holds what this version needs of it: Unreachable, EngineBehind."""
        split = self._standing()
        if split is not None and isinstance(split.mixture, OnEngine):
            split.mixture.check_whole()

    def _again(self, parts: Parts) -> Snapshot:
        return EngineSnapshot(
            self._catalogue, self.version, parts, self._derived, self._tables, before=self.so_far, whole=False
        )

    def _made(self, kernel: Kernel, before: Split | None) -> Split | None:
        split = super()._made(kernel, before)
        if split is None:
            return None
        if not split.index.file:
            raise EngineBehind(
                f"0 of {len(split.index.clusters.ids)} rows are in an engine: the index of version {self.version} is "
                "not on record; `negindex compact SET` makes it, and `negindex engine push SET ADDRESS` sends it"
            )
        table = self._tables(split.index.file)
        return replace(split, mixture=OnEngine(split.mixture, table, self.version, split.index.numbers_of))


class MilvusNegatives(Following):
    """``collection`` asked through Milvus at ``address``; it follows, and each pin is one version.

    timeout: seconds that one question to the engine may take. cache_rows: rows that are remembered of what was fetched,
    4 (d + 64) bytes each; 0 asks the engine every time.
    """

    def __init__(
        self, collection: Collection, address: Address | str, *, timeout: float = 10.0, cache_rows: int = CACHE_ROWS
    ) -> None:
        self.collection = collection
        self.engine = Address.of(address) if isinstance(address, str) else address
        self.shape, self.space = collection.shape, collection.space
        self._link, self._cache_rows = Link(self.engine, timeout), cache_rows
        self._known: dict[str, Table] = {}
        self._lock = threading.Lock()
        self._pinned: tuple[Snapshot, EngineSnapshot] | None = None

    @classmethod
    def open(
        cls, path: Path | str, address: Address | str, *, timeout: float = 10.0, cache_rows: int = CACHE_ROWS
    ) -> MilvusNegatives:
        """The set at a path; raises what ``Collection.open`` raises, and InvalidInput for what is no address."""
        return cls(Collection.open(path), address, timeout=timeout, cache_rows=cache_rows)

    @property
    def elsewhere(self) -> bool:
        return True

    @property
    def address(self) -> str:
        return f"{super().address} in {self.engine.text}"

    def pin(self) -> EngineSnapshot:
        """The newest version; the same object while nothing changes."""
        newest = self.collection.pin()
        with self._lock:
            if self._pinned is None or self._pinned[0] is not newest:
                before = None if self._pinned is None else self._pinned[1].so_far
                self._pinned = newest, EngineSnapshot.of(newest, self._table, before)
            return self._pinned[1]

    def snapshot(self, version: int | None = None) -> EngineSnapshot:
        """One version, for as long as it is held; see ``Collection.snapshot``."""
        return EngineSnapshot.of(self.collection.snapshot(version), self._table)

    def where(self, *, label: str) -> Labelled:
        """The rows under a label, followed as the collection is: a set of negatives of its own."""
        return Labelled(self, label)

    def let_go(self) -> None:
        """Keep no snapshot for the next pin, so that an erasure need not wait for it."""
        with self._lock:
            self._pinned = None
        self.collection.let_go()

    def close(self) -> None:
        """Close the connection and the record."""
        self._link.close()
        self._pinned = None
        self.collection.close()

    def _table(self, index_file: str) -> Table:
        """The table of an index file; those of files before the last one are forgotten."""
        with self._lock:
            if index_file not in self._known:
                name = self.collection.engines.table(self.engine, index_file)
                last = list(self._known.items())[-1:]
                self._known = {**dict(last), index_file: Table(self._link, name, self._cache_rows)}
            return self._known[index_file]

"""The sets under one directory as one worker holds them: opened when first asked for, pinned versions kept a while."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from negindex.collection import Collection
from negindex.engines.milvus import EngineSnapshot, MilvusNegatives
from negindex.errors import InvalidInput, NegindexError, NotThere, UnknownKey
from negindex.kernel import LITERAL, Kernel
from negindex.labelled import Labelled
from negindex.negatives import Negatives
from negindex.service.bodies import name_of
from negindex.snapshot import Snapshot
from negindex.store import CATALOGUE

K = TypeVar("K")
V = TypeVar("V")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
KEPT = 16  # kernels and views, each, that one set remembers


class SayAll(InvalidInput):
    """A kernel or a view was named that this worker does not know; the question has to hold it whole."""


class Which(NamedTuple):
    """Which rows of a set are asked; version None is the newest."""

    version: int | None
    label: str | None = None
    without: str = ""  # names the digests that are left out, see ``name_of``


class View(NamedTuple):
    """Rows as they are asked, and where they come from."""

    rows: Negatives
    snapshot: Snapshot  # that they are of
    set_id: str  # with the label
    version: int


class Engine(NamedTuple):
    """Where a set's index lies, and how long one question to it may take."""

    address: str
    seconds: float

    def over(self, collection: Collection) -> MilvusNegatives:
        """The set, asked through it."""
        return MilvusNegatives(collection, self.address, timeout=self.seconds)


class Held:
    """One set. Usable from several threads.

    A version that was asked for is kept mapped, the ``pins`` that were asked last; one whose rows were erased since
    is not answered from the erasure on, and files that were replaced are let go by ``let_go``.
    """

    def __init__(self, path: Path, pins: int, engine: Engine | None = None) -> None:
        self.name, self.path, self._most = path.name, path, max(1, pins)
        self.identity = _identity(path)
        self.collection = Collection.open(path)
        self.asked = self.collection if engine is None else engine.over(self.collection)
        self._pins: OrderedDict[int, Snapshot] = OrderedDict()
        self._checked: dict[int, int] = {}  # {pinned version: the newest version at which it could still be opened}
        self._kernels: OrderedDict[str, Kernel] = OrderedDict()
        self._left_out: OrderedDict[str, list[str]] = OrderedDict()
        self._views: OrderedDict[Which, View] = OrderedDict()
        self._lock = threading.RLock()

    def at(self, version: int | None) -> Snapshot:
        """The set at a version, the newest when None. Raises UnknownVersion, and Erased where its rows are gone."""
        with self._lock:
            newest = self.asked.pin()
            self._keep(newest)
            if version is None or version == newest.version:
                return newest
            found = self._pins.get(version)
            if found is None:
                found = self.asked.snapshot(version)
            elif self._checked[version] != newest.version:
                self._check(version)
            self._checked[version] = newest.version
            self._keep(found)
            return found

    def view(self, which: Which, digests: Sequence[str] | None = None) -> View:
        """Some of the rows of a version. digests: what is left out, where the question holds it.

        Raises SayAll where only its name is given, and is not known.
        """
        with self._lock:
            snapshot = self.at(which.version)
            if which.label is None and not which.without:
                return View(snapshot, snapshot, self.collection.set_id, snapshot.version)
            key = which._replace(version=snapshot.version)
            found = self._views.get(key)
            if found is None or found.snapshot is not snapshot:
                found = self._seen(snapshot, key, digests)
            return _remembered(self._views, key, found)

    def kernel(self, fingerprint: str, sent: Kernel | None, view: View) -> Kernel:
        """The kernel of this name: one that was sent, the literal one, the view's own, or one sent before.

        "" is the view's own. Raises SayAll for any other.
        """
        own = view.rows.default_kernel
        if sent is not None:
            with self._lock:
                return _remembered(self._kernels, sent.fingerprint, sent)
        if fingerprint in ("", own.fingerprint):
            return own
        if fingerprint == LITERAL.fingerprint:
            return LITERAL
        with self._lock:
            if fingerprint not in self._kernels:
                raise SayAll(f"kernel {fingerprint} is not known here; send it whole")
            return _remembered(self._kernels, fingerprint, self._kernels[fingerprint])

    def check_ready(self) -> None:
        """Raise unless the newest version can be read, and its engine, where it has one, holds what it needs."""
        newest = self.at(None)
        if isinstance(newest, EngineSnapshot):
            newest.check_engine()

    def let_go(self) -> None:
        """Close what the record says is to go: versions that were erased, files that were replaced."""
        with self._lock:
            newest = self.collection.newest().version
            for version in list(self._pins):
                with suppress(NegindexError):  # then it is dropped
                    if self._checked.get(version) != newest:
                        self._check(version)
                        self._checked[version] = newest
            going = {one.name for one in self.collection.outstanding() if one.what in ("file", "derived")}
            for version in [v for v, snapshot in self._pins.items() if going & snapshot.files]:
                self._drop(version)
                self.asked.let_go()

    def close(self) -> None:
        """Let go of everything; answers that are under way end as they are."""
        with self._lock:
            self._pins.clear()
            self._views.clear()
            self.asked.close()

    def _seen(self, snapshot: Snapshot, which: Which, digests: Sequence[str] | None) -> View:
        left_out = self._left_out.get(which.without) if digests is None else list(digests)
        if left_out is None and which.without:
            raise SayAll(f"what the view {which.without} leaves out is not known here; send it whole")
        if name_of(left_out or []) != which.without:
            raise InvalidInput(f"{len(left_out or [])} digests were sent under the name {which.without}; name them")
        set_id = self.collection.set_id if which.label is None else f"{self.collection.set_id}#{which.label}"
        rows: Snapshot | Labelled = snapshot
        if which.label is not None:
            rows = Labelled(self.collection, which.label, snapshot.where(label=which.label))
        if left_out:
            _remembered(self._left_out, which.without, left_out)
            rows = rows.without(left_out)
        return View(rows, snapshot, set_id, snapshot.version)

    def _keep(self, snapshot: Snapshot) -> None:
        self._checked.setdefault(snapshot.version, snapshot.version)
        _remembered(self._pins, snapshot.version, snapshot, self._most)
        for version in self._checked.keys() - self._pins.keys():
            self._drop(version)

    def _check(self, version: int) -> None:
        try:
            self.collection.check_readable(version)
        except NegindexError:
            self._drop(version)
            raise

    def _drop(self, version: int) -> None:
        self._pins.pop(version, None)
        self._checked.pop(version, None)
        for which in [w for w in self._views if w.version == version]:
            del self._views[which]


class Sets:
    """The sets of a directory by their names. A set that was replaced by another is opened anew."""

    def __init__(self, root: Path, pins: int, engines: Mapping[str, Engine] | None = None) -> None:
        """engines: of the sets that answer through one, by their names."""
        self.root, self._pins, self._engines = root, pins, engines or {}
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """What lies there now."""
        found = (path.parent.name for path in self.root.glob(f"*/{CATALOGUE}"))
        return sorted(name for name in found if NAME.fullmatch(name))

    def get(self, name: str) -> Held:
        """The set of this name; raises NotThere, and what ``Collection.open`` raises."""
        if not NAME.fullmatch(name):
            raise NotThere(f"no set {name!r} is served here")
        folder = f"{self.root}/{name}"
        identity = _identity(folder)
        with self._lock:
            found = self._held.get(name)
            if found is not None and found.identity != identity:
                found.close()
                found = None
            if found is None:
                found = self._held[name] = Held(Path(folder), self._pins, self._engines.get(name))
            return found

    def open(self) -> list[Held]:
        """Those that were asked for so far; one that is no longer there is closed."""
        with self._lock:
            for name, held in list(self._held.items()):
                if not _is_there(held):
                    del self._held[name]
                    held.close()
            return list(self._held.values())

    def close(self) -> None:
        """Close them all."""
        for held in self.open():
            held.close()


def rows_by_id(snapshot: Snapshot, ids: Tensor) -> Tensor:
    """Rows (n, *S) in force at the snapshot's version, in the order of ids (n,). Raises UnknownKey for others."""
    own = [torch.from_numpy(segment.ids[places]) for segment, places in snapshot.parts.values() if len(places)]
    known = torch.cat(own) if own else torch.empty(0, dtype=torch.int64)
    order = known.argsort()
    place = torch.searchsorted(known, ids, sorter=order).clamp(max=max(len(known) - 1, 0))
    places = order[place] if len(known) else place
    strange = ids[known[places] != ids] if len(known) else ids
    if len(strange):
        raise UnknownKey(f"rows {strange[:10].tolist()} are not in force at version {snapshot.version}")
    return snapshot.take(places).rows.reshape(-1, *snapshot.shape)


def _remembered(kept: OrderedDict[K, V], key: K, value: V, most: int = KEPT) -> V:
    """The value, put into a memory that forgets what was used least lately."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
    return value


def _is_there(held: Held) -> bool:
    """Whether the directory is still the one that was opened."""
    try:
        return held.identity == _identity(held.path)
    except NotThere:
        return False


def _identity(path: Path | str) -> tuple[int, int]:
    try:
        state = os.stat(f"{path}/{CATALOGUE}")
    except OSError as error:
        raise NotThere(f"no set {os.path.basename(path)!r} is served here") from error
    return state.st_dev, state.st_ino

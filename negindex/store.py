"""A collection on the disk: the record, the files, and every change of both."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negindex import segments, upkeep
from negindex.alike import Likeness, hashes_of, likeness, listed_near
from negindex.binding import NewRows
from negindex.calibration import Calibration
from negindex.catalogue import Backup, Catalogue
from negindex.derived import DERIVED, Derived, new_file
from negindex.disk import Disk, writer_lock
from negindex.draft import Draft
from negindex.engines.known import ENGINES, Engines
from negindex.errors import (
    ClaimLive,
    ContentRefused,
    Damaged,
    DuplicateKey,
    Locked,
    NegindexError,
    NotAllowed,
    NotThere,
    OnHold,
    SpaceMismatch,
    Unreachable,
)
from negindex.hamming import Hashes
from negindex.incoming import Incoming, some_are
from negindex.index import Ahead, Index, is_small
from negindex.kernel import Kernel
from negindex.keys import Key
from negindex.regimes import Regime, regime
from negindex.rowstore import is_away
from negindex.schema import IN_HOUSE
from negindex.segment import SEGMENT_BYTES
from negindex.segments import Holder, Segments, taken
from negindex.snapshot import Parts, Snapshot
from negindex.states import Note, Outstanding, SegmentRecord

INDEXED = 0.1, 4096  # share of the rows, and number of them, that an index may lack before it is made anew
CATALOGUE, SEGMENTS, MARK = "catalogue.sqlite", "segments", "BACKUP.json"
NEW = ".new"  # a directory under this ending was never finished
_BESIDE = 4 << 20  # bytes of rows from which on their file is written in a thread of its own
Sealed = list[tuple[Callable[[], SegmentRecord], NewRows]]  # waits for the file, which may still be being written


class Store:
    """What a ``Collection`` and its ``Claims`` share."""

    def __init__(self, path: Path, disk: Disk, key: Key | None = None, *, backup: bool = False) -> None:
        self.path, self.disk, self._is_backup = path, disk, backup
        self.trouble: dict[str, str] = {}  # path of a backup: why nothing could be taken out of it, when last tried
        if not backup and (path / MARK).exists():
            raise NotAllowed(f"{path} is a backup; `negindex restore` brings it back as a set")
        self.catalogue = Catalogue(path / CATALOGUE, disk, key)
        self.meta = self.catalogue.meta
        self.segments = Segments(path / SEGMENTS, self.meta, disk, self.catalogue)
        self.derived = Derived(path / DERIVED, self.catalogue, self.segments, disk)
        self.engines = Engines(path / ENGINES, self.meta.set_id, disk)
        self._open_up()

    def close(self) -> None:
        self.catalogue.close()

    def regime(self, name: str) -> Regime:
        """The rules of this name: those in the set's own ``regimes`` folder first."""
        own = self.path / "regimes"
        return regime(name, own if own.is_dir() else None)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer; what has piled up is tidied afterwards.

        What fails at that is not reported, since the change is done: the next writer tidies up, and ``verify`` names
        a file that is damaged.
        """
        with writer_lock(self.path):
            self._begin()
            with ExitStack() as self._drafts:  # leaves no file half written behind
                yield
            with suppress(OSError, Damaged, Unreachable, NotAllowed):
                self.tidy()
                self.settle()

    def _begin(self) -> None:
        """See anew whose the places of rows are; what a move that did not come to its end left is swept."""
        self.segments.begin()
        place = self.catalogue.place()
        if place.moving:
            with suppress(OSError, Damaged, Unreachable, NotAllowed):
                self.segments.own(place.moving)
                self.segments.leave(place.moving)
                self.catalogue.put_rows_at(place._replace(moving=""))

    # -- rows in ---------------------------------------------------------------------------

    def seal(self, given: Incoming) -> tuple[Sealed, dict[str, int]]:
        """Rows that are not there yet, in sealed files for ``Change.store``; and {key: id} of all of them.

        Raises DuplicateKey where a key that is held stands for other bytes, and ContentRefused where a claim or
        an erasure keeps the content out.
        """
        self._check_allowed(given)
        self._check_embedded(given)
        held = self.catalogue.held(given.keys)
        clash = [key for key, d in zip(given.keys, given.digests, strict=True) if key in held and held[key][1] != d]
        if clash:
            raise DuplicateKey(
                f"{some_are(clash)} in force with other bytes; withdraw first, or use another key", clash
            )
        first_of: dict[str, int] = {}
        for i, key in enumerate(given.keys):
            if given.digests[first_of.setdefault(key, i)] != given.digests[i]:
                raise DuplicateKey(f"{some_are([key])} of two rows with other bytes; use another key for one", [key])
        fresh = given.chosen([i for key, i in first_of.items() if key not in held])
        first = self.catalogue.next_id()
        ids = {key: row_id for key, (row_id, _, _) in held.items()} | {k: first + i for i, k in enumerate(fresh.keys)}
        return self._sealed(fresh, first), ids

    def match(self, ids: Sequence[int]) -> None:
        """Have claims that named content by its hash name the rows that have it, one version a claim."""
        for number, named in self._named_by_hash(ids).items():
            rows = sorted(set(named) - set(self.catalogue.rows_of(number)))
            if not rows:
                continue
            with self.catalogue.change("match", Note()) as change:
                accepted = self.catalogue.claim(number).state == "accepted"
                change.move(number, "in_force" if accepted else None)
                change.link(number, rows)
                change.reckon(rows)

    def _named_by_hash(self, ids: Sequence[int]) -> dict[int, list[int]]:
        """{open claim: those of the rows whose content it named by its hash, or nearly, where the hash is PDQ's}."""
        if not self.catalogue.keeps_out():
            return {}
        found = {claim: set(rows) for claim, rows in self.catalogue.rows_by_hash(ids).items()}
        hashes, qualities = self.catalogue.pdqs(ids)
        named = self.catalogue.claim_pdqs() if len(hashes) else []
        for place, row in listed_near(Hashes.of(pdq for pdq, _ in named), hashes, qualities):
            found.setdefault(named[place][1].claim, set()).add(row)
        return {claim: sorted(rows) for claim, rows in sorted(found.items())}

    def read(self, ids: Sequence[int]) -> Incoming:
        """Rows as they were stored, to be stored again under new ids; those whose bytes are gone are left out."""
        placed = self.catalogue.placed(ids)
        files = {file.segment: file for file in self.catalogue.segments()}
        sql = "SELECT id, source_key, label, sha256 FROM rows WHERE segment IS NOT NULL AND id = ?"
        found = [row for i in sorted(placed) for row in self.catalogue.ask(sql, i)]
        opened = [(self.segments.open(files[placed[i][0]]), placed[i][1]) for i, *_ in found]
        rows = np.asarray(taken(opened) if opened else (), self.meta.dtype)
        wide = [None if segment.embeddings is None else segment.embeddings[place] for segment, place in opened]
        return Incoming(
            rows.reshape(-1, *self.meta.shape),
            [key for _, key, _, _ in found],
            [label for _, _, label, _ in found],
            [self.catalogue.provenance(i) for i, *_ in found],
            None if not wide or any(one is None for one in wide) else np.array(wide, np.float16),
            [digest for *_, digest in found],
        )

    def _sealed(self, fresh: Incoming, first: int) -> Sealed:
        files: Sealed = []
        step = max(1, SEGMENT_BYTES // max(1, fresh.rows[:1].nbytes))
        for start in range(0, len(fresh), step):
            part = fresh.chosen(range(start, min(start + step, len(fresh))))
            ids = np.arange(first + start, first + start + len(part), dtype=np.int64)
            rows = NewRows(first + start, part.keys, part.labels, part.digests, part.sources, part.bound())
            files.append((self._sealing(part, ids), rows))
        return files

    def _sealing(self, part: Incoming, ids: NDArray[np.int64]) -> Callable[[], SegmentRecord]:
        """Seal a large file beside the change that will name it, which waits for it before it commits."""
        draft = None if self.segments.is_away else part.draft or self.draft(part)
        if draft is None:
            record = self.segments.seal(part.rows, ids, part.embeddings)
            return lambda: record
        return self._drafts.enter_context(closing(draft)).seal(ids)

    def draft(self, part: Incoming) -> Draft | None:
        """Begin the file of rows that are many; None of few, which is as well written when their turn comes."""
        return None if part.rows.nbytes < _BESIDE else self.segments.draft(part.rows, part.embeddings)

    def _check_allowed(self, given: Incoming) -> None:
        """Raise ContentRefused for content that may not be stored, or that an erasure keeps out."""
        if not self.catalogue.keeps_out() and all(one.pdq is None for one in given.sources):
            return  # a hash of another size would be refused below
        barred = self.barred([likeness(*each) for each in zip(given.digests, given.sources, strict=True)])
        keys = [key for key, out in zip(given.keys, barred, strict=True) if out]
        if keys:
            raise ContentRefused(
                f"{some_are(keys)} content that a claim allows no copy of, or that was erased and is kept out; "
                "leave it out of what you add",
                keys,
            )

    def _check_embedded(self, given: Incoming) -> None:
        """Raise SpaceMismatch for embeddings of another model than those that lie beside rows."""
        known = None if given.embeddings is None else self.catalogue.embedded_by()
        if known is not None and known != given.embedded_by:
            raise SpaceMismatch(
                f"embeddings by {given.embedded_by or 'a model that is not named'}, and beside the rows of {self.path} "
                f"lie those by {known or 'a model that is not named'}; use that model, or build another set"
            )

    def barred(self, given: Sequence[Likeness]) -> list[bool]:
        """Of each image, whether a claim allows no copy of it, or of what is near it, or an erasure keeps it out."""
        content = sorted({digest for one in given for digest in one.content})
        hashes, qualities = hashes_of(given)
        known, named = self.catalogue.claims_by_hash(content), self.catalogue.claim_pdqs() if len(hashes) else []
        strict = self._hash_only({c.regime for claims in known.values() for c in claims} | {c.regime for _, c in named})
        out = {d for d, claims in known.items() if any(c.regime in strict for c in claims)} | self._kept_out(content)
        listed = Hashes.of(pdq for pdq, claim in named if claim.regime in strict)
        near = {place for _, place in listed_near(listed, hashes, qualities)}
        return [place in near or not out.isdisjoint(one.content) for place, one in enumerate(given)]

    def _hash_only(self, regimes: Iterable[str]) -> set[str]:
        """Those of the regimes that allow no copy of the content."""
        return {name for name in regimes if self.regime(name).storage == "hash-only"}

    # -- rows out --------------------------------------------------------------------------

    def check_unclaimed(self, ids: Sequence[int], but: int | None = None) -> None:
        """Raise ClaimLive where a claim other than in-house ones, and ``but``, keeps rows in force."""
        live = self.catalogue.claims_on(ids)
        others = {c.claim for claims in live.values() for c in claims if c.regime != IN_HOUSE and c.claim != but}
        if others:
            numbers = ", ".join(map(str, sorted(others)))
            raise ClaimLive(
                f"claim {numbers} keeps the row in force; `negindex claim withdraw` it first, if it is settled",
                sorted(others),
            )

    def erase(self, ids: Sequence[int], note: Note, *, claim: int | None = None, keep_out: bool = False) -> int:
        """Take rows' bytes and words out of everything, as one new version; ``settle`` finishes it."""
        self.check_unclaimed(ids, claim)
        self._check_no_hold(ids, claim)
        self.trouble.clear()
        prints = [self._fingerprint(digest) for digest in self.catalogue.content_of(ids)] if keep_out else []
        files = upkeep.files_of(self.catalogue, ids)
        moved = upkeep.rewritten(self.catalogue, self.segments, files, without=ids)
        with self.catalogue.change("erase", note) as change:
            if claim is not None:
                change.move(claim)
                change.forget_claim(claim)
            change.erase(ids, prints)
            change.replace(files, moved)
            change.owe("journal", CATALOGUE)
            told = {c.claim for some in self.catalogue.claims_on(ids, ever=True).values() for c in some}
            gone = [c.claim for c in self.catalogue.claims("erased") if c.claim in told or c.claim == claim]
            for backup in self.catalogue.backups():
                if self.catalogue.may_hold(backup, ids, gone):
                    change.owe("backup", backup.path)
            for address in self.engines.known():
                change.owe("engine", address.text)
        return change.version

    def _kept_out(self, digests: Sequence[str]) -> set[str]:
        """Content whose fingerprint an erasure left behind."""
        prints = {self._fingerprint(digest): digest for digest in digests}
        return {prints[one] for one in self.catalogue.blocked(list(prints))}

    def _fingerprint(self, digest: str) -> str:
        """Keyed with the set's own secret, which no log, export or report holds."""
        return hmac.new(bytes.fromhex(self.meta.secret), digest.encode(), hashlib.sha256).hexdigest()

    def _check_no_hold(self, ids: Sequence[int], claim: int | None) -> None:
        claims = [one for some in self.catalogue.claims_on(ids, ever=True).values() for one in some]
        claims += [] if claim is None else [self.catalogue.claim(claim)]
        held = {one.claim for one in claims if one.hold in ("held", "release-asked")}
        if held:
            numbers = ", ".join(map(str, sorted(held)))
            raise OnHold(
                f"a legal hold on claim {numbers} keeps the row from being erased; "
                "two people release it (`negindex claim release`)"
            )

    # -- what follows from rows ------------------------------------------------------------

    def keep(self, calibration: Calibration, rows: Snapshot, note: Note, ahead: Ahead) -> int | None:
        """Put a calibration in force, with an index of ``rows`` by it; returns the version.

        None, and nothing is changed, where bytes of the rows were erased or given up meanwhile. Everything that
        takes long is done before the writer's lock is taken.
        """
        index = None if is_small(rows) else _index_of(rows, calibration.kernel)
        with nullcontext() if index is None else ahead(index), self.writing():
            if self.catalogue.lost_since(rows.version):
                return None
            kept = self.derived.seal_calibration(calibration, rows.version)
            files = [kept] if index is None else [kept, self.derived.seal_index(index, rows.version)]
            words = {"kernel": kept.kernel, "sha256": kept.sha256, "seen": rows.version}
            with self.catalogue.change("calibrate", replace(note, words={**note.words, **words})) as change:
                change.derive(files)
        return change.version

    def is_indexed(self, rows: Snapshot, kernel: Kernel) -> bool:
        """Whether there is an index that can be used, and that lacks and has to hide but few rows."""
        index, record = self.derived.index(kernel), self.catalogue.index_of(kernel.fingerprint)
        if index is None or record is None or index.file != record.file:
            return False
        added = self.catalogue.added_since(record.covers)
        hidden = len(index.clusters.ids) - (len(rows) - added)
        return max(added, hidden) <= min(INDEXED[0] * len(rows), INDEXED[1])

    def reindex(self, rows: Snapshot, kernel: Kernel, ahead: Ahead) -> bool:
        """Make the index of ``rows`` anew by a kernel that stays; False where their bytes are gone meanwhile."""
        index = _index_of(rows, kernel)
        with ahead(index), self.writing():
            known = self.catalogue.calibration(self.catalogue.newest().version)
            if self.catalogue.lost_since(rows.version) or known is None or known.kernel != kernel.fingerprint:
                return False
            file = self.derived.seal_index(index, rows.version)
            with self.catalogue.upkeep() as change:
                change.derive([file])
        return True

    # -- upkeep ----------------------------------------------------------------------------

    def tidy(self) -> None:
        """Merge the smallest full tier of files, if it is small enough to be done on the side."""
        if files := upkeep.due(self.catalogue.segments(), upkeep.AT_ONCE):
            self._move(files)

    def compact(self) -> int:
        """Merge all that is due, and part withdrawn rows from those in force; returns how many files it rewrote."""
        refused = upkeep.never_in_force(self.catalogue)
        files = {file.file: file for file in upkeep.mostly_dead(self.catalogue)}
        files |= {file.file: file for file in upkeep.files_of(self.catalogue, refused)}
        if files:
            self._move(list(files.values()), refused)
        rewritten = len(files)
        while due := upkeep.due(self.catalogue.segments(), most=1 << 62):
            self._move(due)
            rewritten += len(due)
        return rewritten

    def forget(self, before: int, note: Note) -> int:
        """Give up rows that only versions before one read; those versions can no longer be opened."""
        ids = upkeep.withdrawn_by(self.catalogue, before)
        if not ids:
            return self.catalogue.newest().version
        files = upkeep.files_of(self.catalogue, ids)
        moved = upkeep.rewritten(self.catalogue, self.segments, files, without=ids)
        with self.catalogue.change("forget", note) as change:
            change.drop(ids)
            change.replace(files, moved)
        return change.version

    def _move(self, files: Sequence[SegmentRecord], without: Sequence[int] = ()) -> None:
        moved = upkeep.rewritten(self.catalogue, self.segments, files, without)
        with self.catalogue.upkeep() as change:
            change.drop(without)
            change.replace(files, moved)

    def settle(self, engines: bool = True) -> None:
        """Finish what erasures and compactions owe, as far as readers let.

        engines: ask these too, once; one that does not answer takes some seconds to find out.
        """
        owed = [one for one in self.catalogue.outstanding() if engines or one.what != "engine"]
        done = [one for one in owed if self._is_done(one)]
        if done:
            with self.catalogue.upkeep() as change:
                for one in done:
                    change.settled(one.what, one.name)

    def holders(self, one: Outstanding) -> list[Holder]:
        """Who keeps something from being finished, as far as this system tells."""
        folder = {"file": self.segments.folder, "derived": self.derived.folder}.get(one.what)
        return [] if folder is None or is_away(one.name) else segments.holders(folder / one.name)

    def _is_done(self, one: Outstanding) -> bool:
        if one.what == "derived":
            return segments.let_go(self.disk, self.derived.folder / one.name)
        if one.what == "file":
            with suppress(Unreachable, NotAllowed):  # it stays on the list
                return self.segments.let_go(one.name)
            return False
        if one.what == "journal":
            return self.catalogue.scrub()
        if one.what == "engine":
            return self._is_cleared(one.name)
        return one.what == "backup" and not self._is_backup and self._is_purged(one.name)

    def _is_cleared(self, address: str) -> bool:
        """Take out of an engine all that is not on record; False, and why in ``trouble``, where that cannot be now."""
        if address in self.trouble:
            return False
        try:
            self.engines.clear(address, self.indices(), self.derived.folder)
        except NegindexError as error:
            self.trouble[address] = str(error)
        return address not in self.trouble

    def indices(self) -> set[str]:
        """The index files on record."""
        return {file.file for file in self.catalogue.derived() if file.kind == "index"}

    def _is_purged(self, path: str) -> bool:
        """Take everything erased out of a backup; False, and why in ``trouble``, where that cannot be done now."""
        if path in self.trouble:
            return False
        try:
            self._purge(Path(path))
        except (NegindexError, OSError) as error:  # the erasure stands, and the backup stays on the list
            self.trouble[path] = str(error)
        return path not in self.trouble

    def _purge(self, path: Path) -> None:
        known = {backup.id: backup for backup in self.catalogue.backups() if backup.path == str(path)}
        said = backup_mark(path)
        if said.get("backup") not in known:
            raise NotAllowed(f"{path} is not the backup that was made there; move it, and put that backup back")
        at = int(said["version"])
        if at > self.catalogue.newest().version or self.catalogue.checkpoint(at).root != said["root"]:
            raise NotAllowed(f"{path} is of a history that this set does not have; erase in it what has to go yourself")
        with closing(Store(path, self.disk, backup=True)) as backup, writer_lock(path, wait=0):
            backup.take_out(*self.catalogue.erased(), self.catalogue.ask("SELECT * FROM blocked"))

    def take_out(self, rows: Mapping[int, int], claims: Mapping[int, int], blocked: Sequence[tuple[str, int]]) -> None:
        """In a backup: be rid of rows' bytes and words, and of claims' words; see ``Change.purge``."""
        here = {i for (i,) in self.catalogue.ask("SELECT id FROM rows WHERE erased IS NULL AND salt IS NOT NULL")}
        noted = {int(one.name) for one in self.catalogue.outstanding() if one.what == "claim"}
        open_here = {claim.claim for claim in self.catalogue.claims() if claim.state != "erased"} - noted
        rows = {i: version for i, version in rows.items() if i in here}
        claims = {claim: version for claim, version in claims.items() if claim in open_here}
        if rows or claims:
            files = upkeep.files_of(self.catalogue, list(rows))
            moved = upkeep.rewritten(self.catalogue, self.segments, files, without=rows)
            with self.catalogue.upkeep() as change:
                change.purge(rows, claims)
                change.replace(files, moved)
                change.keep_out(blocked)
                change.owe("journal", CATALOGUE)
        self.settle()
        if any(one.what in ("file", "derived", "journal") for one in self.catalogue.outstanding()):
            raise Locked(f"{self.path} is being read by another program; try again when it is done")

    def _open_up(self) -> None:
        """Renew an older record, sweep what a crashed writer left, and settle; not while another writer is at work."""
        try:
            with writer_lock(self.path, wait=0):
                self.catalogue.renew()
                named = {file.file for file in self.catalogue.segments()}
                named |= {file.file for file in self.catalogue.derived()}
                named |= {one.name for one in self.catalogue.outstanding()}
                self.segments.sweep(named)
                self.derived.sweep(named)
                self._sweep_backups()
                self.settle(engines=False)
        except Locked:
            pass

    def _sweep_backups(self) -> None:
        """Settle what became of backups whose maker did not come to the end."""
        for backup in self.catalogue.backups():
            if not (backup.at or self._is_backup):
                with suppress(NegindexError, OSError):  # it is being made, or out of reach: it stays on record
                    self.sweep_backup(backup)

    def sweep_backup(self, backup: Backup) -> None:
        """Take away what was never finished, and its entry; complete the entry of what was."""
        path, aside = Path(backup.path), Path(backup.path + NEW)
        if aside.is_dir():
            with writer_lock(aside, wait=0):
                shutil.rmtree(aside)
            with self.catalogue.upkeep() as change:
                change.no_backup(backup.id, backup.path)
        elif (path / MARK).is_file() and (said := backup_mark(path)).get("backup") == backup.id:
            with self.catalogue.upkeep() as change:
                change.backed_up(backup.id, backup.path, said["version"], said["at"])

    # -- reading ---------------------------------------------------------------------------

    def parts(self, version: int | None, previous: tuple[int, Parts] | None = None) -> tuple[int, Parts]:
        """A version's number, and its files with the places of the rows in force.

        previous: an earlier version and its parts, from which only the changes are read.
        """
        while True:
            with self.catalogue.reading():
                number = self.catalogue.newest().version if version is None else self.catalogue.version(version).version
                self.catalogue.check_readable(number)
                files = self.catalogue.segments(number)
                known = dict(previous[1]) if previous and previous[1].keys() <= {file.file for file in files} else {}
                since = previous[0] if previous else -1
                found = {file: self._places(file, number, known, since) for file in files}
            try:
                return number, {f.file: (self.segments.open(f), places) for f, places in found.items() if len(places)}
            except Damaged:
                if {file.file for file in files} <= {file.file for file in self.catalogue.segments()}:
                    raise  # else the file was replaced meanwhile: read again where its rows lie now

    def _places(self, file: SegmentRecord, version: int, known: Parts, since: int) -> NDArray[np.int64]:
        """Sorted places of a file's rows in force: afresh, or from those of an earlier version."""
        ask, old = self.catalogue, file.file in known
        entered = ask.entered(file.segment, since, version) if old and (file.last or 0) > since else []
        left = ask.left(file.segment, since if old else -1, version)
        if old:
            places = known[file.file][1]
            places = np.union1d(places, np.array(entered, np.int64)) if entered else places
            return np.setdiff1d(places, left, assume_unique=True) if left else places
        later = ask.entered(file.segment, version) if (file.last or 0) > version else []
        return np.delete(np.arange(file.rows, dtype=np.int64), [*left, *ask.proposed(file.segment), *later])


def _index_of(rows: Snapshot, kernel: Kernel) -> Index:
    """With the name of the file that it will lie in."""
    return replace(Index.build(rows, kernel), file=new_file("index"))


def backup_mark(path: Path) -> dict[str, Any]:
    """What a backup says of itself: backup, set_id, version, at, root. Raises NotThere where no backup is."""
    try:
        text = (path / MARK).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise NotThere(f"{path} is no backup ({MARK} is missing); name one that `negindex backup` made") from None
    try:
        said: dict[str, Any] = json.loads(text)
        if {"backup", "set_id", "version", "at", "root"} <= said.keys() and type(said["version"]) is int:
            return said
    except (ValueError, AttributeError):
        pass
    raise Damaged(f"{path / MARK} does not say which backup this is; take another backup")

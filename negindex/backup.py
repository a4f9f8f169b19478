"""Copies of a collection: made while it is in use, purged of what is erased later, and brought back.

Write order of a backup, with what a crash in each gap leaves behind:

1. a directory ending in .new, locked by its maker      an empty directory that nothing names
2. the set's record names it, unfinished                swept, with its entry, at the next writer's open
3. the record of one version; the files that it names   likewise
4. rename, fsync                                        a whole backup; its entry is completed at the next open
5. the set's record says of which version it is         the backup is there

An erasure in the meantime finds it on record, so it is owed to the backup like to any other.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import shutil
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from negindex import upkeep
from negindex.catalogue import Backup, Catalogue
from negindex.change import Change
from negindex.derived import DERIVED
from negindex.disk import Disk, sha256_of, writer_lock
from negindex.errors import Damaged, Gone, InvalidInput, NegindexError, NotAllowed, NotThere
from negindex.keys import Key
from negindex.log import Record, canonical
from negindex.objects import store_at
from negindex.replay import bring_up, bytes_gone, later, read_log
from negindex.rowstore import apart, fetch, is_away
from negindex.schema import connect, named, now
from negindex.segments import Segments
from negindex.states import Note, Outstanding
from negindex.store import CATALOGUE, MARK, NEW, SEGMENTS, Store, backup_mark
from negindex.text import is_unicode

__all__ = ["THERE", "UNFINISHED", "Backup", "Kept", "discard", "forget", "kept", "make", "remove", "restore"]
THERE, UNFINISHED = "there", "never finished"
_PIECE = 1 << 20


class Kept(NamedTuple):
    """A backup, and how it stands."""

    id: str
    path: str
    version: int
    at: str
    found: str  # "there", or what it looks like
    owed: tuple[int, ...]  # versions of erasures that it has not followed yet


class _Named(NamedTuple):
    """A file that a record names."""

    path: str  # below the copy's directory
    sha256: str
    source: str = ""  # the address of a file that lies elsewhere; "" for one of the set's directory
    bytes: int = 0


# -- making --------------------------------------------------------------------------------


def make(store: Store, to: Path) -> Backup:
    """Copy the newest version, and all that it holds of older ones, to ``to``; see ``Collection.backup``."""
    path, disk = _free_place(store, to), store.disk
    with _made_aside(path, disk) as aside:
        begun = Backup(uuid.uuid4().hex, str(path), store.catalogue.newest().version, "")
        try:
            with store.catalogue.upkeep() as change:
                change.backed_up(*begun)
            done = _fill(store.path, aside, begun, disk)
            disk.rename(aside, path)
            disk.sync_directory(path.parent)
            with store.catalogue.upkeep() as change:
                change.backed_up(*done)
        except BaseException:
            _take_back(aside, path)
            with store.catalogue.upkeep() as change:
                change.no_backup(begun.id, begun.path)
            raise
    return done


def _free_place(store: Store, to: Path) -> Path:
    path = to.absolute()
    if not is_unicode(str(path)):
        raise InvalidInput(f"{str(path)!r} is no Unicode text; name another place")
    for backup in store.catalogue.backups():
        if backup.path == str(path) and not backup.at:
            store.sweep_backup(backup)
    if path.exists():
        raise NotAllowed(f"{path} exists; name a place for the backup where nothing is")
    if any(backup.path == str(path) for backup in store.catalogue.backups()):
        raise NotAllowed(
            f"the record has a backup at {path}, and it is not there; bring it back, say that it is gone "
            f"(`negindex backup {store.path} --gone {path}`), or name another place"
        )
    return path


@contextmanager
def _made_aside(path: Path, disk: Disk) -> Iterator[Path]:
    """A new directory beside ``path``, locked, and marked so that nobody opens it as a set."""
    aside = Path(str(path) + NEW)
    if not path.parent.is_dir():
        raise NotThere(f"{path.parent} is not there; make it, or mount what it is on")
    if aside.is_dir():  # another program left it
        with writer_lock(aside, wait=0):
            shutil.rmtree(aside)
    aside.mkdir(mode=0o700)
    try:
        with writer_lock(aside, wait=0):
            _write(disk, aside / MARK, b"{}")
            yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _take_back(aside: Path, path: Path) -> None:
    """After a failure: nothing is left under either name."""
    if not aside.exists():  # it had its name already
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def _fill(source: Path, aside: Path, begun: Backup, disk: Disk) -> Backup:
    _copy_set(source, aside, disk)
    with closing(Catalogue(aside / CATALOGUE, disk)) as copy:
        done = begun._replace(version=copy.newest().version, at=now())
        root = copy.checkpoint(done.version).root
        said = {"backup": done.id, "set_id": copy.meta.set_id, "version": done.version, "at": done.at, "root": root}
        with copy.upkeep() as change:
            change.backed_up(*done)
            for one in _of_the_place(copy.outstanding()):
                change.settled(one.what, one.name)
    _write(disk, aside / MARK, canonical(said).encode())
    shutil.copymode(source, aside)
    disk.sync_directory(aside)
    return done


def _of_the_place(outstanding: Sequence[Outstanding]) -> list[Outstanding]:
    """What is owed of what is not copied, engines too; what is owed of other backups stays on the list."""
    return [one for one in outstanding if one.what in ("file", "derived", "journal", "engine")]


# -- copying -------------------------------------------------------------------------------


def _copy_set(source: Path, aside: Path, disk: Disk) -> None:
    """The record of one version, and the files that it names but for an index, whatever a writer does meanwhile.

    Rows that lie elsewhere are copied too, so that a copy needs no other place. A file that was replaced before it
    could be locked has the copy start over. Raises Damaged, naming the file,
    when its bytes are not those on record.
    """
    copied = False
    while not copied:
        (aside / CATALOGUE).unlink(missing_ok=True)
        for folder in (SEGMENTS, DERIVED):
            shutil.rmtree(aside / folder, ignore_errors=True)
            (aside / folder).mkdir()
        copied = _copy_files(source, aside, _copy_record(source, aside, disk), disk)
    for folder in (SEGMENTS, DERIVED):
        disk.sync_directory(aside / folder)
    own = source / "regimes"
    if own.is_dir():
        (aside / "regimes").mkdir()
        for file in sorted(own.glob("*.toml")):
            _write(disk, aside / "regimes" / file.name, file.read_bytes())


def _copy_record(source: Path, aside: Path, disk: Disk) -> list[_Named]:
    """Copy the record; returns the files that the copy names. It names no index: that is made anew where it is used."""
    to = aside / CATALOGUE
    try:
        with closing(connect(source / CATALOGUE)) as db:
            disk.copy_database(db, to)
    except sqlite3.DatabaseError as error:
        found = named(error, source / CATALOGUE)
        found = named(error, to) if isinstance(found, OSError) else found
        raise found or error from error
    try:
        with closing(Catalogue(to, disk)) as copy:
            if copy.ask("PRAGMA integrity_check") == [("ok",)]:  # SQLite 3.40's quick_check misreads `outstanding`
                files = _named_in(copy)
                with copy.upkeep() as change:
                    change.leave_out_indices()
                    change.brought_home()
                return files
    except NegindexError:
        pass
    raise _not_kept(to)


def _named_in(catalogue: Catalogue) -> list[_Named]:
    """Rows' files, and calibrations."""
    rows = [
        _Named(f"{SEGMENTS}/{apart(one.file)[1]}", one.sha256, one.file, one.bytes)
        if is_away(one.file)
        else _Named(f"{SEGMENTS}/{one.file}", one.sha256)
        for one in catalogue.segments()
    ]
    kept = [one for one in catalogue.derived() if one.kind == "calibration"]
    return [*rows, *(_Named(f"{DERIVED}/{one.file}", one.sha256) for one in kept)]


def _copy_files(source: Path, aside: Path, files: Sequence[_Named], disk: Disk) -> bool:
    """False when one is there no more, since its rows lie elsewhere now; all are locked before the first is read."""
    with ExitStack() as held:
        opened = []
        for file in [file for file in files if not file.source]:
            try:
                opened.append((file, held.enter_context(_shared(source / file.path))))
            except FileNotFoundError:
                _check_replaced(source, file, disk)
                return False
        for file, bytes_ in opened:
            _copy_file(bytes_, source / file.path, aside / file.path, file.sha256, disk)
        try:
            for file in files:
                if file.source:
                    _bring(file, aside / file.path, disk)
        except Gone:
            _check_replaced(source, file, disk)
            return False
    return True


def _bring(file: _Named, to: Path, disk: Disk) -> None:
    """Copy a sealed file that lies elsewhere, checking what was read and what was kept."""
    place, name = apart(file.source)
    store, read = store_at(place), ""

    def fill(into: BinaryIO) -> None:
        nonlocal read
        read = fetch(store, name, file.bytes, into)

    disk.create(to, fill)
    if read != file.sha256:
        raise Damaged(f"{file.source} is not what the record says; put it back from a copy, and verify the set")
    if sha256_of(to) != file.sha256:
        raise _not_kept(to)


def _check_replaced(source: Path, file: _Named, disk: Disk) -> None:
    with closing(Catalogue(source / CATALOGUE, disk)) as now_:
        if file in _named_in(now_):
            missing = file.source or source / file.path
            raise Damaged(f"{missing} is missing; restore the file from another backup")


@contextmanager
def _shared(path: Path) -> Iterator[BinaryIO]:
    """The file, with a lock that says so to an erasure in another process."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield file


def _copy_file(bytes_: BinaryIO, source: Path, to: Path, sha256: str, disk: Disk) -> None:
    """Copy a sealed file, checking what was read and what was kept."""
    read = hashlib.sha256()

    def fill(file: BinaryIO) -> None:
        while piece := bytes_.read(_PIECE):
            read.update(piece)
            file.write(piece)

    disk.create(to, fill)
    if read.hexdigest() != sha256:
        raise Damaged(f"{source} is not what the record says; restore the file from another backup, and verify the set")
    if sha256_of(to) != sha256:
        raise _not_kept(to)


def _write(disk: Disk, path: Path, content: bytes) -> None:
    """A small file, read back."""
    disk.create(path, lambda file: _put(file, content))
    if path.read_bytes() != content:
        raise _not_kept(path)


def _put(file: BinaryIO, content: bytes) -> None:
    file.write(content)


def _not_kept(path: Path) -> OSError:
    return OSError(errno.EIO, "the disk did not keep what was written; check it, then try again", str(path))


# -- how they stand ------------------------------------------------------------------------


def kept(store: Store) -> list[Kept]:
    """Every backup on record, where it looks to be, and what it still owes."""
    owed = [one for one in store.catalogue.outstanding() if one.what == "backup"]
    found = []
    for backup in store.catalogue.backups():
        versions = tuple(one.version for one in owed if one.name == backup.path)
        trouble = store.trouble.get(backup.path) if versions else None
        found.append(Kept(*backup, _whereabouts(backup, trouble), versions))
    return found


def _whereabouts(backup: Backup, trouble: str | None) -> str:
    """What the place looks like; whether a backup is gone is for a person to say."""
    path = Path(backup.path)
    if path.exists():
        return trouble or (THERE if backup.at else UNFINISHED)
    if not path.parent.is_dir():
        return f"out of reach, as it looks: {path.parent} is not there; mount what it is on"
    if not any(path.parent.iterdir()):
        return f"out of reach, as it looks: {path.parent} is empty, as when nothing is mounted there"
    if not backup.at:
        return UNFINISHED
    return f"deleted, as it looks: {path.parent} is there and the backup is not"


def forget(store: Store, path: Path, *, by: str, reason: str) -> int:
    """Record that a person says that a backup is gone; see ``Collection.forget_backup``."""
    wanted = str(path.absolute())
    if not by.strip():
        raise InvalidInput("a backup is gone only when somebody says so; say who (by)")
    with store.writing():
        found = [backup for backup in store.catalogue.backups() if backup.path == wanted]
        if not found:
            raise NotThere(f"no backup at {wanted} is on record; `negindex backup {store.path} --list` shows those")
        if Path(wanted).exists():
            raise NotAllowed(f"{wanted} is there; delete it first, then say that it is gone")
        words = {"backups": [backup.id for backup in found], "path": wanted}
        with store.catalogue.change("backup-gone", Note(reason, by, words)) as change:
            for backup in found:
                change.no_backup(backup.id, backup.path)
    return change.version


def remove(store: Store, path: Path) -> None:
    """Delete a backup, and with it what it owes; see ``Collection.remove_backup``.

    Write order: the record names it as never finished; it is renamed aside; its bytes go; its entry goes. A crash
    leaves it whole, or swept at the next writer's open, or named as never finished until it is removed again.
    """
    wanted, aside = path.absolute(), Path(str(path.absolute()) + NEW)
    found = next((one for one in store.catalogue.backups() if one.path == str(wanted)), None)
    if found is None:
        raise NotThere(f"no backup at {wanted} is on record; `negindex backup {store.path} --list` shows those")
    looks = _whereabouts(found, None)
    if wanted.exists():
        _set_aside(store, found, aside)
    elif not aside.is_dir() and looks != UNFINISHED:
        raise NotThere(f"{wanted} is {looks}; bring it back, or say that it is gone (`negindex backup --gone`)")
    if aside.is_dir():
        discard(aside)
    with store.catalogue.upkeep() as change:
        change.no_backup(found.id, found.path)


def discard(aside: Path) -> None:
    """Delete a backup's folder under ``NEW``. Raises Locked while somebody is at it."""
    with writer_lock(aside, wait=0):
        shutil.rmtree(aside)


def _set_aside(store: Store, backup: Backup, aside: Path) -> None:
    path = Path(backup.path)
    if backup_mark(path).get("backup") != backup.id:
        raise NotAllowed(f"{path} is not the backup that was made there; move it, and put that backup back")
    with writer_lock(path, wait=0):
        with store.catalogue.upkeep() as change:
            change.backed_up(*backup._replace(at=""))
        store.disk.rename(path, aside)
        store.disk.sync_directory(path.parent)


# -- bringing back -------------------------------------------------------------------------


class _Old(NamedTuple):
    """What is known of the time after the backup."""

    records: list[Record]
    backups: list[Backup]
    owed: list[Outstanding]  # to those backups
    blocked: list[tuple[str, int]]


def restore(backup: Path, path: Path, disk: Disk, *, log: Path | None, key: Key | None, by: str, reason: str) -> None:
    """Make a set of a backup at ``path``, whole or not at all; see ``Collection.restore``."""
    backup, path = backup.absolute(), path.absolute()
    said = backup_mark(backup)
    if path.exists():
        raise NotAllowed(f"{path} exists; move it away, or name another place")
    with closing(Catalogue(backup / CATALOGUE, disk)) as source:
        _check_same(backup, source, said)
        old = _Old([], [], [], []) if log is None else _known(log, source.records(), disk)
    with _made_aside(path, disk) as aside:
        try:
            _copy_set(backup, aside, disk)
            note = Note(reason, by, {"backup": said["backup"], "backup_version": said["version"]})
            _bring_up(aside, Backup(said["backup"], str(backup), said["version"], said["at"]), old, disk, key, note)
            shutil.copymode(backup, aside)
            disk.remove(aside / MARK)
            disk.rename(aside, path)
            disk.sync_directory(path.parent)
        except BaseException:
            _take_back(aside, path)
            raise


def _check_same(backup: Path, source: Catalogue, said: dict[str, Any]) -> None:
    version = source.newest().version
    found = (source.meta.set_id, version, source.checkpoint(version).root)
    if found != (said["set_id"], said["version"], said["root"]):
        raise Damaged(f"{backup}: {CATALOGUE} and {MARK} speak of different sets or versions; restore another backup")


def _known(log: Path, own: Sequence[Record], disk: Disk) -> _Old:
    """From a file of records, or from the record of the old set."""
    if not log.is_dir():
        return _Old(later(read_log(log), own), [], [], [])
    with closing(Catalogue(log / CATALOGUE, disk)) as old:
        owed = [one for one in old.outstanding() if one.what == "backup"]
        blocked = old.ask("SELECT fingerprint, version FROM blocked")
        return _Old(later(old.records(), own), old.backups(), owed, blocked)


def _bring_up(aside: Path, backup: Backup, old: _Old, disk: Disk, key: Key | None, note: Note) -> None:
    """Re-apply what came after, in one transaction; files without the rows that are erased or given up by it."""
    with closing(Catalogue(aside / CATALOGUE, disk)) as copy:
        copy.ask("PRAGMA journal_mode = WAL")
        gone = sorted(bytes_gone(old.records))
        files = upkeep.files_of(copy, gone)
        moved = upkeep.rewritten(copy, Segments(aside / SEGMENTS, copy.meta, disk), files, without=gone)
        owed = [*copy.outstanding(), *old.owed]
        backups = [*old.backups, *copy.backups()]
    with closing(connect(aside / CATALOGUE)) as db:
        db.execute("BEGIN IMMEDIATE")
        record = bring_up(db, copy.meta, old.records, note, key)
        change = Change(db, "", Note(), key=None, meta=copy.meta)
        for one in _of_the_place(owed):
            change.settled(one.what, one.name)
        change.replace(files, moved)
        change.keep_out(old.blocked)
        change.owe("journal", CATALOGUE, record.version)
        _bring_debts(change, backup, backups, owed, record.version if _erases(old.records, owed) else None)
        disk.commit(db)


def _erases(records: Sequence[Record], owed: Sequence[Outstanding]) -> bool:
    """Whether the restore re-applies an erasure, from the log or from what was taken out of the backup."""
    return any(r.erased or r.state == "erased" for r in records) or any(o.what in ("row", "claim") for o in owed)


def _bring_debts(
    change: Change, backup: Backup, backups: Sequence[Backup], owed: Sequence[Outstanding], erased: int | None
) -> None:
    """Note the backups that there are, this one where it lies now, and what is owed to them."""
    before = {known.path for known in backups if known.id == backup.id} - {backup.path}
    for known in [*backups, backup]:
        change.backed_up(*known)
        if erased is not None and known.path not in before:
            change.owe("backup", known.path, erased)
    for one in owed:
        if one.what == "backup":
            change.settled("backup", one.name) if one.name in before else None
            change.owe("backup", backup.path if one.name in before else one.name, one.version)

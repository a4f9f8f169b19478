"""A disk that fails, in any call of a change: the caller is told, nothing changed, and the next change works."""

import errno
import hashlib
import os
import resource
import sqlite3
from contextlib import closing, contextmanager

import numpy as np
import pytest

from negindex import Collection
from negindex.errors import Locked
from negindex.segment import _same_bytes
from negindex.testing import FailingDisk, ShortDisk, points
from negindex.verify import verify

SHAPE = (8,)
ADD = ["write", "sync", "rename", "sync_directory", "commit"]
REPORTED = [point for point in points(ADD) if point != (5, "after")]  # after the commit it is in force


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float16)


def files(col):
    return list((col.path / "segments").iterdir())


@pytest.fixture
def three(tmp_path):
    """Rows a, b and c in force at version 1."""
    col = Collection.create(tmp_path / "set", SHAPE, "pixels")
    col.add(rows(3), ["a", "b", "c"])
    return col


@contextmanager
def nothing_changed(col):
    def state(one):
        return one.versions(), one.source_keys(), one.digests(), one.segments()

    before = state(col)
    yield
    assert state(col) == state(Collection.open(col.path)) == before
    assert len(files(col)) == len(col.segments())


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("at", "when"), REPORTED)
def test_an_add_that_fails_says_so_and_changes_nothing(three, at, when, error):
    col = Collection.open(three.path, disk=FailingDisk(at, when, error))
    with nothing_changed(col):
        with pytest.raises(OSError, match=os.strerror(error)) as refused:
            col.add(rows(2, seed=1), ["d", "e"])
        assert len(files(col)) == 1 + (ADD[at - 1] == "commit")  # a finished file waits for the sweep
    assert refused.value.errno == error
    assert col.add(rows(2, seed=1), ["d", "e"]) == 2  # there is room again
    assert len(Collection.open(three.path)) == 5


def test_a_failure_at_a_later_file_of_one_add_changes_nothing(three, monkeypatch):
    monkeypatch.setattr("negindex.store.SEGMENT_BYTES", 1)
    col = Collection.open(three.path, disk=FailingDisk(at=10))
    with nothing_changed(col), pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        col.add(rows(3, seed=1), ["d", "e", "f"])
    assert col.add(rows(3, seed=1), ["d", "e", "f"]) == 2


def test_no_byte_is_left_out_of_the_comparison():
    for count in range(20):  # eight are compared as one number, and the last few by themselves
        given = np.arange(count, dtype=np.uint8)
        assert _same_bytes(given.copy(), given)
        assert not _same_bytes(np.arange(count + 1, dtype=np.uint8), given)
        for place in range(count):
            kept = given.copy()
            kept[place] ^= 1
            assert not _same_bytes(kept, given)


def test_bytes_that_the_disk_did_not_keep_are_noticed_before_the_commit(three):
    col = Collection.open(three.path, disk=ShortDisk(at=1))
    with nothing_changed(col), pytest.raises(OSError, match="did not keep what was written"):
        col.add(rows(50, seed=1), [f"more-{i}" for i in range(50)])
    assert col.add(rows(1, seed=1), ["d"]) == 2


@pytest.mark.parametrize("part", [8, 24, 1 << 20])
def test_a_file_that_is_written_in_parts_is_whole_and_its_digest_is_on_record(three, monkeypatch, part):
    monkeypatch.setattr("negindex.segment._PART", part)
    three.add(rows(50, seed=1), [f"more-{i}" for i in range(50)], embeddings=rows(50, seed=2))
    (file,) = [one for one in three.segments() if one.rows == 50]
    assert file.sha256 == hashlib.sha256((three.path / "segments" / file.file).read_bytes()).hexdigest()
    assert not verify(three.path).faults


def test_a_disk_that_fails_while_the_rest_of_a_file_is_written_changes_nothing(three, monkeypatch):
    monkeypatch.setattr("negindex.segment._PART", 16)
    disk = FailingDisk(1, "before", errno.EIO, only="sync")
    col = Collection.open(three.path, disk=disk)
    with nothing_changed(col), pytest.raises(OSError, match=os.strerror(errno.EIO)):
        col.add(rows(50, seed=1), [f"more-{i}" for i in range(50)])
    assert disk.calls[:2] == ["write", "sync"]  # before the whole was written, so before its last sync
    assert col.add(rows(50, seed=1), [f"more-{i}" for i in range(50)]) == 2


def test_a_withdrawal_that_fails_says_so_and_changes_nothing(three):
    col = Collection.open(three.path, disk=FailingDisk(at=1))
    with nothing_changed(col), pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        col.withdraw(["b"], "mistaken")
    assert col.withdraw(["b"], "mistaken") == 2


@pytest.mark.parametrize("at", [1, 2])
def test_a_create_that_fails_leaves_the_place_free(tmp_path, at):
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        Collection.create(tmp_path / "set", SHAPE, "pixels", disk=FailingDisk(at))
    assert not (tmp_path / "set").exists()
    assert len(Collection.create(tmp_path / "set", SHAPE, "pixels")) == 0


@contextmanager
def files_of_at_most(size):
    """What a full disk does to every write, SQLite's own among them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_record_that_cannot_grow_says_so_and_changes_nothing(three):
    col = Collection.open(three.path)
    for i in range(40):  # the write-ahead log outgrows the next segment
        col.add(rows(1, seed=i), [f"more-{i}"])
    log = (three.path / "catalogue.sqlite-wal").stat().st_size
    with nothing_changed(col), pytest.raises(OSError, match="try again"), files_of_at_most(log + 100):
        col.add(rows(1, seed=99), ["d"])
    assert col.add(rows(1, seed=99), ["d"]) == 42


def test_a_record_that_another_program_holds_is_locked(three, monkeypatch):
    monkeypatch.setattr("negindex.schema.WAIT", 0.05)
    other = sqlite3.connect(three.path / "catalogue.sqlite", isolation_level=None)
    with Collection.open(three.path) as col, closing(other) as db:
        db.execute("BEGIN IMMEDIATE")
        with nothing_changed(col), pytest.raises(Locked, match="held by another program"):
            col.withdraw(["b"], "mistaken")
        db.execute("ROLLBACK")
        assert col.withdraw(["b"], "mistaken") == 2

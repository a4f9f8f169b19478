"""Files that are written before their version's turn: named when it comes, and otherwise as if they had never been."""

import os
import signal
import time

import numpy as np
import pytest
from forked import PROCESSES

from negindex import Collection
from negindex.errors import DuplicateKey
from negindex.sampler import ingest as ingesting
from negindex.sampler.ingest import ingest
from negindex.sampler.sources import Block
from negindex.testing import FailingDisk

SHAPE, ROWS = (8, 8), 64


def rows(seed):
    return np.random.default_rng(seed).normal(size=(ROWS, *SHAPE)).astype(np.float16)


def keys(name):
    return [f"{name}/{place}" for place in range(ROWS)]


def begun(collection, name, seed):
    """Rows whose file is written, but for their ids."""
    given = collection.begun(collection.incoming(rows(seed), keys(name)))
    whole = rows(seed).nbytes + ROWS * 8
    while not any(size >= whole for size in unfinished(collection).values()):
        time.sleep(0.002)
    return given


def unfinished(collection):
    """{name: bytes} of the files that nothing names."""
    named = {file.file for file in collection.segments()}
    there = os.scandir(collection.path / "segments")
    return {entry.name: entry.stat().st_size for entry in there if entry.name not in named}


@pytest.fixture(autouse=True)
def _many(monkeypatch):
    """So few rows count as many."""
    monkeypatch.setattr("negindex.store._BESIDE", 1)


@pytest.fixture
def collection(tmp_path):
    return Collection.create(tmp_path / "a.set", SHAPE, "pixels")


def test_a_file_is_written_before_its_turn_and_named_when_it_comes(collection):
    given = begun(collection, "a", 1)
    assert (len(collection), collection.verify()) == (0, [])
    assert collection.add_incoming(given) == 1
    given.close()
    (file,) = collection.segments()
    assert file.file.startswith("000000000001-")
    assert unfinished(collection) == {}
    assert np.array_equal(collection.rows_under(keys("a")), rows(1))
    assert collection.verify() == []


def test_another_writer_comes_first_and_sweeps_no_file_that_is_being_written(collection):
    given = begun(collection, "a", 1)
    other = Collection.open(collection.path)
    assert len(unfinished(collection)) == 1, "opening it sweeps"
    assert other.add(rows(2), keys("b")) == 1
    assert collection.add_incoming(given) == 2
    assert sorted(collection.in_force()) == list(range(1, 2 * ROWS + 1))
    assert collection.in_force()[ROWS + 1] == "a/0", "ids are given when the turn comes"
    assert [file.file[:12] for file in collection.segments()] == ["000000000001", f"{ROWS + 1:012}"]
    assert np.array_equal(other.rows_under(keys("a")), rows(1))
    assert Collection.open(collection.path).verify() == []


@pytest.mark.parametrize("held", [1, ROWS])
def test_a_file_begun_for_rows_that_are_there_already_is_given_up(collection, held):
    collection.add(rows(1)[:held], keys("a")[:held])
    given = begun(collection, "a", 1)
    collection.add_incoming(given)
    given.close()
    assert (len(collection), unfinished(collection), collection.verify()) == (ROWS, {}, [])


def test_a_refused_change_leaves_no_file(collection):
    collection.add(rows(2), keys("a"))
    given = begun(collection, "a", 1)
    with pytest.raises(DuplicateKey):
        collection.add_incoming(given)
    given.close()
    assert (collection.newest().version, unfinished(collection)) == (1, {})


def killed(path):
    """In a process of its own: it ends when a file is written, and has not come to its turn."""
    import negindex.store

    negindex.store._BESIDE = 1
    begun(Collection.open(path), "a", 1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_between_the_file_and_its_turn_leaves_nothing(collection):
    process = PROCESSES.Process(target=killed, args=(collection.path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(unfinished(collection)) == 1
    again = Collection.open(collection.path)
    assert (again.versions(), unfinished(again), again.verify()) == (collection.versions(), {}, [])
    assert again.add(rows(1), keys("a")) == 1


def blocks():
    return [Block(keys(str(place)), keys(str(place)), rows(place)) for place in range(6)]


@pytest.mark.parametrize(("call", "at", "when"), [("commit", 2, "before"), ("sync", 3, "before"), ("write", 3, "half")])
def test_a_failure_while_the_next_files_are_written_leaves_whole_versions_alone(tmp_path, monkeypatch, call, at, when):
    monkeypatch.setattr(ingesting, "READY_BYTES", 1)  # a version a block
    disk = FailingDisk(at, when, only=call)
    collection = Collection.create(tmp_path / "a.set", SHAPE, "pixels", disk=disk)
    with pytest.raises(OSError, match="No space"):
        ingest(collection, blocks())
    done = collection.newest().version
    assert done < 6
    assert len(collection) == done * ROWS
    assert not [name for name in unfinished(collection) if name.endswith(".aside")]
    again = Collection.open(collection.path)
    assert (unfinished(again), again.verify()) == ({}, [])
    assert ingest(again, blocks()).added == (6 - done) * ROWS
    assert (len(again), again.newest().version, again.verify()) == (6 * ROWS, 6, [])


def test_files_are_begun_while_rows_are_new_and_not_for_those_that_are_there(collection, monkeypatch):
    monkeypatch.setattr(ingesting, "READY_BYTES", 1)
    drafts, real = [], Collection.begun
    monkeypatch.setattr(Collection, "begun", lambda self, given: drafts.append(given.keys[0]) or real(self, given))
    ingest(collection, blocks())
    assert drafts == [f"{place}/0" for place in range(6)]
    ingest(collection, blocks())
    assert len(drafts) == 6
    assert (len(collection), unfinished(collection)) == (6 * ROWS, {})

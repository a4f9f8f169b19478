"""Several writers of one collection take turns, and lose nothing."""

import functools
import threading

import pytest
import torch
from forked import PROCESSES
from small_sets import SHAPE, rows, state

from negindex import Collection, NoiseLevel
from negindex.disk import writer_lock
from negindex.errors import Locked


def add_one_by_one(path, name, count):
    with Collection.open(path) as col:
        for i in range(count):
            col.add(rows(1, seed=i), [f"{name}-{i:02d}"])


def test_writers_in_several_processes_lose_nothing(three):
    names = ["left", "right"]
    writers = [PROCESSES.Process(target=add_one_by_one, args=(three.path, name, 25)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert three.source_keys() == sorted(["a", "b", "c"] + [f"{name}-{i:02d}" for name in names for i in range(25)])
    assert [v.version for v in three.versions()] == list(range(52))
    assert len(three.digests()) == 53


def test_threads_may_share_a_handle(three):
    def work(name):
        for i in range(5):
            three.add(rows(1, seed=i), [f"{name}{i}"])
            three.posterior(torch.zeros(1, *SHAPE), NoiseLevel(1.0, 1.0))

    threads = [threading.Thread(target=work, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(three) == 18


def test_a_second_writer_is_told_that_it_must_wait(three, monkeypatch):
    monkeypatch.setattr("negindex.store.writer_lock", functools.partial(writer_lock, wait=0.05))
    before = state(three)
    with writer_lock(three.path):
        with pytest.raises(Locked, match=r"written by another process.*try again"):
            three.add(rows(1), ["x"])
        with pytest.raises(Locked):
            three.withdraw(["a"], "in vain")
        assert state(Collection.open(three.path)) == before  # reading waits for nobody
    assert three.add(rows(1), ["x"]) == 2

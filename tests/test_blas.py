"""numpy uses one thread while a look-up by an index lasts, and as many as before afterwards."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from mixtures import kernel, learn_from_few, noised, rows

from negindex import Exact, Mixture, NoiseLevel, mixture
from negindex.blas import Library, OneThread, open_blas


class Counted:
    """A library that does no more than count."""

    def __init__(self, threads: int) -> None:
        self.threads, self.said = threads, []

    def library(self) -> Library:
        return Library(lambda: self.threads, self.set)

    def set(self, threads: int) -> None:
        self.threads = threads
        self.said.append(threads)


def test_one_thread_inside_and_as_many_as_before_outside():
    one, other = Counted(8), Counted(3)
    alone = OneThread(lambda: [one.library(), other.library()])
    with alone:
        assert (one.threads, other.threads) == (1, 1)
    assert (one.threads, other.threads) == (8, 3)


def test_an_error_inside_gives_the_threads_back():
    counted = Counted(8)
    with pytest.raises(KeyError), OneThread(lambda: [counted.library()]):
        raise KeyError
    assert counted.threads == 8


def test_the_last_to_leave_gives_the_threads_back():
    counted = Counted(8)
    alone, barrier = OneThread(lambda: [counted.library()]), Barrier(4)

    def look(_: int) -> int:
        with alone:
            barrier.wait()
            with alone:
                return counted.threads

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(look, range(4))) == [1, 1, 1, 1]
    assert counted.said == [1, 8]


def test_a_child_has_the_threads_that_its_parent_had_outside():
    counted = Counted(8)
    alone = OneThread(lambda: [counted.library()])
    os.register_at_fork(after_in_child=alone.after_fork)
    with alone:
        child = os.fork()
        if not child:
            outside = counted.threads
            with alone:
                inside = counted.threads
            os._exit(10 * inside + outside)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 18
    assert counted.threads == 8


@pytest.fixture
def libraries():
    """What numpy multiplies by, allowed two threads."""
    found = open_blas()
    if not found:
        pytest.skip("numpy does not multiply by an OpenBLAS with threads of its own here")
    before = [library.threads() for library in found]
    for library in found:
        library.set(2)
    yield found
    for library, count in zip(found, before, strict=True):
        library.set(count)


def test_a_look_up_by_an_index_takes_one_thread(libraries, monkeypatch):
    seen, summed = [], mixture.summed

    def watched(*args):
        seen.append([library.threads() for library in libraries])
        return summed(*args)

    monkeypatch.setattr(mixture, "summed", watched)
    learn_from_few(monkeypatch, (1.0,))
    given = rows(1000)
    negatives = Mixture.build(Exact(given), kernel(given), scan_elements=0)
    negatives.posterior(noised(given[:1], 1.0, 0), NoiseLevel(1.0, 1.0), kernel=negatives.kernel)
    assert seen == [[1] * len(libraries)]
    assert [library.threads() for library in libraries] == [2] * len(libraries)

"""A disk that is full, broken or lying at any one call of a takedown: told, nothing changed, and the next try works."""

import errno
import os
import shutil

import pytest
from takedown_steps import CHANGES, TIER, everything, prepared

from negindex import Collection
from negindex.testing import FailingDisk, FaultyDisk, ShortDisk, points

NAMES = list(CHANGES)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("negindex.upkeep.TIER", TIER)
        yield prepared(tmp_path_factory.mktemp("faults") / "set")


@pytest.fixture(scope="module")
def outcomes(template):
    """{change: (the calls that it makes, everything before it, everything after it)}."""
    return {name: _rehearsed(template, name) for name in NAMES}


def _rehearsed(template, name):
    path = template.with_name("rehearsal")
    shutil.copytree(template, path)
    disk = FaultyDisk()
    col = Collection.open(path, disk=disk)
    before = everything(col)
    assert disk.calls == []
    CHANGES[name](col)
    calls = list(disk.calls)
    after = everything(Collection.open(path))
    shutil.rmtree(path)
    return calls, before, after


def faults(calls):
    """A disk for every call and moment; a commit that went through and then fails is none of them."""
    for at, when in points(calls):
        if (calls[at - 1], when) != ("commit", "after"):
            yield FailingDisk(at, when, errno.ENOSPC)
    yield from (FailingDisk(at, "before", errno.EIO) for at in range(1, len(calls) + 1))
    yield from (ShortDisk(at) for at, name in enumerate(calls, 1) if name == "write")


def tried(name, col):
    """What the change was answered: the system's error and its words, or None."""
    try:
        CHANGES[name](col)
    except OSError as error:  # the error itself would keep files open by its traceback
        return error.errno, str(error)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_a_change_on_a_failing_disk_is_refused_whole_and_the_next_try_works(template, outcomes, tmp_path, name):
    calls, before, after = outcomes[name]
    assert calls.count("commit") >= 1
    for place, disk in enumerate(faults(calls)):
        here = f"{disk.when} call {disk.at} ({calls[disk.at - 1]}) of {calls}"
        path = tmp_path / str(place)
        shutil.copytree(template, path)
        col = Collection.open(path, disk=disk)
        error = tried(name, col)
        found = everything(Collection.open(path))
        assert everything(col) == found, here
        if error is None:  # it failed at what can wait, such as merging files
            assert found == after, here
        else:
            assert found == before, here
            assert error[0] == getattr(disk, "error", errno.EIO), here
            assert os.strerror(error[0]) in error[1] or "did not keep what was written" in error[1], here
            assert tried(name, col) is None, here
        assert everything(col) == after, here
        assert col.settle() == [], here
        assert {f.name for f in (path / "segments").iterdir()} >= {f.file for f in col.segments()}
        col.close()
        swept = Collection.open(path)
        assert {f.name for f in (path / "segments").iterdir()} == {f.file for f in swept.segments()}, here
        swept.close()
        shutil.rmtree(path)

"""kill -9 at every point of the write order: the old version or the new one, and nothing acknowledged is lost."""

import random
import signal
import time

import numpy as np
import pytest
import torch
from forked import PROCESSES

from negindex import Collection, Exact, NoiseLevel
from negindex.errors import NoCollection
from negindex.testing import FaultyDisk, KillingDisk, points

SHAPE = (4,)
ONE_FILE = ["write", "sync", "rename", "sync_directory"]
WRITE_ORDER = {
    "create": ["sync_directory", "rename", "sync_directory"],
    "add": [*ONE_FILE, "commit"],
    "add in three files": [*ONE_FILE * 3, "commit"],
    "withdraw": ["commit"],
}

OLD = {"a": 0, "c": 2}  # source key: the row's number
NEW = {
    "add": OLD | {"b": 5, "d": 3, "e": 4},
    "add in three files": OLD | {"b": 5, "d": 3, "e": 4},
    "withdraw": {"c": 2},
}


def rows(*numbers):
    return np.stack([np.random.default_rng(n).normal(size=SHAPE).astype(np.float16) for n in numbers])


def change(action, path, disk):
    if action == "create":
        return Collection.create(path, SHAPE, "pixels", disk=disk).newest().version
    col = Collection.open(path, disk=disk)
    if action == "withdraw":
        return col.withdraw(["a"], "mistaken")
    return col.add(rows(5, 3, 4), ["b", "d", "e"], label="late")


def killed(action, path, at, when, ack):
    """In a process of its own: the change on a killing disk, then an acknowledgement that must not come."""
    if action == "add in three files":
        import negindex.store

        negindex.store.SEGMENT_BYTES = 1
    ack.send(change(action, path, KillingDisk(at, when)))


def run(target, *args):
    """The started process, and the end of the pipe that it acknowledges into."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=target, args=(*args, theirs))
    process.start()
    theirs.close()
    return process, ours


def acknowledged(ours):
    try:
        while True:
            yield ours.recv()
    except EOFError:
        ours.close()


def holds(col, expected):
    """Keys, rows and files are those of one version, whole."""
    assert col.source_keys() == sorted(expected)
    x_t, level = torch.zeros(1, *SHAPE), NoiseLevel(1.0, 1.0)
    told, true = col.posterior(x_t, level), Exact(rows(*expected.values())).posterior(x_t, level)
    assert len(col) == told.count == len(expected)
    assert torch.allclose(told.log_norm, true.log_norm)
    assert torch.allclose(told.mean, true.mean)


def files(path):
    return sorted(file.name for file in (path / "segments").iterdir())


@pytest.fixture
def old(tmp_path):
    """Three rows, one of them withdrawn."""
    col = Collection.create(tmp_path / "set", SHAPE, "pixels")
    col.add(rows(0, 1), ["a", "b"])
    col.add(rows(2), ["c"])
    col.withdraw(["b"], "mistaken")
    return col


@pytest.mark.parametrize("action", WRITE_ORDER)
def test_the_write_order_is_the_documented_one(old, monkeypatch, action):
    monkeypatch.setattr("negindex.store.SEGMENT_BYTES", 1 if "three" in action else 1 << 30)
    disk = FaultyDisk()
    change(action, old.path.with_name("new") if action == "create" else old.path, disk)
    assert disk.calls == WRITE_ORDER[action]


KILLS = [(action, at, when) for action in NEW for at, when in points(WRITE_ORDER[action])]


@pytest.mark.parametrize(("action", "at", "when"), KILLS)
def test_a_change_that_is_killed_happened_wholly_or_not_at_all(old, action, at, when):
    held, before = old.snapshot(), old.versions()
    process, ours = run(killed, action, old.path, at, when)
    assert list(acknowledged(ours)) == []
    process.join()
    assert process.exitcode == -signal.SIGKILL

    committed = (at, when) == (len(WRITE_ORDER[action]), "after")
    again = Collection.open(old.path)
    holds(again, NEW[action] if committed else OLD)
    holds(old, NEW[action] if committed else OLD)  # a handle that was open all the while
    assert again.versions()[: len(before)] == before
    assert len(again.versions()) == len(before) + committed
    assert files(old.path) == sorted(segment.file for segment in again.segments())
    assert (len(held), held.version) == (2, 3)

    if not committed:
        assert change(action, old.path, None) == 4
    holds(again, NEW[action])
    again.add(rows(8), ["after"])
    holds(Collection.open(old.path), NEW[action] | {"after": 8})


@pytest.mark.parametrize(("at", "when"), points(WRITE_ORDER["create"]))
def test_a_create_that_is_killed_made_a_whole_collection_or_none(tmp_path, at, when):
    path = tmp_path / "set"
    process, ours = run(killed, "create", path, at, when)
    assert list(acknowledged(ours)) == []
    process.join()
    assert process.exitcode == -signal.SIGKILL

    renamed = at == 3 or (at, when) == (2, "after")
    assert path.exists() == renamed
    if not renamed:
        with pytest.raises(NoCollection):
            Collection.open(path)
        Collection.create(path, SHAPE, "pixels")
    col = Collection.open(path)
    assert [v.version for v in col.versions()] == [0]
    col.add(rows(1), ["a"])
    holds(col, {"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def work(path, ack):
    """Rows come one by one, and every other one goes; each change is acknowledged."""
    col = Collection.open(path)
    for i in range(10_000):
        ack.send(("add", i, col.add(rows(i), [f"row-{i}"])))
        if i % 2:
            ack.send(("withdraw", i, col.withdraw([f"row-{i}"], "odd")))


def expected(changes):
    numbers = {i for action, i in changes if action == "add"} - {i for action, i in changes if action == "withdraw"}
    return {f"row-{i}": i for i in numbers}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_was_acknowledged_survives_a_kill_at_any_instant(tmp_path, seed):
    col = Collection.create(tmp_path / "set", SHAPE, "pixels")
    random.seed(seed)
    process, ours = run(work, col.path)
    seen, enough = [], random.randint(1, 20)
    for action, i, version in acknowledged(ours):
        seen.append((action, i))
        assert version == len(seen)
        if len(seen) == enough:
            time.sleep(random.uniform(0, 0.01))
            process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    again = Collection.open(col.path)
    last = again.newest()
    assert last.version - len(seen) in (0, 1)  # at most the one change that was under way
    if last.version > len(seen):
        number = seen[-1][1] + (seen[-1][0] == "withdraw" or seen[-1][1] % 2 == 0)
        seen.append((last.action, number))
    holds(again, expected(seen))
    assert files(col.path) == sorted(segment.file for segment in again.segments())
    again.add(rows(8), ["after"])
    holds(Collection.open(col.path), expected(seen) | {"after": 8})

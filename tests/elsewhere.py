"""What tests of rows elsewhere do in processes of their own, which import this and little else."""

import fcntl

import numpy as np
import torch

from negindex import Collection
from negindex.testing.faults import KillingDisk

SHAPE = (4, 32, 32)  # 8 KiB a row
CHANGES = {
    "move": lambda col, to: col.move_rows(f"file://{to}"),
    "add": lambda col, to: col.add(rows(2, seed=4, shape=(8,)), ["late-1", "late-2"]),
    "compact": lambda col, to: col.compact(),
    "back": lambda col, to: col.move_rows(None),
}


def rows(count, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float16)


def size_of(folder):
    """Bytes of the cache on the disk, in whole pages, while nobody changes it."""
    with open(folder / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return sum(-(-size // 4096) * 4096 for size in found)


def killed(folder, name, at, when):
    """The change on a disk that kills at one call."""
    CHANGES[name](Collection.open(folder / "set", disk=KillingDisk(at, when)), folder / "elsewhere")


def looked_up(path, seed, ack):
    """In a process of its own: random rows, and the largest that the cache became."""
    held, random_ = Collection.open(path).snapshot(), np.random.default_rng(seed)
    expected, largest = rows(300), 0
    for _ in range(25):
        places = random_.integers(0, 300, random_.integers(1, 6))
        found = held.take(torch.from_numpy(places)).rows.numpy().reshape(-1, *SHAPE)
        assert np.array_equal(found, expected[places])
        largest = max(largest, size_of(path / "cache"))
    ack.send(max(largest, size_of(path / "cache")))

"""kill -9 at any point of a takedown: no acknowledged step is lost, nothing withdrawn comes back, and nothing is half.

A process takes a collection through random operations, acknowledging each; its disk kills it at a chosen call. What is
then on the disk must be what the model says after the acknowledged operations, or after one more, wholly.
"""

import copy
import random
import signal
import time

import pytest
from claim_machine import Machine
from claim_model import SHAPE
from forked import PROCESSES

from negindex import Collection
from negindex.testing import KillingDisk

BEFORE, AFTERWARDS = 30, 8  # operations
POINTS = [  # the call at which the process ends, the highest number of its kind, and when
    ("write", 30, ("before", "half", "after")),
    ("sync", 30, ("before", "after")),
    ("rename", 30, ("before", "after")),
    ("sync_directory", 30, ("before", "after")),
    ("commit", 30, ("before", "after")),
    ("remove", 8, ("before", "after")),
    ("scrub", 3, ("before", "after")),
    ("any instant", 40, ("after",)),
]
TAKEDOWNS = {  # operation: how often
    "add": 10, "withdraw": 6, "erase": 5, "open": 10, "amend": 2, "attach": 4, "accept": 12, "decide": 12,
    "erase_claim": 8, "hold": 3, "compact": 3, "forget": 3, "reopen": 1,
}  # fmt: skip


def operate(machine, chance):
    getattr(machine, chance.choices(list(TAKEDOWNS), TAKEDOWNS.values())[0])(chance)


def work(machine, chance, path, disk, ack):
    """In a process of its own, until it is killed."""
    machine.col, machine.disk = Collection.open(path, disk=disk), disk
    disk.calls.clear()
    for i in range(1000):
        operate(machine, chance)
        ack.send(i)


def killed(machine, chance, path, seed):
    """How many operations a killed process acknowledged."""
    name, most, whens = POINTS[seed % len(POINTS)]
    kill, at_a_call = random.Random(f"kill {seed}"), name != "any instant"
    nth = kill.randint(1, most)
    disk = KillingDisk(nth if at_a_call else 0, kill.choice(whens), name)
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=work, args=(machine, chance, path, disk, theirs))
    process.start()
    theirs.close()
    count = 0
    while _told(ours):
        count += 1
        if not at_a_call and count == nth:
            time.sleep(kill.uniform(0, 0.01))
            process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return count


def _told(ours):
    try:
        ours.recv()
    except EOFError:
        return False
    return True


def holds(machine):
    """The collection is what the machine's model says: rows, claims, versions, log, every old version."""
    machine.check()
    machine.check_all()
    machine.check_history()
    assert machine.col.settle() == []
    files = {file.name for file in (machine.col.path / "segments").iterdir()}
    assert files == {file.file for file in machine.col.segments()}


def crash(tmp_path, seed):
    chance = random.Random(seed)
    path = tmp_path / "set"
    machine = Machine(Collection.create(path, SHAPE, "pixels"))
    for _ in range(BEFORE):
        operate(machine, chance)
    machine.check()
    machine.col.close()
    machine.col = None
    count = killed(machine, copy.deepcopy(chance), path, seed)

    for _ in range(count):
        operate(machine, chance)
    before = len(machine.model.history)
    further, later = copy.deepcopy((machine, chance))
    operate(further, later)
    col = Collection.open(path)
    versions = len(col.versions())
    assert versions in (before, len(further.model.history))
    if versions != before:
        machine, chance = further, later
    assert col.outstanding() == []
    machine.col = col
    holds(machine)
    machine.compact(chance)  # an unfinished one has given up some rows that were never in force, or none
    for _ in range(AFTERWARDS):
        operate(machine, chance)
    holds(machine)


@pytest.mark.parametrize("seed", range(50))
def test_a_takedown_that_is_killed_happened_wholly_or_not_at_all(tmp_path, seed):
    crash(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1500))
def test_takedowns_that_are_killed_happened_wholly_or_not_at_all(tmp_path, seed):
    crash(tmp_path, seed)

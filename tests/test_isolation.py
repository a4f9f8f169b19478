"""Four processes ask while one changes the set: every answer is exact for the version that it names.

The writer logs what was in force at each version; a reader computes the answer anew from that, by other means.
"""

import json
import random
import time

import numpy as np
import pytest
import torch
from claim_machine import WEIGHTS, Machine, rows
from claim_model import SHAPE
from forked import PROCESSES

from negindex import Collection, Exact, NoiseLevel, Snapshot
from negindex.errors import EmptySet

READERS = 4
LEVEL = NoiseLevel(0.8, 0.6)


def write(path, ledger, seed, stop):
    """Random changes without rest; each version's {id: number} is a line of the ledger once it is there."""
    machine, chance = Machine(Collection.open(path)), random.Random(seed)
    names = [name for name in WEIGHTS if name not in ("keep", "let_go", "look_back")]
    weights, told = [WEIGHTS[name] for name in names], 1
    with open(ledger, "a", encoding="utf-8") as lines:
        while not stop.is_set():
            getattr(machine, chance.choices(names, weights)[0])(chance)
            for version in range(told, len(machine.model.history)):
                print(json.dumps([version, machine.model.history[version]]), file=lines, flush=True)
            told = len(machine.model.history)


class Ledger:
    """{version: {id: number}} as the writer told it."""

    def __init__(self, path):
        self._lines, self._rest, self._known = open(path, encoding="utf-8"), "", {0: {}}  # noqa: SIM115

    def __getitem__(self, version):
        deadline = time.monotonic() + 20
        while version not in self._known:
            assert time.monotonic() < deadline, f"version {version} is in no line of the ledger"
            time.sleep(0.001)
            *whole, self._rest = (self._rest + self._lines.read()).split("\n")
            for number, held in map(json.loads, whole):
                self._known[number] = {int(i): row for i, row in held.items()}
        return self._known[version]


def read(path, ledger, seed, stop, ack):
    """Ask without rest, at the newest version and at those that are held from before; then say how often."""
    col, known, chance, held = Collection.open(path), Ledger(ledger), np.random.default_rng(seed), []
    asked, seen, last = 0, set(), -1
    while not stop.is_set() or not asked:
        newest = col.pin()
        for negatives in (col, newest, *held):
            version = exact(negatives, known, chance)
            assert negatives is not newest or version == newest.version
            asked, seen = asked + 1, seen | {version}
        assert newest.version >= last, "versions only grow"
        last = newest.version
        if len(held) < 3 or chance.random() < 0.1:
            held = [*held[-2:], newest]
    ack.send((asked, len(seen)))


def exact(negatives, known, chance):
    """One question; its answer is that of the rows of the version that it names. Returns the version."""
    x_t = torch.from_numpy(chance.normal(size=(2, *SHAPE)))
    try:
        told = negatives.posterior(x_t, LEVEL)
    except EmptySet:
        empty = negatives.version if isinstance(negatives, Snapshot) else 0
        assert known[empty] == {}
        return empty
    (origin,) = told.origins
    truth = known[origin.version]
    ids, numbers = list(truth), list(truth.values())
    true = Exact(rows(numbers), ids).posterior(x_t, LEVEL)
    assert told.count == len(truth)
    assert torch.allclose(told.log_norm, true.log_norm, rtol=1e-11, atol=1e-11)
    assert torch.allclose(told.mean, true.mean, rtol=1e-11, atol=1e-11)
    assert set(told.heaviest.ids.flatten().tolist()) - {-1} <= set(ids)
    return origin.version


def together(tmp_path, seconds, seed=0):
    """[(answers, different versions)] of the readers, all of them exact, and the versions that were made."""
    path, ledger = tmp_path / "set", tmp_path / "ledger"
    Collection.create(path, SHAPE, "pixels").close()
    ledger.touch()
    stop, pipes = PROCESSES.Event(), [PROCESSES.Pipe(duplex=False) for _ in range(READERS)]
    started = [PROCESSES.Process(target=write, args=(path, ledger, seed, stop))]
    started += [
        PROCESSES.Process(target=read, args=(path, ledger, i, stop, theirs)) for i, (_, theirs) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    for _, theirs in pipes:
        theirs.close()
    time.sleep(seconds)
    stop.set()
    found = [ours.recv() for ours, _ in pipes]
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * len(started)
    return found, Collection.open(path).newest().version


def check(found, versions):
    """Something happened to be exact about; how much of it is the machine's affair."""
    assert versions > 2
    assert all(answers for answers, _ in found)
    assert max(different for _, different in found) > 1


def test_every_answer_is_exact_for_the_version_that_it_names(tmp_path):
    check(*together(tmp_path, seconds=10))


@pytest.mark.long
def test_every_answer_is_exact_for_the_version_that_it_names_at_length(tmp_path):
    check(*together(tmp_path, seconds=30, seed=1))

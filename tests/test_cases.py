"""What happened to people who do this job elsewhere, each tried here; the numbers are those of the list of cases."""

import os
import sqlite3
from contextlib import closing

import h5py
import numpy as np
import pytest
import torch
from forked import PROCESSES
from small_sets import SHAPE, rows

from negindex import Collection, Exact, NoiseLevel, Union
from negindex.errors import Damaged, EmptySet

AT_A_ROW = NoiseLevel(1.0, 1e-3)


def engines(col, given):
    """Every way to ask: the collection, a snapshot, a fresh handle, a label, a union, the rows in memory."""
    ids = sorted(col.digests()) if len(col) else []
    yield from (col, col.snapshot(), Collection.open(col.path), col.where(label="all"), Union([col]))
    yield Exact(given, ids)


# -- 1: a bank with one hash matches nothing -----------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_case_1_each_row_of_a_small_set_finds_itself(col, count):
    given = rows(count)
    col.add(given, [f"row-{i}" for i in range(count)], label="all")
    x = torch.from_numpy(given)
    for engine in engines(col, given):
        near, told = engine.near(x, radius=0.0), engine.posterior(x, AT_A_ROW)
        assert near.ids[:, 0].tolist() == told.heaviest.ids[:, 0].tolist() == list(range(1, count + 1))
        assert torch.equal(near.rows[:, 0], x.double())
        assert torch.allclose(told.mean, x.double(), atol=1e-12)


@pytest.mark.parametrize("emptied", [False, True])
def test_case_1_an_empty_set_is_a_named_state(col, emptied):
    if emptied:
        col.add(rows(2), ["a", "b"], label="all")
        col.withdraw(["a", "b"], "all of them")
    for engine in engines(col, rows(0)):
        assert len(engine) == 0
        for ask in (
            lambda e=engine: e.posterior(torch.zeros(1, *SHAPE), AT_A_ROW),
            lambda e=engine: e.near(torch.zeros(1, *SHAPE), k=1),
        ):
            with pytest.raises(EmptySet, match="no row in force"):
                ask()


# -- 5: wrong results after removing ids; removal during a search is unsafe ----------------

N = 120


def ask_while_rows_go(path, begun, done, ack):
    """What is wrong, and how many looks; begun and done: flags of the rows whose removal has."""
    x, wrong, looks = torch.from_numpy(rows(N)), [], 0
    with Collection.open(path) as col:
        ways = [lambda: col, col.pin, lambda: Union([col]).pin(), lambda: col.where(label="all")]
        while not all(done) or not looks:
            for way in ways:
                gone = {i + 1 for i in range(N) if done[i]}
                try:
                    told = way().near(x, radius=0.0)
                except EmptySet:
                    found = set()
                else:
                    found = set(told.ids[told.found].tolist())
                sure = {i + 1 for i in range(N) if not begun[i]}
                wrong += [(sorted(found & gone), sorted(sure - found))] if found & gone or sure - found else []
                looks += 1
    ack.send((wrong[:3], looks))


def test_case_5_removed_rows_never_answer_and_the_rest_find_themselves_with_readers_running(col):
    for start in range(0, N, 30):  # several files
        col.add(rows(N)[start : start + 30], [str(i) for i in range(start, start + 30)], label="all")
    begun, done = PROCESSES.Array("b", N, lock=False), PROCESSES.Array("b", N, lock=False)
    pipes = [PROCESSES.Pipe(duplex=False) for _ in range(2)]
    readers = [PROCESSES.Process(target=ask_while_rows_go, args=(col.path, begun, done, theirs)) for _, theirs in pipes]
    for reader in readers:
        reader.start()
    order = np.random.default_rng(0).permutation(N)
    for turn, some in enumerate(np.array_split(order, 40)):
        for i in some:
            begun[i] = 1
        change = (col.erase, col.withdraw)[turn % 4 > 0]
        change([str(i) for i in some], "at random")
        for i in some:
            done[i] = 1
        if turn % 10 == 9:
            col.compact()
    found = [ours.recv() for ours, _ in pipes]
    for reader in readers:
        reader.join()
    assert [wrong for wrong, _ in found] == [[], []]
    assert all(looks >= 4 for _, looks in found)
    assert [reader.exitcode for reader in readers] == [0, 0]
    with pytest.raises(EmptySet):
        col.near(torch.zeros(1, *SHAPE), k=1)


# -- 6: a removal takes longer the larger the set ------------------------------------------


def steps_of_the_record(col, change):
    """How many instructions SQLite ran for a change: the same at every run, on every machine."""
    count = [0]
    db = col._catalogue._db
    db.set_progress_handler(lambda: count.__setitem__(0, count[0] + 1), 1)
    change()
    db.set_progress_handler(None, 0)
    return count[0]


def test_case_6_withdrawing_and_adding_do_no_more_work_in_a_larger_set(tmp_path):
    """The benchmark, `negindex bench takedown`, has the times; this counts."""
    found = {}
    for size in (100, 5000):
        col = Collection.create(tmp_path / str(size), (4,), "pixels")
        col.add(np.random.default_rng(size).normal(size=(size, 4)), [f"row-{i}" for i in range(size)])
        adding = steps_of_the_record(col, lambda col=col: col.add(np.ones((1, 4)), ["one more"]))
        found[size] = adding, steps_of_the_record(col, lambda col=col: col.withdraw(["row-7"], "mistaken"))
    assert all(large <= 1.2 * small for large, small in zip(found[5000], found[100], strict=True)), found


# -- 8: an HDF5 file with an external data set reads another file of the host --------------


def external_storage(h5, name, data, other):
    h5.create_dataset(name, data.shape, data.dtype, external=[(str(other), 0, data.nbytes)])


def external_link(h5, name, data, other):
    h5[name] = h5py.ExternalLink(str(other), f"/{name}")


def soft_link(h5, name, data, other):
    h5["elsewhere"] = data
    h5[name] = h5py.SoftLink("/elsewhere")


def virtual(h5, name, data, other):
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    layout[:] = h5py.VirtualSource(str(other), name, data.shape, data.dtype)
    h5.create_virtual_dataset(name, layout)


def filtered(h5, name, data, other):
    h5.create_dataset(name, data=data, chunks=data.shape, compression="gzip", shuffle=True)


def filtered_by_a_plugin(h5, name, data, other):
    """A filter that is not built in: HDF5 would look for a library to load."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk(data.shape)
    plist.set_filter(32017, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(h5.id, name.encode(), h5py.h5t.py_create(data.dtype), h5py.h5s.create_simple(data.shape), plist)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["rows", "ids", "embeddings"])
@pytest.mark.parametrize("craft", [external_storage, external_link, soft_link, virtual, filtered, filtered_by_a_plugin])
def test_case_8_a_segment_that_points_elsewhere_is_refused_and_the_other_file_unread(col, tmp_path, craft, name):
    col.add(rows(50), [f"row-{i}" for i in range(50)], embeddings=rows(50).reshape(50, -1))
    (path,) = (col.path / "segments").iterdir()
    other = tmp_path / "other"
    os.mkfifo(other)  # nobody writes to it: whoever reads it waits for ever
    with h5py.File(path) as h5:
        parts, set_id = {part: h5[part][:] for part in ("rows", "ids", "embeddings")}, h5.attrs["set_id"]
    col.close()
    with h5py.File(path, "w") as h5:
        h5.attrs["set_id"] = set_id
        for part, data in parts.items():
            craft(h5, part, data, other) if part == name else h5.create_dataset(part, data=data)
    with closing(sqlite3.connect(col.path / "catalogue.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE segments SET bytes = ?", (path.stat().st_size,))  # its length does not give it away
    with pytest.raises(Damaged, match=rf"'{name}' is (a link to elsewhere|no contiguous data set)"):
        Collection.open(col.path).posterior(torch.zeros(1, *SHAPE), AT_A_ROW)

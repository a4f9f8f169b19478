"""What is no collection, or no longer the one that was written, is refused by name."""

import os
import sqlite3
from contextlib import closing

import h5py
import numpy as np
import pytest
import torch
from forked import PROCESSES

from negindex import Collection, NegindexError, NoiseLevel
from negindex.errors import Damaged, NewerFormat, NoCollection
from negindex.schema import FORMAT

SHAPE, N = (8,), 2000


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float16)


def ask(col):
    return col.posterior(torch.zeros(1, *SHAPE), NoiseLevel(1.0, 1.0)).mean


def record(path):
    return closing(sqlite3.connect(path / "catalogue.sqlite", isolation_level=None))


@pytest.fixture
def place(tmp_path):
    """The directory of a closed collection of 2,000 rows in one segment."""
    with Collection.create(tmp_path / "set", SHAPE, "pixels") as col:
        col.add(rows(N), [f"row-{i}" for i in range(N)])
    return tmp_path / "set"


@pytest.fixture
def segment(place):
    (path,) = (place / "segments").iterdir()
    return path


# -- the directory and its catalogue -------------------------------------------------------


def test_what_holds_no_collection_is_named_and_left_as_it_is(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a directory")
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "catalogue.sqlite").touch()
    (tmp_path / "byte").mkdir()
    (tmp_path / "byte" / "catalogue.sqlite").write_bytes(b"!")
    before = sorted(tmp_path.rglob("*"))
    for name in ("missing", "empty", "file", "blank", "byte"):
        with pytest.raises(NoCollection, match=r"make one with|name the directory"):
            Collection.open(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("size", [100, 600, 5000])
def test_a_catalogue_of_random_bytes_is_damaged(place, size):
    (place / "catalogue.sqlite").write_bytes(np.random.default_rng(size).bytes(size))
    with pytest.raises(Damaged, match=r"catalogue\.sqlite cannot be read .*; restore it from a backup"):
        Collection.open(place)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE meta SET value = CAST(x'ff22' AS TEXT) WHERE key = 'space'",
        "UPDATE versions SET at = CAST(x'80ff' AS TEXT)",
        "UPDATE rows SET source_key = CAST(x'c328' AS TEXT) WHERE id = 7",
    ],
)
def test_text_that_is_no_text_any_more_is_damaged(place, change):
    with record(place) as db:
        db.execute(change)

    def read():
        col = Collection.open(place)
        return col.versions(), col.source_keys()

    with pytest.raises(Damaged, match="restore it from a backup"):
        read()


@pytest.mark.parametrize("part", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_catalogue_cut_short_is_damaged(place, part):
    catalogue = place / "catalogue.sqlite"
    os.truncate(catalogue, int(part * catalogue.stat().st_size))
    with pytest.raises(Damaged, match="restore it from a backup"):
        ask(Collection.open(place))


def test_somebody_elses_database_is_no_collection_and_stays_as_it_is(tmp_path):
    with record(tmp_path) as db:
        db.executescript("CREATE TABLE theirs (a); INSERT INTO theirs VALUES (1);")
    before = (tmp_path / "catalogue.sqlite").read_bytes()
    with pytest.raises(NoCollection, match="not a negindex catalogue; name the directory"):
        Collection.open(tmp_path)
    assert (tmp_path / "catalogue.sqlite").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE meta",
        "DELETE FROM meta WHERE key = 'shape'",
        "UPDATE meta SET value = 'no JSON' WHERE key = 'space'",
        "UPDATE meta SET value = '3' WHERE key = 'shape'",
    ],
)
def test_a_catalogue_that_does_not_say_what_it_is_of_is_damaged(place, change):
    with record(place) as db:
        db.execute(change)
    with pytest.raises(Damaged, match="restore it from a backup"):
        Collection.open(place)


def test_a_newer_format_is_refused_and_says_what_to_do(place):
    with record(place) as db:
        db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    said = f"has format {FORMAT + 1}, and this negindex reads up to {FORMAT}; install a newer"
    with pytest.raises(NewerFormat, match=said):
        Collection.open(place)


# -- segments ------------------------------------------------------------------------------


def damaged(place, match):
    """Named when it is asked, not silently left out; the record can still be read."""
    col = Collection.open(place)
    assert len(col) == N
    for _ in range(2):
        with pytest.raises(Damaged, match=match):
            ask(col)


@pytest.mark.parametrize("size", [100, 2048, -1, +1])
def test_a_segment_of_another_length_is_damaged(place, segment, size):
    os.truncate(segment, size if size >= 100 else segment.stat().st_size + size)
    damaged(place, r"has \d+ bytes, the catalogue says \d+; restore the file from a backup")


def test_a_missing_segment_is_damaged(place, segment):
    segment.unlink()
    damaged(place, "cannot be read as a segment")


def test_a_missing_folder_of_segments_is_damaged(place, segment):
    segment.unlink()
    segment.parent.rmdir()
    damaged(place, "cannot be read as a segment")


def test_another_collections_segment_is_damaged(tmp_path, place, segment):
    with Collection.create(tmp_path / "other", SHAPE, "pixels") as other:
        other.add(rows(N), [f"row-{i}" for i in range(N)])
    (others,) = (tmp_path / "other" / "segments").iterdir()
    assert others.stat().st_size == segment.stat().st_size
    os.replace(others, segment)
    damaged(place, "belongs to another collection")


def external_data(h5, other):
    h5.create_dataset("rows", (N, *SHAPE), "float16", external=[(str(other), 0, 16 * N)])


def external_link(h5, other):
    h5["rows"] = h5py.ExternalLink(str(other), "/rows")


def soft_link(h5, other):
    h5["elsewhere"] = rows(N)
    h5["rows"] = h5py.SoftLink("/elsewhere")


def dangling_link(h5, other):
    h5["rows"] = h5py.SoftLink("/nowhere")


def virtual_data(h5, other):
    layout = h5py.VirtualLayout((N, *SHAPE), "float16")
    layout[:] = h5py.VirtualSource(str(other), "rows", (N, *SHAPE), "float16")
    h5.create_virtual_dataset("rows", layout)


def chunked_data(h5, other):
    h5.create_dataset("rows", data=np.zeros((N, *SHAPE), "float16"), chunks=(N, *SHAPE), compression="gzip")


def compact_data(h5, other):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space, kind = h5py.h5s.create_simple((N, *SHAPE)), h5py.h5t.py_create(np.dtype("float16"))
    h5py.h5d.create(h5.id, b"rows", kind, space, plist)


def data_never_written(h5, other):
    h5.create_dataset("rows", (N, *SHAPE), "float16")


def pointers(h5, other):
    """Mapped as they lie, they would be followed as Python objects."""
    h5.create_dataset("rows", (N, *SHAPE), h5py.string_dtype())


def other_numbers(h5, other):
    h5["rows"] = np.zeros((N, *SHAPE), "int16")


def another_shape(h5, other):
    h5["rows"] = np.zeros((N, 4, 2), "float16")


def fewer_rows(h5, other):
    h5["rows"] = np.zeros((N - 1, *SHAPE), "float16")


def a_group(h5, other):
    h5.create_group("rows")


def no_rows(h5, other):
    pass


CRAFTED = [external_data, external_link, soft_link, dangling_link, virtual_data, chunked_data, compact_data]
CRAFTED += [data_never_written, pointers, other_numbers, another_shape, fewer_rows, a_group, no_rows]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("craft", CRAFTED, ids=lambda craft: craft.__name__)
def test_a_crafted_segment_is_refused_and_the_file_it_names_unread(place, segment, tmp_path, craft):
    other = tmp_path / "other"
    os.mkfifo(other)  # nobody writes to it: whoever reads it waits for ever
    size = segment.stat().st_size
    with h5py.File(segment) as h5:
        set_id = h5.attrs["set_id"]
    with h5py.File(segment, "w") as h5:
        h5.attrs["set_id"] = set_id
        craft(h5, other)
        h5["ids"] = np.arange(1, N + 1)
    if segment.stat().st_size < size:
        os.truncate(segment, size)  # so that its length does not give it away
    with record(place) as db:
        db.execute("UPDATE segments SET bytes = ?", (segment.stat().st_size,))
    damaged(place, r"is a link|no contiguous data set")


def open_mutated(place, segment, ack):
    """Errors that have no name here, among 300 copies with some bytes of the head replaced."""
    sound, odd = segment.read_bytes(), []
    for seed in range(300):
        random = np.random.default_rng(seed)
        bytes_ = bytearray(sound)
        for at in random.integers(0, 4096, random.integers(1, 20)):
            bytes_[at] = random.integers(256)
        segment.write_bytes(bytes_)
        try:
            ask(Collection.open(place))
        except NegindexError:
            pass
        except Exception as error:
            odd.append((seed, repr(error)))
    ack.send(odd)


def test_mutated_segments_are_refused_in_a_process_that_survives(place, segment):
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=open_mutated, args=(place, segment, theirs))
    process.start()
    theirs.close()
    assert ours.recv() == []
    process.join()
    assert process.exitcode == 0

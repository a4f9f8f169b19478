"""Rows that come together are stored, bound and counted as they would be one by one."""

import errno
import json

import numpy as np
import pytest
from corpora import run
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sets import state

from negindex import Collection
from negindex.incoming import digests_of, finite_rows
from negindex.log import bare_commitment, row_commitment
from negindex.sampler import sources
from negindex.sampler.ingest import chosen, ingest
from negindex.sampler.sources import Block, singly, sources_of
from negindex.states import Provenance
from negindex.testing import FailingDisk, FaultyDisk, ShortDisk, points
from negindex.text import all_unicode, is_unicode
from negindex.tools import inputs

SHAPE = (2, 3)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@given(st.binary(min_size=16, max_size=16), TEXT, st.none() | TEXT, st.binary(min_size=32, max_size=32))
def test_a_bare_rows_commitment_is_that_of_any_row(salt, key, label, digest):
    row = dict.fromkeys(("image_sha256", "pdq", "quality", "thumbnail"))
    row |= {"source_key": key, "label": label, "sha256": digest.hex()}
    assert bare_commitment(salt, key, label, digest.hex()) == row_commitment(salt, row)


@given(st.lists(st.text(max_size=3) | st.none() | st.integers(), max_size=4))
def test_many_texts_are_sound_when_each_is(values):
    assert all_unicode(values) == all(is_unicode(value) and value != "" for value in values)


@settings(max_examples=25)
@given(st.integers(0, 300), st.sampled_from(["float16", "float32"]), st.lists(st.integers(0, 299), max_size=5))
def test_blocks_find_the_rows_that_are_not_finite(count, dtype, bad):
    rows = np.random.default_rng(0).standard_normal((count, 40, 40)).astype(dtype)
    bad = [place for place in bad if place < count]
    for place in bad:
        rows[place, place % 40, 3] = [np.nan, np.inf, -np.inf][place % 3]
    assert np.flatnonzero(~finite_rows(rows)).tolist() == sorted(set(bad))
    assert len(digests_of(rows)) == count


def array(path, count=50):
    """Rows of which some cannot be stored, in a file."""
    rows = np.random.default_rng(1).standard_normal((count, *SHAPE)).astype(np.float32)
    rows[3], rows[7, 0, 0], rows[20, 1, 1], rows[21, 0, 1] = 0, np.nan, np.inf, 1e6
    np.save(path, rows)
    keys = [f"k{place}" for place in range(count)]
    keys[30], keys[31], keys[40] = "k29", "bad\udcff", ""
    path.with_suffix(".txt").write_bytes("".join(f"{key}\n" for key in keys).encode("utf-8", "surrogateescape"))
    return path


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("every", [True, False])
def test_rows_in_blocks_come_to_the_ends_that_they_come_to_one_by_one(tmp_path, monkeypatch, block, every):
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    path = array(tmp_path / "rows.npy")
    told, sets = [], []
    for name in ("together", "singly"):
        collection = Collection.create(tmp_path / name, SHAPE, "mine")
        parts = chosen(sources_of([path], keys=path.with_suffix(".txt")), SHAPE)
        parts = singly(parts) if name == "singly" else parts
        ends = []
        report = ingest(collection, parts, tell=ends.append, only_refusals=not every)
        told.append((report.counts, sorted((end.key, end.outcome, end.reason, end.row or 0) for end in ends)))
        sets.append((collection.source_keys(), sorted(collection.digests().items())))
    together, alone = told
    assert together[0] == alone[0] == {"in": 43, "refused": 7}
    if every:
        assert sorted(end[:3] for end in together[1]) == sorted(end[:3] for end in alone[1])
    else:
        assert {outcome for _, outcome, *_ in together[1]} == {"refused"}
    assert sets[0][0] == sets[1][0]


def test_a_shards_share_of_a_block_is_that_of_its_rows():
    block = Block([f"k{i}" for i in range(40)], ["x"] * 40, np.arange(40.0)[:, None], labels=[*map(str, range(40))])
    shares = [[item.key for item in block.items() if item.within(index, 3)] for index in (1, 2, 3)]
    assert sorted(key for share in shares for key in share) == sorted(block.keys)
    for index, share in enumerate(shares, 1):
        held = block.chosen(lambda key, index=index: sources.is_within(key, index, 3))
        assert held.keys == share
        assert held.labels == [key[1:] for key in share]
        assert held.rows[:, 0].tolist() == [float(key[1:]) for key in share]


# -- many rows by one statement ----------------------------------------------------------------------


def test_what_some_of_many_rows_have_is_on_record_for_those_alone(tmp_path):
    """More rows than one statement takes, of which some are there already, and some have a label or a source."""
    collection = Collection.create(tmp_path / "set", SHAPE, "mine")
    rows = np.random.default_rng(3).standard_normal((2500, *SHAPE)).astype(np.float16)
    keys = [f"k{place}" for place in range(len(rows))]
    collection.add(rows[5:1900:7], keys[5:1900:7])
    labels = ["odd" if place % 2 else None for place in range(len(rows))]
    seen = [Provenance("ab" * 32, bytes(32), 50, b"png") if place == 2222 else None for place in range(len(rows))]
    version = collection.add(rows, keys, label=labels, sources=seen)
    assert collection.version(version).changed == len(rows) - len(keys[5:1900:7])
    assert collection.source_keys("odd") == sorted(key for key in keys[1::2] if key not in keys[5:1900:7])
    ids = collection.held(["k2222", "k2223"])
    assert [one.image_sha256 for one in ids.values()] == ["ab" * 32, None]
    found = collection.stored([one.row for one in ids.values()])
    assert found.sources == [seen[2222], Provenance()]
    assert dict(zip(found.keys, found.digests, strict=True)) == dict(
        zip(keys[2222:2224], digests_of(rows[2222:2224]), strict=True)
    )
    assert collection.verify() == []


# -- a file that is sealed beside its record -----------------------------------------------------------


def filled(path, disk=None):
    collection = Collection.open(path, disk=disk) if disk else Collection.create(path, SHAPE, "mine")
    return collection


def more(collection):
    rows = np.random.default_rng(2).standard_normal((40, *SHAPE)).astype(np.float16)
    return collection.add(rows, [f"m{place}" for place in range(40)])


def test_a_file_that_fails_beside_its_record_leaves_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr("negindex.store._BESIDE", 0)
    calm = FaultyDisk()
    filled(tmp_path / "calm").close()
    more(filled(tmp_path / "calm", calm))
    assert calm.calls == ["write", "sync", "rename", "sync_directory", "commit"]
    tries = [(FailingDisk(at, when), errno.ENOSPC) for at, when in points(calm.calls) if (at, when) != (5, "after")]
    for place, (disk, code) in enumerate([*tries, (ShortDisk(1), errno.EIO)]):
        path = tmp_path / str(place)
        filled(path).add(np.ones((1, *SHAPE)), ["a"])
        collection = filled(path, disk)
        before = state(collection)
        with pytest.raises(OSError, match=r"\[Errno") as refused:
            more(collection)
        assert refused.value.errno == code
        assert state(collection) == before
        assert {fault.what for fault in collection.verify()} <= {"stray"}, "a file that nothing names, swept later"
        more(collection)
        assert len(collection) == 41
        collection.close()
        swept = filled(path, FaultyDisk())
        assert swept.verify() == []
        assert len(list((path / "segments").iterdir())) == len(swept.segments()) == 2


# -- what people see -----------------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [True, False])
def test_progress_tells_how_many_how_fast_and_how_long_still(monkeypatch, capsys, watched):
    now = [0.0]
    monkeypatch.setattr(inputs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: watched)
    with inputs.Progress(200) as progress:
        for done in range(1, 201):
            now[0] += 0.5
            progress.reached(done)
    said = capsys.readouterr().err
    lines = [line for line in said.replace("\x1b[K", "").replace("\r", "\n").splitlines() if line]
    assert len(lines) == (100 if watched else 3)
    assert "60 of 200, 1:10 left, 2.0 a second" in lines
    assert progress.seconds == 100


def test_the_summary_for_machines_tells_the_seconds(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((3, *SHAPE)))
    said = json.loads(run("build", tmp_path / "a.set", tmp_path / "rows.npy", "--space", "mine", "--json").stdout)
    assert said["seconds"] > 0

"""Changing a collection: whole or not at all, one version a change."""

import h5py
import numpy as np
import pytest
import torch
from small_sets import SHAPE, rows, state

from negindex import Collection, NoiseLevel
from negindex.errors import (
    DuplicateKey,
    EmptySet,
    InvalidInput,
    NotAllowed,
    NotFinite,
    OutOfRange,
    ShapeMismatch,
    UnknownKey,
)

# -- create and open -----------------------------------------------------------------------


def test_a_new_collection_is_empty_at_version_0(col):
    assert len(col) == 0
    assert [v.action for v in col.versions()] == ["create"]
    with pytest.raises(EmptySet):
        col.posterior(torch.zeros(1, *SHAPE), NoiseLevel(1.0, 1.0))


def test_reopening_gives_the_same(three):
    three.withdraw(["b"], "mistaken")
    again = Collection.open(three.path)
    assert state(again) == state(three)
    assert (again.set_id, again.shape, again.space, again.dtype) == (three.set_id, SHAPE, "pixels", "float16")


@pytest.mark.parametrize("there", ["set", "file", "directory"])
def test_create_overwrites_nothing(tmp_path, there):
    path = tmp_path / there
    if there == "set":
        Collection.create(path, SHAPE, "pixels")
    elif there == "file":
        path.write_text("mine")
    else:
        path.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NotAllowed, match=r"exists; open it"):
        Collection.create(path, SHAPE, "pixels")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [
        ((), "float16", ShapeMismatch),
        ((0, 3), "float16", ShapeMismatch),
        (SHAPE, "float64", InvalidInput),
        (SHAPE, "int8", InvalidInput),
    ],
)
def test_what_cannot_hold_rows_is_not_made(tmp_path, shape, dtype, error):
    with pytest.raises(error):
        Collection.create(tmp_path / "set", shape, "pixels", dtype=dtype)
    assert not list(tmp_path.iterdir())


# -- add -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_and_numpy_rows_of_any_float_type_are_kept(col, dtype):
    given = torch.from_numpy(rows(2)).to(dtype)
    col.add(given, ["a", "b"])
    col.add(given.double().numpy(), ["c", "d"])
    assert len(set(col.digests().values())) == 2


def test_the_same_key_with_the_same_bytes_changes_nothing(three):
    before = state(three)
    assert three.add(rows(3), ["a", "b", "c"]) == 1
    assert state(three) == before


def test_rows_that_are_new_among_known_ones_are_added(three):
    assert three.add(np.concatenate([rows(3), rows(1, seed=1)]), ["a", "b", "c", "d"]) == 2
    assert three.source_keys() == ["a", "b", "c", "d"]
    assert three.newest().changed == 1


def test_other_bytes_under_a_key_in_force_are_refused(three):
    before = state(three)
    with pytest.raises(DuplicateKey, match=r"'b' is in force with other bytes; withdraw first") as refused:
        three.add(rows(3, seed=1), ["x", "b", "y"])
    assert refused.value.keys == ("b",)
    assert state(three) == before


def test_a_withdrawn_key_comes_back_under_a_new_id(three):
    three.withdraw(["b"], "mistaken")
    assert three.add(rows(1, seed=1), ["b"]) == 3
    assert three.snapshot().source_keys([2, 4]) == {2: "b", 4: "b"}
    assert sorted(three.digests()) == [1, 3, 4]


def test_ids_are_never_used_twice(col):
    seen = set()
    for turn in range(5):
        col.add(rows(3, seed=turn), ["a", "b", "c"])
        now = set(Collection.open(col.path).digests())
        assert not seen & now
        seen |= now
        col.withdraw(["a", "b", "c"], "turn")


def test_adding_no_rows_changes_nothing(three):
    before = state(three)
    assert three.add(rows(0), []) == 1
    assert state(three) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 70000.0, -1e30])
def test_rows_that_half_precision_cannot_hold_are_refused_and_named(three, value):
    before, given = state(three), rows(4, seed=1).astype(np.float32)
    given[1, 0, 0] = given[3, 1, 2] = value
    with pytest.raises(NotFinite, match=r"2 of 4 rows .* beyond float16's 65504 \(first at \[1, 3\]\); leave them out"):
        three.add(given, list("wxyz"))
    assert state(three) == before


def test_float32_keeps_what_float16_cannot(tmp_path):
    col = Collection.create(tmp_path / "set", SHAPE, "pixels", dtype="float32")
    col.add(np.full((1, *SHAPE), 70000.0), ["a"])
    assert col.posterior(torch.zeros(1, *SHAPE), NoiseLevel(1.0, 1.0)).mean.unique().tolist() == [70000.0]


@pytest.mark.parametrize("shape", [(), (2,), (2, 6), (2, 3, 2), SHAPE])
def test_rows_of_another_shape_are_refused(three, shape):
    before = state(three)
    with pytest.raises(ShapeMismatch, match=r"rows of shape .* for a collection of \(2, 3\) rows"):
        three.add(np.zeros(shape), ["x", "y"])
    assert state(three) == before


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        (["x"], ShapeMismatch),
        (["x", ""], InvalidInput),
        (["x", None], InvalidInput),
        (["x", 7], InvalidInput),
        (["x", "\udcff"], InvalidInput),  # what an undecodable file name becomes
        ("xy", InvalidInput),
        (["x", "x"], DuplicateKey),
    ],
)
def test_keys_that_name_no_row_are_refused(three, keys, error):
    before = state(three)
    with pytest.raises(error, match=r"; give |row"):
        three.add(rows(2, seed=1), keys)
    assert state(three) == before


def test_any_unicode_text_is_a_key(col):
    keys = ["a\0b", "Ünï/côdé 🙂", "'; DROP TABLE rows; --", " ", "x" * 5000]
    col.add(rows(5), keys)
    assert Collection.open(col.path).source_keys() == sorted(keys)
    col.withdraw(keys, "all")
    assert len(col) == 0


@pytest.mark.parametrize("labels", [["one"], ["one", 2], ["one", "\ud800"]])
def test_labels_that_fit_no_row_are_refused(three, labels):
    before = state(three)
    with pytest.raises(InvalidInput, match=r"label"):
        three.add(rows(2, seed=1), ["x", "y"], label=labels)
    assert state(three) == before


def test_an_add_larger_than_a_segment_is_one_version_in_several_files(col, monkeypatch):
    monkeypatch.setattr("negindex.store.SEGMENT_BYTES", 2 * rows(1).nbytes)
    keys = [f"row-{i}" for i in range(7)]
    assert col.add(rows(7), keys) == 1
    assert [s.rows for s in col.segments()] == [2, 2, 2, 1]
    assert list(col.digests()) == list(range(1, 8))
    assert col.snapshot().source_keys(range(1, 8)) == dict(enumerate(keys, 1))


def test_a_segment_is_read_by_any_hdf5_tool(three):
    (record,) = three.segments()
    with h5py.File(three.path / "segments" / record.file) as h5:
        assert np.array_equal(h5["rows"], rows(3))
        assert list(h5["ids"]) == [1, 2, 3]


# -- withdraw ------------------------------------------------------------------------------


def test_withdrawing_an_unknown_key_withdraws_nothing(three):
    three.withdraw(["c"], "mistaken")
    before = state(three)
    with pytest.raises(UnknownKey, match=r"'c', 'x' are not in force"):
        three.withdraw(["a", "c", "x"], "typing error")
    assert state(three) == before


@pytest.mark.parametrize(("keys", "error"), [([], OutOfRange), (["a", "a"], DuplicateKey), ("a", InvalidInput)])
def test_withdrawing_needs_distinct_keys(three, keys, error):
    before = state(three)
    with pytest.raises(error):
        three.withdraw(keys, "typing error")
    assert state(three) == before


def test_more_keys_than_one_statement_takes(col):
    keys = [f"row-{i:04d}" for i in range(1234)]
    col.add(rows(1234), keys)
    col.withdraw(keys[100:], "many")
    assert col.source_keys() == keys[:100]


def test_the_history_says_what_happened_and_why(three):
    three.withdraw(["b"], "counter-notice 7")
    told = [(v.version, v.action, v.reason, v.changed, v.in_force) for v in three.versions()]
    assert told == [(0, "create", "", 0, 0), (1, "add", "", 3, 3), (2, "withdraw", "counter-notice 7", 1, 2)]
    assert sorted(v.at for v in three.versions()) == [v.at for v in three.versions()]

"""Rows go on record the same whether their columns are bound whole or cell by cell."""

import numpy as np
import pytest

from negindex import Collection
from negindex.states import Provenance

SHAPE = (4,)
KEYS = ["plain", "with space/1", 'quo"te', "back\\slash", "\\u0000", "line\nfeed", "ü", "\N{GRINNING FACE}", "", "%s"]


@pytest.mark.parametrize("label", [None, "ü", "", 'a"b'])
@pytest.mark.parametrize("most", [3, 1 << 16])
def test_every_cell_is_on_record_as_it_was_given(tmp_path, monkeypatch, label, most):
    monkeypatch.setattr("negindex.bulk._COLUMNS_AT_ONCE", most)
    keys = [key or "last" for key in KEYS]
    rows = np.random.default_rng(0).normal(size=(3 * len(keys), *SHAPE)).astype(np.float16)
    collection = Collection.create(tmp_path / "a.set", SHAPE, "pixels")
    given = {
        "bare": keys,
        "with a NUL": [f"{key}\0{key}" for key in keys],
        "with an image": [f"{key}.png" for key in keys],
    }
    for place, (name, some) in enumerate(given.items()):
        made = [Provenance("ab" * 32, bytes(32), 100)] * len(some) if name == "with an image" else None
        collection.add(rows[place * len(keys) :][: len(keys)], some, label=label, sources=made)
    assert list(collection.in_force().values()) == [key for some in given.values() for key in some]
    for row, key in collection.in_force().items():
        found = collection.row(row)
        assert (found.source_key, found.label, found.added) == (key, label, 1 + (row - 1) // len(keys))
        assert np.array_equal(collection.rows_under([key])[0], rows[row - 1])
    assert collection.verify() == []


def test_labels_that_differ_go_cell_by_cell(tmp_path):
    rows = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float16)
    collection = Collection.create(tmp_path / "a.set", SHAPE, "pixels")
    collection.add(rows, ["a", "b", "c"], label=["one", None, "two"])
    assert [collection.row(row).label for row in collection.in_force()] == ["one", None, "two"]
    assert collection.verify() == []

"""Near rows: any split of a set finds what the whole finds, withdrawn rows never come. The rest is in the contract."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negindex import Collection, Exact, Near, Union
from negindex.testing.contract import normal

ROWS, X = normal(30, 2, 3), normal(4, 2, 3, seed=1)


def same(one: Near, other: Near) -> None:
    """The same rows of the same sets, at the same distances."""
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.distances, other.distances)
    assert torch.equal(one.rows, other.rows)
    sets = [[[near.origins[o] for o in row] for row in near.origin.tolist()] for near in (one, other)]
    found = one.found.tolist()
    for b, row in enumerate(found):
        assert [s for s, there in zip(sets[0][b], row, strict=True) if there] == [
            s for s, there in zip(sets[1][b], row, strict=True) if there
        ]


limits = st.one_of(
    st.fixed_dictionaries({"k": st.integers(1, 40)}),
    st.fixed_dictionaries({"radius": st.floats(0, 6)}),
    st.fixed_dictionaries({"radius": st.floats(0, 6), "k": st.integers(1, 40)}),
)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 30), max_size=4), limits=limits, order=st.randoms())
def test_any_split_finds_what_the_whole_finds(cuts, limits, order):
    ends = [0, *sorted(cuts), 30]
    parts = [Exact(ROWS[a:b], range(a, b)) for a, b in pairwise(ends)]
    order.shuffle(parts)
    whole, split = Exact(ROWS).near(X, **limits), Union(parts).near(X, **limits)
    assert torch.equal(split.ids, whole.ids)
    assert torch.equal(split.distances, whole.distances)
    assert torch.equal(split.rows, whole.rows)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 30), min_size=2, max_size=2), limits=limits)
def test_merging_is_associative(cuts, limits):
    low, high = sorted(cuts)
    a, b, c = (Exact(part).near(X, **limits) if len(part) else None for part in ROWS.tensor_split((low, high)))
    if a and b and c:
        k = limits.get("k")
        same(a.merge(b, k).merge(c, k), a.merge(b.merge(c, k), k))


def test_merging_says_which_set_each_row_is_of():
    first, second = Exact(ROWS[:20]), Exact(ROWS[20:])
    near = Union([first, second]).near(X, radius=3.0)
    rows = {first.origins[0]: ROWS[:20], second.origins[0]: ROWS[20:]}
    for b, k in near.found.nonzero().tolist():
        assert torch.equal(near.rows[b, k], rows[near.origins[near.origin[b, k]]][near.ids[b, k]])
    assert set(near.origins) == set(rows)


def test_of_rows_alike_each_is_found():
    near = Exact(ROWS[:1].repeat(3, 1, 1), [7, 8, 9]).near(ROWS[:1], radius=0.0)
    assert sorted(near.ids[0].tolist()) == [7, 8, 9]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_withdrawn_rows_never_come(tmp_path, dtype):
    with Collection.create(tmp_path / "set", (2, 3), "pixels", dtype=dtype) as collection:
        collection.add(ROWS, [f"row-{i}" for i in range(30)])
        before = collection.pin()
        collection.withdraw([f"row-{i}" for i in range(0, 30, 2)], "counter-notice")
        collection.add(ROWS[:1], ["again"])
        near = collection.near(ROWS, k=40)
        left = {*range(2, 31, 2), 31}
        assert [set(ids) for ids in near.ids.tolist()] == [left] * 30
        assert before.near(ROWS, k=40).ids.shape == (30, 30)
        assert collection.near(ROWS[2:3], radius=0.1).ids.shape == (1, 0)
        assert near.origins == collection.origins


def test_memory_stays_bounded_however_large_the_set(monkeypatch):
    """Blocks are small, and what is kept between them is the answer alone."""
    from negindex import exact

    sizes, measure = [], exact.measure
    monkeypatch.setattr(exact, "BLOCK_ELEMENTS", 4 * 6)
    monkeypatch.setattr(exact, "measure", lambda block, *rest: sizes.append(len(block.rows)) or measure(block, *rest))
    near = Exact(ROWS).near(X, k=2)
    assert sizes == [4] * 7 + [2]
    assert near.rows.shape == (4, 2, 2, 3)

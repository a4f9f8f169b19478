"""Answers merge: any split of the rows gives the answer of the whole."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import EPS, random_world, seeded, truth

from negindex import Exact, Kernel, NoiseLevel, Partial, Union
from negindex.errors import (
    DuplicateKey,
    EmptySet,
    InvalidInput,
    KernelMismatch,
    NotFinite,
    OutOfRange,
    ShapeMismatch,
    SpaceMismatch,
)
from negindex.exact import BLOCK_ELEMENTS
from negindex.negatives import HEAVIEST
from negindex.partial import NEG_INF

SHAPE = (2, 3)
NO_ROWS = torch.empty(0, *SHAPE, dtype=torch.float64)


def normal(n, seed=0):
    return torch.randn(n, *SHAPE, generator=seeded(seed), dtype=torch.float64)


def named(partial):
    """Per sample {id: log-weight} of the rows that an answer names."""
    ids, weights = partial.heaviest.ids.tolist(), partial.heaviest.log_weight.tolist()
    return [{i: w for i, w in zip(*sample, strict=True) if i >= 0} for sample in zip(ids, weights, strict=True)]


def assert_same(got, expected):
    """Equal answers, to the rounding of log-weights as large as theirs."""
    rounding = 1e-9 + 4 * EPS * float(expected.log_norm.abs().max())
    torch.testing.assert_close(got.log_norm, expected.log_norm, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.mean, expected.mean, rtol=0, atol=rounding)
    torch.testing.assert_close(got.captured, torch.ones_like(got.captured), rtol=0, atol=0)
    torch.testing.assert_close(got.error, torch.zeros_like(got.error), rtol=0, atol=0)
    assert (got.count, got.kernel) == (expected.count, expected.kernel)
    places = min(got.heaviest.ids.shape[1], expected.heaviest.ids.shape[1])
    assert places >= min(HEAVIEST, expected.count)
    weights = (part.heaviest.log_weight[:, :places] for part in (got, expected))
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-9)


@st.composite
def split_sets(draw):
    """Rows (some twice), a part for each row, a level: down to where one row has all the weight."""
    distinct = draw(st.integers(1, 12))
    rows = normal(distinct, draw(st.integers(0, 5)))
    rows = torch.cat([rows, rows[draw(st.lists(st.integers(0, distinct - 1), max_size=6))]])
    parts = draw(st.integers(1, 5))
    part_of = draw(st.lists(st.integers(0, parts - 1), min_size=len(rows), max_size=len(rows)))
    level = NoiseLevel(draw(st.sampled_from([1.0, 0.5, 1e-3, 0.0])), draw(st.floats(1e-3, 1e3)))
    members = [
        torch.tensor([i for i, p in enumerate(part_of) if p == part], dtype=torch.int64) for part in range(parts)
    ]
    return rows, members, level


@given(split_sets())
@settings(max_examples=150, deadline=None)
def test_any_split_merges_to_the_whole(case):
    rows, members, level = case
    x = 2 * normal(3, seed=9)
    whole = Exact(rows).posterior(x, level)
    parts = [
        Exact(rows[own], own).posterior(x, level) if len(own) else Partial.empty(3, SHAPE, whole.kernel)
        for own in members
    ]
    assert_same(reduce(Partial.merge, parts), whole)
    assert_same(reduce(Partial.merge, parts[::-1]), whole)
    assert_same(Union(Exact(rows[own], own) for own in members).posterior(x, level), whole)


@given(sizes=st.tuples(*[st.integers(1, 20)] * 3), k=st.integers(1, 20), s=st.floats(1e-2, 1e2))
@settings(max_examples=100, deadline=None)
def test_merging_is_associative_and_commutative(sizes, k, s):
    x, level = normal(2, seed=8), NoiseLevel(1.0, s)
    a, b, c = (Exact(normal(n, i)).posterior(x, level, k=min(k, n)) for i, n in enumerate(sizes))
    for left, right in ((a.merge(b), b.merge(a)), (a.merge(b).merge(c), a.merge(b.merge(c)))):
        torch.testing.assert_close(left.log_norm, right.log_norm, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(left.mean, right.mean, rtol=1e-12, atol=1e-12)
        assert named(left) == named(right)
        assert left.count == right.count


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6), k=st.integers(1, 6), s=st.floats(0.1, 10))
@settings(max_examples=100, deadline=None)
def test_a_merged_answer_names_the_heaviest_rows_of_the_whole(sizes, k, s):
    rows, x, level = normal(sum(sizes), seed=1), normal(3, seed=2), NoiseLevel(1.0, s)
    members = torch.arange(len(rows)).split(sizes)
    whole = named(Exact(rows).posterior(x, level, k=len(rows)))
    for answer in (
        reduce(Partial.merge, (Exact(rows[own], own).posterior(x, level, k=min(k, len(own))) for own in members)),
        Union(Exact(rows[own], own) for own in members).posterior(x, level, k=min(k, len(rows))),
    ):
        assert answer.heaviest.ids.shape[1] >= min(k, len(rows))
        for got, everything in zip(named(answer), whole, strict=True):
            assert list(got) == list(everything)[: len(got)]
            assert list(got.values()) == pytest.approx([everything[i] for i in got])


def test_a_union_names_as_many_rows_as_it_is_asked_for():
    """However small its members are: one takedown each, say."""
    rows = normal(12)
    union = Union(Exact(row[None], [i]) for i, row in enumerate(rows))
    assert [len(sample) for sample in named(union.posterior(rows[:2], NoiseLevel(1.0, 1.0)))] == [HEAVIEST] * 2
    assert [list(sample) for sample in named(union.posterior(rows[3:5], NoiseLevel(1.0, 0.1), k=1))] == [[3], [4]]


def test_the_neutral_element_changes_nothing():
    told = Exact(normal(5)).posterior(normal(2, seed=1), NoiseLevel(0.8, 0.6))
    nothing = Partial.empty(2, SHAPE, told.kernel)
    for merged in (told.merge(nothing), nothing.merge(told)):
        for part in ("log_norm", "mean", "log_tail", "log_unread", "error"):
            assert torch.equal(getattr(merged, part), getattr(told, part))
        assert (named(merged), merged.count, merged.origins) == (named(told), told.count, told.origins)
    both = nothing.merge(nothing)
    assert (both.count, both.origins, both.log_norm.tolist()) == (0, (), [NEG_INF] * 2)
    assert not both.mean.any()


def test_empty_members_of_a_union_say_nothing():
    rows, x, level = normal(4), normal(2, seed=1), NoiseLevel(1.0, 1.0)
    assert_same(
        Union([Exact(NO_ROWS), Exact(rows), Exact(NO_ROWS)]).posterior(x, level), Exact(rows).posterior(x, level)
    )
    with pytest.raises(EmptySet):
        Union([Exact(NO_ROWS), Exact(NO_ROWS)]).posterior(x, level)


def test_an_empty_set_is_an_error_never_nothing_near():
    with pytest.raises(EmptySet, match="no row in force"):
        Exact(NO_ROWS).posterior(normal(1), NoiseLevel(1.0, 1.0))


def test_blocks_of_a_large_set_merge_to_the_whole():
    """More rows than one block holds, so that the scan itself merges."""
    world = random_world((4, 64, 64), safe=200, unsafe=100, seed=3)
    assert len(world.rows) > BLOCK_ELEMENTS // world.rows[0].numel()
    x = world.rows[[0, 299]] * 0.9
    told = Exact(world.rows.float()).posterior(x, NoiseLevel(0.9, 50.0))
    true = truth(world.rows.float(), x, 0.9, 50.0)
    np.testing.assert_allclose(told.log_norm.numpy(), true.log_norm.astype(float), rtol=1e-12)
    np.testing.assert_allclose(told.mean.flatten(1).numpy(), true.mean.astype(float), rtol=0, atol=1e-9)


def test_one_row_twice_weighs_twice():
    rows, x, level = normal(3), normal(2, seed=1), NoiseLevel(0.9, 0.5)
    once, twice = (Exact(part).posterior(x, level) for part in (rows, torch.cat([rows, rows])))
    torch.testing.assert_close(twice.log_norm, once.log_norm + np.log(2))
    torch.testing.assert_close(twice.mean, once.mean)


def test_equal_rows_have_their_own_mean_however_large_the_logs():
    """The shares of a merge add up to 1: log-weights of 1e10 are only good to 2e-6 themselves."""
    row, level = normal(1), NoiseLevel(1.0, 1e-5)
    parts = [Exact(row.expand(n, -1, -1)).posterior(row + 1, level) for n in (1, 2, 4)]
    torch.testing.assert_close(reduce(Partial.merge, parts).mean, row, rtol=1e-14, atol=0)


def test_a_single_row_is_the_answer_at_every_level():
    row = normal(1)
    for level in (NoiseLevel(1.0, 1e-3), NoiseLevel(1.0, 1e3), NoiseLevel(0.0, 1.0)):
        assert torch.equal(Exact(row).posterior(normal(1, seed=1), level).mean, row)


def test_different_kernels_never_merge():
    rows, x, level = normal(3), normal(1, seed=1), NoiseLevel(1.0, 1.0)
    literal = Exact(rows).posterior(x, level)
    tempered = Exact(rows).posterior(x, level, kernel=Kernel([(2.0, 4.0)]))
    with pytest.raises(KernelMismatch, match="literal and by tempered"):
        literal.merge(tempered)


def test_answers_of_different_shapes_never_merge():
    told = Exact(normal(3)).posterior(normal(2), NoiseLevel(1.0, 1.0))
    with pytest.raises(ShapeMismatch):
        told.merge(Partial.empty(3, SHAPE, told.kernel))


def test_an_origin_is_named_once_and_rows_point_to_theirs():
    x, level = normal(1, seed=1), NoiseLevel(1.0, 1.0)
    one, two = Exact(normal(2)), Exact(normal(3, seed=5))
    told = reduce(Partial.merge, (s.posterior(x, level) for s in (two, one, two, one)))
    assert told.origins == two.origins + one.origins
    weights = {one.origins[0]: named(one.posterior(x, level))[0], two.origins[0]: named(two.posterior(x, level))[0]}
    for origin, row_id, weight in zip(*(part[0].tolist() for part in told.heaviest), strict=True):
        assert weights[told.origins[origin]][row_id] == weight
    assert Union([two, one, two]).origins == told.origins


def test_captured_is_the_share_that_was_not_modelled():
    told = Partial.empty(1, SHAPE, Kernel())
    full = torch.zeros(1, dtype=torch.float64)
    share = {"log_norm": full, "log_tail": full + np.log(0.25), "log_unread": full + np.log(0.125)}
    modelled = type(told)(**{**vars(told), **share})
    assert modelled.captured.item() == pytest.approx(0.625)
    assert told.captured.item() == 1.0


def test_a_stated_error_merges_by_share():
    x, level = normal(1), NoiseLevel(1.0, 1.0)
    told = Exact(normal(1)).posterior(x, level)
    with_error = type(told)(**{**vars(told), "error": torch.full_like(told.error, 0.2)})
    assert with_error.merge(told).error.item() == pytest.approx(0.1)


REFUSED = {
    "too few dimensions": (ShapeMismatch, lambda: Exact(torch.zeros(3))),
    "integers": (ShapeMismatch, lambda: Exact(torch.zeros(3, 2, dtype=torch.int64))),
    "an empty dimension": (ShapeMismatch, lambda: Exact(torch.zeros(3, 0))),
    "a row of NaN": (NotFinite, lambda: Exact(torch.tensor([[0.0], [float("nan")]]))),
    "a row of inf": (NotFinite, lambda: Exact(torch.tensor([[float("inf")]]))),
    "an id twice": (DuplicateKey, lambda: Exact(torch.zeros(2, 1), [7, 7])),
    "too few ids": (ShapeMismatch, lambda: Exact(torch.zeros(2, 1), [7])),
    "a negative id": (ShapeMismatch, lambda: Exact(torch.zeros(1, 1), [-1])),
    "no members": (EmptySet, lambda: Union([])),
    "two shapes": (ShapeMismatch, lambda: Union([Exact(torch.zeros(1, 2)), Exact(torch.zeros(1, 3))])),
    "two spaces": (SpaceMismatch, lambda: Union([Exact(torch.zeros(1, 2)), Exact(torch.zeros(1, 2), space="vae 1")])),
}


@pytest.mark.parametrize(("error", "make"), REFUSED.values(), ids=REFUSED.keys())
def test_a_set_that_makes_no_sense_is_refused(error, make):
    with pytest.raises(error) as caught:
        make()
    assert isinstance(caught.value, InvalidInput | EmptySet)


ASKED = {
    "another shape": (ShapeMismatch, torch.zeros(1, 3, 2), {}),
    "no batch": (ShapeMismatch, torch.tensor(0.0), {}),
    "NaN": (NotFinite, torch.full((1, *SHAPE), float("nan")), {}),
    "inf": (NotFinite, torch.full((1, *SHAPE), float("inf")), {}),
    "k = 0": (OutOfRange, torch.zeros(1, *SHAPE), {"k": 0}),
    "k beyond the set": (OutOfRange, torch.zeros(1, *SHAPE), {"k": 4}),
    "error = 0": (OutOfRange, torch.zeros(1, *SHAPE), {"error": 0.0}),
    "error = NaN": (OutOfRange, torch.zeros(1, *SHAPE), {"error": float("nan")}),
}


@pytest.mark.parametrize(("error", "x", "options"), ASKED.values(), ids=ASKED.keys())
def test_a_query_that_makes_no_sense_is_refused(error, x, options):
    with pytest.raises(error):
        Exact(normal(3)).posterior(x, NoiseLevel(1.0, 1.0), **options)

"""Near hashes: the same answers as counting every bit of every pair, at any size and for any set."""

import time
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negindex import hamming
from negindex.errors import OutOfRange, ShapeMismatch
from negindex.hamming import BITS, NEAR, Hashes, groups, within


def noise(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32), np.uint8)


def flipped(bits, count, seed=0):
    """Each of (N, 32) with ``count`` bits changed."""
    rng = np.random.default_rng(seed)
    single = np.unpackbits(bits, axis=1)
    for row in single:
        row[rng.choice(BITS, count, replace=False)] ^= 1
    return np.packbits(single, axis=1)


def table(a, b):
    """All distances (N, M), bit by bit."""
    return (np.unpackbits(a, axis=1)[:, None] != np.unpackbits(b, axis=1)[None]).sum(2)


def hanging_together(bits, distance):
    """Groups by walking from neighbour to neighbour."""
    near, seen, found = table(bits, bits) <= distance, set(), []
    for start in range(len(bits)):
        group, front = set(), {start}
        while front:
            group |= front
            front = {int(j) for i in front for j in np.flatnonzero(near[i])} - group
        if start not in seen and len(group) > 1:
            found.append(sorted(group))
        seen |= group
    return found


@st.composite
def sets(draw):
    """A few centres, and hashes at drawn distances from them: equal ones, near ones, links in a chain."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bits = [noise(1, draw(st.integers(0, 3)))[0]]
    for far in draw(st.lists(st.sampled_from([0, 1, 7, 15, 16, 17, 31, 32, 33, 47, 48, 128]), max_size=24)):
        bits.append(flipped(bits[rng.integers(len(bits))][None], far, int(rng.integers(2**32)))[0])
    return np.stack(bits)


DISTANCES = st.sampled_from([0, 1, 15, 16, NEAR, 32, 47, 48, 100, BITS])


@contextmanager
def at_most(megabytes):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
    finally:
        tracemalloc.stop()


# -- exactness ---------------------------------------------------------------------------------


@given(sets(), sets(), DISTANCES)
def test_within_finds_every_near_pair_and_no_other(a, b, distance):
    pairs = within(Hashes(a), Hashes(b), distance)
    distances = table(a, b)
    assert set(zip(pairs.query.tolist(), pairs.row.tolist(), strict=True)) == {
        (int(i), int(j)) for i, j in np.argwhere(distances <= distance)
    }
    assert (pairs.distance == distances[pairs.query, pairs.row]).all()
    order = list(zip(pairs.query, pairs.distance, pairs.row, strict=True))
    assert order == sorted(set(order))


@pytest.mark.parametrize("cost", [0, 1e18], ids=["bands", "every pair"])
@given(sets(), DISTANCES)
@settings(max_examples=40, deadline=None)
def test_groups_are_the_connected_parts(cost, bits, distance):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "_LOOK_UP_COST", cost)
        assert [places.tolist() for places in groups(Hashes(bits), distance)] == hanging_together(bits, distance)


@pytest.mark.parametrize("rows", range(1, 6))
def test_differences_spread_over_all_bands_are_found(monkeypatch, rows):
    """The hardest pair for look-ups: as many bits differ in every band."""
    monkeypatch.setattr(hamming, "_LOOK_UP_COST", 0)
    bits = np.repeat(noise(1), 2, 0)
    bits[1, : 2 * rows] ^= 255
    assert [places.tolist() for places in groups(Hashes(bits), 16 * rows)] == [[0, 1]]
    assert groups(Hashes(bits), 16 * rows - 1) == []


def test_blocks_change_no_answer(monkeypatch):
    bits = np.concatenate([noise(120), flipped(noise(120), NEAR, 1)])
    whole, pairs = groups(Hashes(bits)), within(Hashes(bits), Hashes(bits))
    for size in (1, 3, 50):
        for name in ("_QUERIES", "_ROWS", "_AT_ONCE"):
            monkeypatch.setattr(hamming, name, size)
        assert [places.tolist() for places in groups(Hashes(bits))] == [places.tolist() for places in whole]
        assert all((a == b).all() for a, b in zip(within(Hashes(bits), Hashes(bits)), pairs, strict=True))


def test_the_last_near_distance_is_found_in_a_large_set_and_the_next_is_not():
    bits = noise(20_000)
    bits[-200:-100] = flipped(bits[:100], NEAR)
    bits[-100:] = flipped(bits[100:200], NEAR + 1)
    assert [places.tolist() for places in groups(Hashes(bits))] == [[i, 19_800 + i] for i in range(100)]
    pairs = within(Hashes(bits[:200]), Hashes(bits[200:]))
    assert (pairs.query.tolist(), pairs.row.tolist()) == (list(range(100)), list(range(19_600, 19_700)))
    assert set(pairs.distance.tolist()) == {NEAR}


def test_a_chain_is_one_group_though_its_ends_are_far_apart():
    """Ten thousand links, in any order, without recursion."""
    chain = [np.zeros(BITS, np.uint8)]
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        chain.append(chain[-1].copy())
        chain[-1][rng.choice(BITS, 20, replace=False)] ^= 1
    bits = np.packbits(np.stack(chain), axis=1)[rng.permutation(10_001)]
    assert [len(places) for places in groups(Hashes(bits))] == [10_001]


# -- what people reported ----------------------------------------------------------------------


def test_thirty_thousand_hashes_with_none_near_give_an_empty_answer():
    assert groups(Hashes(noise(30_000))) == []


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_tiny_sets_find_themselves(n):
    hashes = Hashes(noise(n))
    assert groups(hashes) == []
    assert within(hashes, hashes).row.tolist() == list(range(n))
    assert [g.tolist() for g in groups(Hashes(np.repeat(noise(1), n, 0)))] == ([list(range(n))] if n > 1 else [])


def test_fifty_thousand_equal_hashes_cost_as_much_as_one():
    hashes = Hashes(np.repeat(noise(1), 50_000, 0))
    start = time.process_time()
    with at_most(megabytes=16):
        found = groups(hashes)
    assert [len(places) for places in found] == [50_000]
    assert time.process_time() - start < 5


def test_many_different_look_alikes_take_no_memory_for_their_pairs():
    """6,000 hashes, all near each other: 18 million pairs, which as pairs of places would be 288 MB."""
    bits = flipped(np.repeat(noise(1), 6_000, 0), 8)
    with at_most(megabytes=96):
        assert [len(places) for places in groups(Hashes(bits))] == [6_000]


# -- input -------------------------------------------------------------------------------------


def test_a_mask_keeps_the_ids():
    hashes = Hashes(np.repeat(noise(1), 4, 0), np.array([10, 20, 30, 40]))
    kept = hashes.where(np.array([True, False, True, True]))
    assert kept.ids.tolist() == [10, 30, 40]
    assert [kept.ids[places].tolist() for places in groups(kept)] == [[10, 30, 40]]


def test_hashes_come_from_bytes():
    bits = noise(3)
    assert (Hashes.of(row.tobytes() for row in bits).bits == bits).all()
    assert len(Hashes.of([])) == 0


def test_a_hash_of_another_length_is_named():
    with pytest.raises(ShapeMismatch, match="hash 1 has 31 bytes"):
        Hashes.of([bytes(32), bytes(31)])


@pytest.mark.parametrize("bits", [np.zeros((2, 31), np.uint8), np.zeros(32, np.uint8), np.zeros((2, 32), np.int64)])
def test_other_shapes_and_types_are_refused(bits):
    with pytest.raises(ShapeMismatch, match="32"):
        Hashes(bits)


def test_ids_are_one_a_hash():
    with pytest.raises(ShapeMismatch, match="one id a hash"):
        Hashes(noise(3), np.arange(2))


@pytest.mark.parametrize("distance", [-1, 257])
@pytest.mark.parametrize("ask", [lambda h, d: within(h, h, d), groups])
def test_a_distance_that_cannot_be_is_refused(ask, distance):
    with pytest.raises(OutOfRange, match=str(distance)):
        ask(Hashes(noise(2)), distance)

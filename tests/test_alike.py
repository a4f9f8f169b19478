"""Rows that are what is looked for, or near it: the same as comparing every row, and blank hashes say nothing."""

import sqlite3

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sets import NOTICE, rows, state

from negindex import Collection, alike
from negindex.alike import MIN_QUALITY, Likeness, among
from negindex.errors import ContentRefused, InvalidInput, OutOfRange, ShapeMismatch
from negindex.hamming import NEAR
from negindex.states import Provenance
from negindex.tools.cli import main

LOW = MIN_QUALITY - 1


def noise(count, seed=0):
    return [bits.tobytes() for bits in np.random.default_rng(seed).integers(0, 256, (count, 32), np.uint8)]


def flipped(pdq, count, seed=0):
    """The hash with ``count`` bits changed."""
    bits = np.unpackbits(np.frombuffer(pdq, np.uint8))
    bits[np.random.default_rng(seed).choice(256, count, replace=False)] ^= 1
    return np.packbits(bits).tobytes()


def apart(a, b):
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


def digest(i):
    return f"{i:064x}"


def look(*pdqs, quality=100, content=(), embedding=None):
    return Likeness(content, pdqs, quality, embedding)


def source(pdq, quality=100, image=None):
    return Provenance(image, pdq, quality)


HASH = noise(1, seed=7)[0]
BLANK = bytes(32)


@pytest.fixture
def hashed(col):
    """Rows a (HASH), b (32 bits from it), c (HASH, but of too little quality) and d (no hash) in force."""
    sources = [source(HASH, image=digest(1)), source(flipped(HASH, NEAR + 1)), source(HASH, LOW, digest(3)), None]
    col.add(rows(4), ["a", "b", "c", "d"], sources=sources)
    return col


def keys(found):
    return [(one.given, one.source_key, one.by, one.distance) for one in found]


# -- by bytes and by PDQ -----------------------------------------------------------------------


def test_a_row_is_found_at_the_distance_and_not_beyond_it(hashed):
    assert keys(hashed.alike([look(HASH)])) == [(0, "a", "pdq", 0)]
    assert keys(hashed.alike([look(flipped(HASH, NEAR, seed=1))])) == [(0, "a", "pdq", NEAR)]
    assert keys(hashed.alike([look(HASH)], distance=NEAR + 1)) == [(0, "a", "pdq", 0), (0, "b", "pdq", NEAR + 1)]
    assert hashed.alike([look(flipped(HASH, 64))]) == []
    with pytest.raises(OutOfRange, match="257 bits"):
        hashed.alike([look(HASH)], distance=257)


def test_any_form_finds_the_row_once_at_its_nearest(hashed):
    forms = [*noise(6), flipped(HASH, 9), flipped(HASH, 4)]
    assert keys(hashed.alike([look(*noise(1, seed=3)), look(*forms)])) == [(1, "a", "pdq", 4)]


def test_a_hash_of_too_little_quality_finds_nothing_and_is_found_by_nothing(hashed):
    assert hashed.alike([look(HASH, quality=LOW)]) == []
    assert [one.source_key for one in hashed.alike([look(HASH, quality=MIN_QUALITY)])] == ["a"]
    assert [one.source_key for one in hashed.alike([look(HASH, quality=None)])] == ["a"]


def test_bytes_are_found_whatever_the_quality_and_named_before_pdq(hashed):
    stored = hashed.digests()[4]
    found = hashed.alike([look(HASH, content=(digest(3), digest(99))), look(content=(stored,)), Likeness()])
    assert keys(found) == [(0, "c", "bytes", 0), (0, "a", "pdq", 0), (1, "d", "bytes", 0)]
    assert keys(hashed.alike([look(HASH, content=(digest(1),))])) == [(0, "a", "bytes", 0)]


def test_the_hash_of_a_blank_image_is_near_nothing_though_nobody_told_its_quality(col):
    col.add(rows(2), ["white", "black"], sources=[source(BLANK, None), source(BLANK, None)])
    assert col.alike([look(BLANK, quality=None), look(flipped(BLANK, 3), quality=LOW)]) == []
    assert among([look(BLANK, quality=None)] * 2) == []
    assert col.alike_among() == []


def test_what_is_proposed_is_found_what_is_withdrawn_only_when_asked_and_what_is_erased_never(hashed):
    hashed.claims.open("dmca", NOTICE, rows=rows(1, seed=5), source_keys=["z"], sources=[source(flipped(HASH, 2))])
    assert [(one.source_key, one.in_force) for one in hashed.alike([look(HASH)])] == [("a", True), ("z", False)]
    hashed.withdraw(["a"], "a mistake")
    assert [one.source_key for one in hashed.alike([look(HASH)])] == ["z"]
    assert [(one.source_key, one.in_force) for one in hashed.alike([look(HASH, content=(digest(1),))], ever=True)] == [
        ("a", False),
        ("z", False),
    ]
    hashed.erase(["a"], "asked for")
    assert [one.source_key for one in hashed.alike([look(HASH, content=(digest(1),))], ever=True)] == ["z"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 9, 20, 31, 32, 60]), st.booleans()), max_size=30))
def test_the_answer_is_that_of_comparing_every_row(tmp_path_factory, made):
    """Rows and what is looked for lie at drawn distances from four centres; half are of too little quality."""
    centres = noise(4, seed=11)
    hashes = [(flipped(centres[c], far, seed), 100 if enough else LOW) for seed, (c, far, enough) in enumerate(made)]
    held, asked = hashes[::2], hashes[1::2]
    col = Collection.create(tmp_path_factory.mktemp("drawn") / "set", (2, 3), "pixels")
    if held:
        col.add(rows(len(held)), [str(i) for i in range(len(held))], sources=[source(*one) for one in held])
    found = {
        (one.given, int(one.source_key)): one.distance for one in col.alike([look(p, quality=q) for p, q in asked])
    }
    assert found == {
        (i, j): apart(p, other)
        for i, (p, q) in enumerate(asked)
        for j, (other, known) in enumerate(held)
        if apart(p, other) <= NEAR and min(q, known) >= MIN_QUALITY
    }
    col.close()


def test_many_pages_of_rows_are_read_as_one(hashed, monkeypatch):
    monkeypatch.setattr("negindex.catalogue._PAGE", 1)
    assert keys(hashed.alike([look(HASH)])) == [(0, "a", "pdq", 0)]


# -- by embedding ------------------------------------------------------------------------------


def vectors(count, seed=0, size=5):
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float16)


@pytest.fixture
def embedded(col):
    col.add(rows(40), [f"{i:02}" for i in range(40)], embeddings=vectors(40))
    col.add(rows(2, seed=1), ["none", "nor"])
    return col


@pytest.mark.parametrize("at_once", [1, 1 << 14, 1 << 22])
def test_embeddings_from_the_cosine_on_are_found_in_blocks_of_any_size(embedded, at_once, monkeypatch):
    monkeypatch.setattr(alike, "_AT_ONCE", at_once)
    asked, kept = vectors(7, seed=2).astype(np.float64), vectors(40).astype(np.float64)
    table = asked @ kept.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(kept, axis=1)
    found = embedded.alike([look(embedding=wide) for wide in asked], cosine=0.6)
    assert {(one.given, int(one.source_key)) for one in found} == {
        tuple(map(int, at)) for at in np.argwhere(table >= 0.6)
    }
    assert found
    for one in found:
        assert one.by == "embedding"
        assert one.distance == pytest.approx(1 - table[one.given, int(one.source_key)], abs=1e-5)
    distances = [one.distance for one in found if one.given == found[0].given]
    assert distances == sorted(distances)


def test_withdrawn_rows_never_answer_by_embedding(embedded):
    asked = [look(embedding=vectors(40)[3])]
    assert [one.source_key for one in embedded.alike(asked, cosine=0.999)] == ["03"]
    embedded.withdraw(["03"], "a mistake")
    assert embedded.alike(asked, cosine=0.999) == []
    assert [one.in_force for one in embedded.alike(asked, cosine=0.999, ever=True)] == [False]


def test_nought_is_near_nothing(col):
    col.add(rows(1), ["a"], embeddings=np.zeros((1, 4)))
    assert col.alike([look(embedding=np.zeros(4)), look(embedding=np.ones(4))], cosine=0.01) == []


def test_embeddings_of_another_model_and_cosines_that_nobody_measured_are_refused(embedded):
    with pytest.raises(InvalidInput, match="embeddings without a cosine"):
        embedded.alike([look(embedding=np.ones(5))])
    with pytest.raises(ShapeMismatch, match=r"of 4 numbers, and the set's have \[5\]"):
        embedded.alike([look(embedding=np.ones(4))], cosine=0.9)
    with pytest.raises(ShapeMismatch, match="the same for all"):
        embedded.alike([look(embedding=np.ones(4)), look(embedding=np.ones(5))], cosine=0.9)
    for cosine in (0.0, 1.1):
        with pytest.raises(OutOfRange, match=f"a cosine of {cosine}"):
            embedded.alike([look(embedding=np.ones(5))], cosine=cosine)


# -- among what is given, and within the set -----------------------------------------------------


def test_what_is_given_hangs_together_by_bytes_forms_and_embeddings():
    far = noise(6, seed=4)
    given_ones = [
        look(far[0], content=(digest(1),)),
        look(far[1], flipped(HASH, 3)),  # its mirror image is the next but one
        look(content=(digest(1), digest(2)), quality=0),
        look(HASH, far[2], embedding=np.array([1.0, 0, 0])),
        look(far[3], embedding=np.array([0, 1.0, 0])),
        look(far[4], embedding=np.array([0, 1.0, 0.1])),
        look(far[5], far[5]),  # its own mirror image
        look(flipped(far[5], NEAR + 1)),
    ]
    assert among(given_ones, cosine=0.9) == [[0, 2], [1, 3], [4, 5]]
    assert among(given_ones, cosine=0.9, distance=NEAR + 1) == [[0, 2], [1, 3], [4, 5], [6, 7]]
    assert among([]) == []


def test_rows_of_the_set_hang_together_by_bytes_and_pdq(hashed):
    assert hashed.alike_among() == []
    hashed.add(
        np.concatenate([rows(1, seed=8), rows(4)[3:]]),
        ["e", "f"],
        sources=[source(flipped(HASH, 5), image=digest(9)), None],
    )
    assert hashed.alike_among() == [{1: "a", 5: "e"}, {4: "d", 6: "f"}]
    assert hashed.alike_among(distance=NEAR + 5) == [{1: "a", 2: "b", 5: "e"}, {4: "d", 6: "f"}]
    hashed.withdraw(["e", "f"], "a mistake")
    assert hashed.alike_among() == []
    assert hashed.alike_among(ever=True) == [{1: "a", 5: "e"}, {4: "d", 6: "f"}]


def test_nothing_is_near_among_30_000_rows_of_noise(col):
    """Case 12: a duplicate search that finds nothing says so."""
    col.add(rows(1), ["first"])
    bits = noise(30_000, seed=12)
    with sqlite3.connect(col.path / "catalogue.sqlite") as db:
        sql = """INSERT INTO rows (source_key, sha256, image_sha256, pdq, quality, commitment, added)
                 VALUES (?, ?, ?, ?, 100, '', 1)"""
        db.executemany(sql, [(f"k{i}", digest(i), digest(i + 10**6), pdq) for i, pdq in enumerate(bits)])
    db.close()
    done = CliRunner().invoke(main, ["similar", str(col.path)])
    assert (done.exit_code, done.stdout) == (0, "")
    asked = [look(pdq) for pdq in noise(30, seed=13)]
    assert col.alike(asked) == []
    assert among([look(pdq) for pdq in bits]) == []
    assert [one.source_key for one in col.alike([*asked, look(bits[29_999])])] == ["k29999"]


# -- what is kept out, and what a hash names -------------------------------------------------------


@pytest.mark.parametrize(
    ("pdq", "quality", "refused"),
    [
        (HASH, 100, True),
        (flipped(HASH, NEAR), MIN_QUALITY, True),
        (flipped(HASH, NEAR), None, True),
        (flipped(HASH, NEAR + 1), 100, False),
        (HASH, LOW, True),
        (flipped(HASH, 1), LOW, False),
    ],
)
def test_a_hash_only_claim_by_pdq_refuses_what_is_near_and_of_low_quality_only_what_is_equal(
    three, pdq, quality, refused
):
    three.claims.open("hash-only", {"source": "a list"}, hashes=[f"pdq:{HASH.hex()}"])
    before = state(three)
    given_rows, sources = rows(2, seed=5), [source(pdq, quality), source(noise(1)[0])]
    assert three.barred([look(pdq, quality=quality), Likeness()]) == [refused, False]
    if refused:
        with pytest.raises(ContentRefused, match="'x' is content that a claim allows no copy of") as said:
            three.add(given_rows, ["x", "y"], sources=sources)
        assert said.value.keys == ("x",)
        assert state(three) == before
    else:
        three.add(given_rows, ["x", "y"], sources=sources)


def test_a_list_longer_than_what_is_looked_for_is_read_whole(three):
    listed = noise(50, seed=20)
    three.claims.open("hash-only", {"source": "a list"}, hashes=[f"pdq:{pdq.hex()}" for pdq in listed])
    asked = [look(HASH), look(flipped(listed[49], 8)), look(HASH, flipped(listed[0], NEAR)), look(listed[7], quality=0)]
    assert three.barred(asked) == [False, True, True, True]
    assert three.barred([]) == []


def test_a_list_with_a_blank_image_s_hash_keeps_no_blank_image_out(three):
    three.claims.open("hash-only", {"source": "a list"}, hashes=[f"pdq:{BLANK.hex()}"])
    assert three.barred([look(BLANK, quality=0), look(BLANK, quality=None), look(HASH)]) == [False] * 3


def test_what_a_closed_claim_named_comes_in_again(three):
    claim = three.claims.open("hash-only", {"source": "a list"}, hashes=[f"pdq:{HASH.hex()}"]).number
    three.claims.withdraw(claim, reason="a mistake")
    assert three.barred([look(HASH)]) == [False]


def test_a_claim_by_pdq_names_the_near_rows_that_are_held_and_those_that_come(hashed):
    claim = hashed.claims.open("dmca", NOTICE, hashes=[f"pdq:{flipped(HASH, 3).hex()}"]).number
    assert hashed.claims.show(claim).rows == {1: "a"}
    hashed.claims.accept(claim)
    sources = [source(flipped(HASH, 20)), source(flipped(HASH, 3), LOW), source(flipped(HASH, 60)), None]
    hashed.add(rows(4, seed=6), ["near", "equal", "far", "unknown"], sources=sources)
    assert hashed.claims.show(claim).rows == {1: "a", 5: "near", 6: "equal"}


def test_a_hash_of_another_size_is_refused_before_it_is_stored(three):
    before = state(three)
    with pytest.raises(ShapeMismatch, match="has 5 bytes"):
        three.add(rows(1, seed=5), ["x"], sources=[Provenance(pdq=b"short")])
    assert state(three) == before

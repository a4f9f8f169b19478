"""One row an image: what goes has a row that stays beside it, claims keep theirs, and nothing is lost unsaid."""

import json
from itertools import pairwise

import numpy as np
import pytest
from corpora import png, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images
from small_sets import NOTICE, rows, state
from test_alike import HASH, apart, digest, flipped, noise, source

from negindex import Collection
from negindex.hamming import NEAR
from negindex.states import Provenance

USAGE = 2


def stays(collection, **options):
    return {one.source_key: one.stays for group in collection.duplicates(**options) for one in group}


def chain(count, step, seed=0):
    """Hashes of which each differs from the one before in ``step`` other bits."""
    places = np.random.default_rng(seed).permutation(256)
    bits, found = np.unpackbits(np.frombuffer(HASH, np.uint8)), [HASH]
    for start in range(0, (count - 1) * step, step):
        bits = bits.copy()
        bits[places[start : start + step]] ^= 1
        found.append(np.packbits(bits).tobytes())
    return found


@pytest.fixture
def doubled(col):
    """a, b and c alike; d alone; e and f with the same image file and hashes that say nothing."""
    told = [source(HASH), source(flipped(HASH, 9)), source(flipped(HASH, 20)), source(noise(1)[0])]
    told += [Provenance(digest(5)), Provenance(digest(5))]
    col.add(rows(6), list("abcdef"), sources=told)
    return col


def test_one_row_an_image_stays_and_the_rest_is_withdrawn_on_record(doubled):
    version, groups = doubled.dedup("twice", by="ann")
    assert doubled.source_keys() == ["a", "d", "e"]
    assert [[one.source_key for one in group] for group in groups] == [["a", "b", "c"], ["e", "f"]]
    assert [(one.near, one.distance) for one in groups[0]] == [(1, 0), (1, 9), (1, 20)]
    last = doubled.newest()
    assert (last.version, last.action, last.reason, last.by, last.changed) == (version, "withdraw", "twice", "ann", 3)
    assert doubled.duplicates() == []
    assert doubled.dedup("again")[0] == version, "nothing to withdraw is no version"
    assert len(doubled.snapshot(1)) == 6
    assert doubled.verify() == []


def test_of_a_chain_whose_ends_are_unlike_no_row_goes_without_one_that_stays_near_it(col):
    col.add(rows(8), list("abcdefgh"), sources=[source(pdq) for pdq in chain(8, NEAR)])
    (group,) = col.duplicates()
    assert len(group) == 8, "all hang together"
    assert [one.source_key for one in group if one.stays] == ["a", "c", "e", "g"]
    assert all(one.distance <= NEAR for one in group)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 80))
def test_every_row_that_goes_is_within_the_distance_of_one_that_stays(tmp_path_factory, seed, distance):
    made = np.random.default_rng(seed)
    pdqs = [flipped(HASH, int(made.integers(0, 40)), int(made.integers(1 << 30))) for _ in range(30)]
    labels = [str(made.integers(2)) for _ in pdqs]
    collection = Collection.create(tmp_path_factory.mktemp("d") / "set", (2, 3), "pixels")
    keys = [f"{i:02}" for i in range(30)]
    collection.add(rows(30), keys, label=labels, sources=[source(pdq) for pdq in pdqs])
    hash_of, label_of = dict(enumerate(pdqs, 1)), dict(enumerate(labels, 1))
    members = [one for group in collection.duplicates(distance=distance) for one in group]
    kept = {one.row for one in members if one.stays}
    for one in members:
        assert one.near in kept
        assert label_of[one.near] == label_of[one.row]
        assert one.distance == apart(hash_of[one.row], hash_of[one.near]) <= distance
    for a, b in ((a, b) for a in kept for b in kept if a < b and label_of[a] == label_of[b]):
        assert apart(hash_of[a], hash_of[b]) > distance, "of two rows that stay, neither stands for the other"


def test_a_row_under_another_label_stays(col):
    col.add(rows(3), list("abc"), label=["x", "y", "x"], sources=[source(HASH)] * 3)
    col.dedup("twice")
    assert col.source_keys() == ["a", "b"]
    assert (len(col.where(label="x").pin()), len(col.where(label="y").pin())) == (1, 1)


def test_a_row_that_a_claim_keeps_in_force_stays_and_stands_for_the_others(doubled):
    claim = doubled.claims.open("dmca", NOTICE, source_keys=["b"])
    doubled.claims.accept(claim.number)
    doubled.dedup("twice")
    assert doubled.source_keys() == ["b", "d", "e"]
    assert doubled.verify() == []


def test_the_command_reports_first_changes_when_asked_and_says_both_to_machines(doubled):
    before = state(doubled)
    done = run("dedup", doubled.path)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == "near each other: a (stays), b (9 bits from row 1), c (20 bits from row 1)"
    dry = run("dedup", doubled.path, "--keep-one", "--dry-run", "--json")
    said = json.loads(dry.stdout)
    assert (said["spare"], said["withdrawn"], said["rows_in_force"]) == (3, 0, 6)
    assert run("dedup", doubled.path, "--keep-one").exit_code == USAGE
    assert run("dedup", doubled.path, "--dry-run").exit_code == USAGE
    assert state(doubled) == before
    said = json.loads(run("dedup", doubled.path, "--keep-one", "--reason", "twice", "--by", "ann", "--json").stdout)
    assert (said["spare"], said["withdrawn"], said["rows_in_force"], said["version"]) == (3, 3, 3, 2)
    gone = [one["source_key"] for group in said["groups"] for one in group if not one["stays"]]
    assert gone == ["b", "c", "f"]
    assert doubled.source_keys() == ["a", "d", "e"]


def test_nothing_near_is_an_empty_report(col):
    """Case 12: 30,000 rows of noise."""
    bits = noise(30_000, seed=12)
    col.add(rows(30_000), [f"k{i}" for i in range(30_000)], sources=[source(pdq) for pdq in bits])
    done = run("dedup", col.path, "--json")
    assert (done.exit_code, json.loads(done.stdout)["groups"]) == (0, [])
    done = run("dedup", col.path, "--keep-one", "--reason", "twice")
    assert (done.exit_code, col.newest().version, len(col)) == (0, 1, 30_000)


def test_a_group_of_thousands_is_one_group(col):
    """No recursion, and nothing squared in memory."""
    near = [flipped(HASH, i % 10, i) for i in range(4000)]
    col.add(rows(4000), [f"{i:04}" for i in range(4000)], sources=[source(pdq) for pdq in near])
    (group,) = col.duplicates()
    assert (len(group), sum(one.stays for one in group)) == (4000, 1)
    links = chain(250, 1)
    assert all(apart(a, b) == 1 for a, b in pairwise(links))


def test_blank_images_never_group_with_photographs(tmp_path):
    """Case 13: white, black and one-pixel images, each beside photographs and beside a copy of itself."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        image = Image.fromarray(photo).resize((320, 214))
        image.save(folder / f"{name}.png")
        image.resize((160, 107)).save(folder / f"{name}-small.png")
    for name, colour in (("white", "white"), ("black", "black")):
        for side in (1, 5, 64):
            Image.new("RGB", (side, side), colour).save(folder / f"{name}-{side}.png")
    (folder / "pixel.png").write_bytes(png(3, (1, 1), "RGB"))
    assert run("build", tmp_path / "a.set", folder, "--size", 16).exit_code == 0
    groups = Collection.open(tmp_path / "a.set").duplicates()
    names = [[one.source_key.removeprefix("in/").removesuffix(".png") for one in group] for group in groups]
    found = {frozenset(name.partition("-")[0] for name in group) for group in names}
    assert found == {frozenset({name}) for name in ("china", "flower", "white", "black")}

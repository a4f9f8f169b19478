"""Erasure: the bytes are in no file any more, the log stands, and what a reader holds up is pending, not done."""

from itertools import pairwise

import pytest
import torch
from small_sets import SHAPE, rows

from negindex import Collection, NoiseLevel, merkle
from negindex.errors import ContentRefused, Erased, UnknownKey
from negindex.log import Record
from negindex.states import Provenance

MARK = b"canary-canary-canary-canary-canary-canary-canary-canary-canary!!"
TEXT = MARK.decode()


def holding(col, *marks):
    """Files below the set that hold one of the marks."""
    return [p.name for p in col.path.rglob("*") if p.is_file() and any(m in p.read_bytes() for m in marks)]


@pytest.fixture
def planted(col):
    """64 marked bytes in a thumbnail, a note, a claimant, a label and a key, and a row of known bytes."""
    col.add(rows(40), [f"row-{i}" for i in range(40)])
    marked = rows(1, seed=77)
    source = Provenance(thumbnail=b"\x89PNG" + MARK)
    col.claims.open(
        "dmca",
        {"work": f"work {TEXT}", "signature": f"name {TEXT}"},
        rows=marked,
        source_keys=[f"key {TEXT}"],
        label=f"label {TEXT}",
        sources=[source],
        embeddings=rows(1, seed=78).reshape(1, -1),
        reason=f"note {TEXT}",
    )
    col.claims.amend(
        2, dict.fromkeys(("good_faith", "accuracy", "authority"), "yes") | {"material": "m", "contact": "c"}
    )
    col.claims.accept(2)
    col.withdraw(["row-3"], "another change")
    return col, (MARK, marked.tobytes(), rows(1, seed=78).tobytes())


def test_erased_bytes_are_in_no_file_of_the_set(planted):
    col, marks = planted
    assert all(holding(col, mark) for mark in marks)
    col.claims.withdraw(2)
    col.claims.erase(2)
    assert col.outstanding() == []
    assert holding(col, *marks) == []
    assert col.claims.show(2).state == "erased"
    assert col.claims.claimant(2) == {}
    assert len(Collection.open(col.path)) == 39


def test_an_erasure_is_pending_while_a_reader_holds_an_old_version(planted):
    col, marks = planted
    col.claims.withdraw(2)
    held = Collection.open(col.path).snapshot(4)
    col.claims.erase(2)
    (left,) = [one for one in col.outstanding() if one.what == "file"]
    assert [holder.program != "" for holder in col.holders(left)] == [True]  # this process, by name
    assert len(held) == 41
    assert col.settle() == [left]
    del held
    assert col.settle() == []
    assert holding(col, *marks) == []


def test_versions_that_held_erased_rows_cannot_be_opened_and_say_so(three):
    three.withdraw(["b"], "a mistake")
    three.erase(["a"], "asked for")
    for version in (1, 2):
        with pytest.raises(Erased, match=f"version {version} held rows that were erased at version 3"):
            three.snapshot(version)
    assert three.in_force(1) == {1: None, 2: "b", 3: "c"}
    assert len(three.snapshot(3)) == 1


def test_an_erased_key_is_unknown_and_may_come_again(three):
    three.erase(["a"], "asked for")
    with pytest.raises(UnknownKey):
        three.erase(["a"], "again")
    three.add(rows(1), ["a"])
    assert three.in_force()[4] == "a"


def test_a_fingerprint_keeps_erased_content_out(three):
    three.erase(["a"], "asked for", keep_out=True)
    with pytest.raises(ContentRefused, match="was erased and is kept out"):
        three.add(rows(1), ["under another name"])
    three.add(rows(1, seed=4), ["other content"])


def test_the_log_stands_after_an_erasure(planted):
    col, _ = planted
    before, checkpoint = col.log(), col.checkpoint()
    col.claims.withdraw(2)
    col.claims.erase(2)
    after = col.log()
    assert after[: len(before)] == before
    leaves = [record.to_json().encode() for record in after]
    assert merkle.root(leaves).hex() == col.checkpoint().root
    assert (
        merkle.root(leaves[: checkpoint.version + 1]).hex()
        == checkpoint.root
        == col.checkpoint(checkpoint.version).root
    )
    assert all(b.previous == a.digest for a, b in pairwise(after))
    assert [Record.from_json(record.to_json()) for record in after] == after
    assert TEXT not in "".join(record.to_json() for record in after)


def test_compaction_changes_no_version_and_no_answer(col):
    for i in range(40):
        col.add(rows(1, seed=i), [f"row-{i}"])
        if i % 3 == 0:
            col.withdraw([f"row-{i}"], "every third")
    x_t, level = torch.zeros(1, *SHAPE), NoiseLevel(1.0, 1.0)
    versions = [v.version for v in col.versions() if v.in_force]
    before = {v: col.snapshot(v).posterior(x_t, level).log_norm for v in versions}
    col.compact()
    assert len(col.segments()) <= 20
    assert [v.version for v in col.versions() if v.in_force] == versions
    for version in versions:
        assert torch.equal(Collection.open(col.path).snapshot(version).posterior(x_t, level).log_norm, before[version])


def test_old_versions_can_be_given_up_and_the_log_says_so(three):
    three.withdraw(["a"], "a mistake")
    three.compact(forget_before=2, reason="kept long enough")
    assert three.newest().action == "forget"
    with pytest.raises(Erased, match="compaction has given up"):
        three.snapshot(1)
    assert len(three.snapshot(2)) == len(three.snapshot()) == 2
    assert three.outstanding() == []

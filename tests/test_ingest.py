"""A build never loses count: one outcome an input, resumed after any end, in any order and number of shares."""

import json
import os
import signal
import time

import numpy as np
import pytest
from corpora import ledger, png, run, tar
from forked import PROCESSES
from small_sets import state

from negindex import Collection
from negindex.errors import Damaged, NotThere
from negindex.geometry import COVER
from negindex.sampler import encode, sweep
from negindex.sampler import ingest as ingesting
from negindex.sampler.encode import PixelEncoder
from negindex.sampler.ingest import OUTCOMES, check_parts, chosen, ingest, left_out_in
from negindex.sampler.sources import Files, Item, sources_of
from negindex.tools.cli import main

PARTLY, USAGE, NOT_THERE, INTEGRITY = 3, 2, 10, 13
GREY = PixelEncoder(8, 8, 1)


def corpus(folder, count, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(start, start + count):
        (folder / f"{place:04}.png").write_bytes(png(place))
    return folder


def contents(collection):
    """{source key: sha256 of the row}: what sets are compared by."""
    keys, digests = collection.in_force(), collection.digests()
    return {keys[row]: digests[row] for row in keys}


def built(path, *sources, **options):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    return run("build", path, *sources, "--size", 8, *words)


# -- one outcome an input ------------------------------------------------------------------------


def test_every_input_has_one_line_with_what_became_of_it(tmp_path):
    folder = corpus(tmp_path / "corpus", 4)
    (folder / "bad.png").write_bytes(b"text")
    (folder / "list.txt").write_text("0001.png\n0002.png\n0001.png\ngone.png\nbad.png\n")
    assert built(tmp_path / "a.set", folder / "0000.png").exit_code == 0
    lines = [folder / "0000.png", f"@{folder}/list.txt"]
    done = built(tmp_path / "a.set", *lines, ledger=tmp_path / "run.jsonl")
    assert done.exit_code == PARTLY
    assert "3 rows in force (2 added, 1 already there, 1 refused, 1 given twice, 1 could not be read)" in done.stdout
    entries = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    found = sorted((entry["key"], entry["outcome"]) for entry in entries)
    assert found == [
        ("0000.png", "there already"),
        ("0001.png", "duplicate"),
        ("0001.png", "in"),
        ("0002.png", "in"),
        ("bad.png", "refused"),
        ("gone.png", "failed"),
    ]
    collection = Collection.open(tmp_path / "a.set")
    held = collection.held(["0000.png", "0001.png", "0002.png"])
    for entry in entries:
        if entry["outcome"] not in ("refused", "failed"):
            row = held[entry["key"]]
            assert (entry["row"], entry["version"], entry["sha256"]) == (row.row, row.added, row.image_sha256)
        else:
            assert entry["reason"]


def test_the_summary_for_machines_adds_up(tmp_path):
    folder = corpus(tmp_path / "corpus", 3)
    (folder / "bad.png").write_bytes(b"text")
    said = json.loads(run("build", tmp_path / "a.set", folder, "--size", 8, "--json").stdout)
    assert (said["inputs"], said["in"], said["refused"], said["rows_in_force"], said["version"]) == (4, 3, 1, 3, 1)
    assert said["inputs"] == sum(said[outcome.replace(" ", "_")] for outcome in OUTCOMES)


def test_no_ledger_is_left_unless_one_is_asked_for(tmp_path):
    folder = corpus(tmp_path / "corpus", 2)
    before = set(tmp_path.rglob("*"))
    built(tmp_path / "a.set", folder)
    made = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert made == {"a.set"}
    assert not [path for path in (tmp_path / "a.set").rglob("*") if path.suffix == ".jsonl"]
    assert built(tmp_path / "a.set", folder, ledger=tmp_path / "nowhere" / "x.jsonl").exit_code == NOT_THERE


@pytest.mark.parametrize("far", [False, True])
def test_a_key_that_comes_twice_counts_once_near_and_far(tmp_path, monkeypatch, far):
    """In one version, or in two: with the same bytes a duplicate, with others refused."""
    monkeypatch.setattr("negindex.sampler.ingest.ENCODED_BYTES", 1 if far else 1 << 20)
    collection = Collection.create(tmp_path / "a.set", GREY.shape, "pixels")
    items = [Item("k", "a/1.png", read=lambda: png(1)), Item("k", "b/1.png", read=lambda: png(1))]
    items += [Item("k", "c/1.png", read=lambda: png(2)), Item("k", "d", row=np.ones(GREY.shape, np.float32))]
    report = ingest(collection, items, GREY)
    assert dict(report.counts) == {"in": 1, "duplicate": 1, "refused": 2}
    assert len(collection) == 1


# -- resuming --------------------------------------------------------------------------------------


def test_what_is_there_is_not_decoded_again(tmp_path, monkeypatch):
    folder = corpus(tmp_path / "corpus", 5)
    built(tmp_path / "a.set", folder)
    (folder / "9999.png").write_bytes(png(9999))
    opened, real = [], encode.read_image
    monkeypatch.setattr(sweep, "read_image", lambda f, name, **more: opened.append(name) or real(f, name, **more))
    assert "(1 added, 5 already there, 0 refused)" in built(tmp_path / "a.set", folder).stdout
    assert opened == ["9999.png"]
    (folder / "0003.png").write_bytes(png(333))
    assert built(tmp_path / "a.set", folder).exit_code == PARTLY
    assert opened[1:] == ["0003.png"], "a changed file is read again"


def test_a_row_that_only_somebody_elses_claim_holds_gets_one_of_our_own(tmp_path):
    folder = corpus(tmp_path / "corpus", 1)
    built(tmp_path / "a.set", folder)
    collection = Collection.open(tmp_path / "a.set")
    (row,) = collection.in_force()
    assert collection.held(["corpus/0000.png"])["corpus/0000.png"].in_house
    fields = dict.fromkeys(("signature", "work", "material", "contact", "good_faith", "accuracy", "authority"), "yes")
    claim = collection.claims.open("dmca", fields, source_keys=["corpus/0000.png"])
    collection.claims.accept(claim.number)
    collection.claims.withdraw(1, reason="r", by="me")
    assert list(collection.in_force()) == [row]
    assert not collection.held(["corpus/0000.png"])["corpus/0000.png"].in_house
    assert "(0 added, 1 already there, 0 refused)" in built(tmp_path / "a.set", folder).stdout
    assert collection.held(["corpus/0000.png"])["corpus/0000.png"].in_house


def test_what_failed_is_tried_again_by_its_ledger_alone(tmp_path):
    folder = corpus(tmp_path / "corpus", 4)
    (folder / "0001.png").write_bytes(b"text")
    built(tmp_path / "a.set", folder, ledger=tmp_path / "1.jsonl")
    (folder / "0001.png").write_bytes(png(1))
    (folder / "new.png").write_bytes(png(77))
    done = built(tmp_path / "a.set", folder, retry_failed=tmp_path / "1.jsonl", ledger=tmp_path / "2.jsonl")
    assert done.exit_code == 0, done.output
    assert ledger(tmp_path / "2.jsonl")[0] == {"corpus/0001.png": "in"}
    assert len(Collection.open(tmp_path / "a.set")) == 4
    done = built(tmp_path / "a.set", folder, retry_failed=tmp_path / "1.jsonl", ledger=tmp_path / "1.jsonl")
    assert done.exit_code == USAGE, "a ledger is not written over while it is read"
    assert left_out_in(tmp_path / "1.jsonl") == {"corpus/0001.png"}


def test_a_ledger_that_is_none_is_named(tmp_path):
    with pytest.raises(NotThere):
        left_out_in(tmp_path / "none.jsonl")
    for content in ("{", "[]\n", '{"key": "a"}\n', "\xff"):
        (tmp_path / "a.jsonl").write_text(content, encoding="latin-1")
        with pytest.raises(Damaged, match="is no ledger"):
            left_out_in(tmp_path / "a.jsonl")


def command(*words, slow=False):
    """In a process of its own: the command, with twenty rows a version and slow files where that is asked for."""
    if slow:
        real = sweep.read_image
        ingesting.ENCODED_BYTES = 20 * 128
        sweep.read_image = lambda *a, **k: time.sleep(0.004) or real(*a, **k)
    main([str(word) for word in words])


def started(*words, **options):
    process = PROCESSES.Process(target=command, args=words, kwargs=options)
    process.start()
    return process


def test_a_build_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    """Case 10: kill -9, twice; ``verify`` is clean in between; the same command finishes."""
    folder = corpus(tmp_path / "corpus", 300)
    path = tmp_path / "a.set"
    words = ["build", path, folder, "--size", "8", "--ledger", tmp_path / "run.jsonl"]
    for rows in (40, 140):
        process = started(*words, slow=True)
        while process.is_alive() and not (path.exists() and len(Collection.open(path)) >= rows):
            time.sleep(0.02)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was killed while it ran"
        assert Collection.open(path).verify() == []
        assert rows <= len(Collection.open(path)) < 300
    done = run(*words)
    assert done.exit_code == 0, done.output
    collection = Collection.open(path)
    assert collection.verify() == []
    assert len(ledger(tmp_path / "run.jsonl")[0]) == len(collection) == 300
    built(tmp_path / "b.set", folder)
    assert contents(collection) == contents(Collection.open(tmp_path / "b.set"))


# -- order, shares, merging ------------------------------------------------------------------------


def test_the_set_is_the_same_in_whatever_order_files_are_read(tmp_path):
    folder = corpus(tmp_path / "corpus", 30)
    files = [(path.name, path) for path in sorted(folder.iterdir())]
    found = []
    for name, order in (
        ("a", files),
        ("b", files[::-1]),
        ("c", [files[i] for i in np.random.default_rng(0).permutation(30)]),
    ):
        collection = Collection.create(tmp_path / name, GREY.shape, "pixels")
        ingest(collection, chosen([Files(order)], GREY.shape), GREY)
        found.append(contents(collection))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 30


def test_four_shares_in_four_processes_make_the_set_that_one_makes(tmp_path):
    folder = corpus(tmp_path / "corpus", 60)
    shard = tar(tmp_path / "more.tar", [(f"{place}.png", png(100 + place)) for place in range(40)])
    parts = [tmp_path / f"{index}.set" for index in (1, 2, 3, 4)]
    running = [
        started("build", part, folder, shard, "--size", 8, "--shard", f"{index}/4")
        for index, part in enumerate(parts, 1)
    ]
    for process in running:
        process.join()
        assert process.exitcode == 0
    assert built(tmp_path / "one.set", folder, shard).exit_code == 0
    done = run("merge", tmp_path / "all.set", *parts, "--json", "--ledger", tmp_path / "run.jsonl")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["in"] == 100
    one, merged = Collection.open(tmp_path / "one.set"), Collection.open(tmp_path / "all.set")
    assert contents(one) == contents(merged)
    keys = one.source_keys()
    assert {k: h.image_sha256 for k, h in one.held(keys).items()} == {
        k: h.image_sha256 for k, h in merged.held(keys).items()
    }
    assert "(0 added, 100 already there, 0 refused)" in built(tmp_path / "all.set", folder, shard).stdout
    assert merged.verify() == []


def test_merging_again_changes_nothing_and_other_bytes_are_named(tmp_path):
    a, b = corpus(tmp_path / "x" / "in", 3), corpus(tmp_path / "y" / "in", 3, start=2)
    (b / "0003.png").write_bytes(png(99))
    (a / "0003.png").write_bytes(png(3))
    built(tmp_path / "a.set", a)
    built(tmp_path / "b.set", b)
    done = run("merge", tmp_path / "c.set", tmp_path / "a.set", tmp_path / "b.set")
    assert done.exit_code == PARTLY
    assert "refused: in/0003.png: its key came before, with other bytes" in done.stderr
    merged = Collection.open(tmp_path / "c.set")
    before = state(merged)
    assert run("merge", tmp_path / "c.set", tmp_path / "a.set").exit_code == 0
    assert state(merged) == before
    assert merged.source_keys() == [f"in/{place:04}.png" for place in range(5)]
    assert run("merge", tmp_path / "c.set", tmp_path / "nowhere.set").exit_code == NOT_THERE


def test_merged_rows_stay_out_where_the_set_keeps_them_out(tmp_path):
    folder = corpus(tmp_path / "corpus", 3)
    built(tmp_path / "a.set", folder)
    target = Collection.create(tmp_path / "b.set", GREY.shape, "pixels")
    ingest(target, chosen(sources_of([folder]), GREY.shape), GREY)
    target.erase(["corpus/0001.png"], "r", keep_out=True)
    done = run("merge", target.path, tmp_path / "a.set")
    assert done.exit_code == PARTLY
    assert "corpus/0001.png: a claim allows no copy of it" in done.stderr
    assert len(target) == 2


def test_without_an_encoder_images_are_refused_by_name(tmp_path):
    collection = Collection.create(tmp_path / "a.set", GREY.shape, "pixels")
    report = ingest(collection, chosen(sources_of([corpus(tmp_path / "c", 1)]), GREY.shape))
    assert dict(report.counts) == {"refused": 1}
    assert "nothing makes rows of images here" in report.refused[0][1]
    check_parts(GREY.shape, "pixels", [], COVER)


def test_a_size_is_asked_for_where_images_make_a_new_set(tmp_path):
    done = run("build", tmp_path / "a.set", corpus(tmp_path / "c", 1))
    assert done.exit_code == USAGE
    assert "--size is missing" in done.stderr
    built(tmp_path / "a.set", tmp_path / "c")
    assert run("build", tmp_path / "a.set", tmp_path / "c").exit_code == 0, "a set that exists knows its own"
    assert os.listdir(tmp_path / "c") == ["0000.png"]

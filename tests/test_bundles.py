"""A set in one file: row for row what was in force, the same bytes for a version, taken in whole or refused by name."""

import gzip
import io
import json
import subprocess
import tarfile
import tracemalloc
from hashlib import sha256
from itertools import islice

import numpy as np
import pytest
from corpora import ledger, png, run
from safetensors.numpy import load
from test_sources import HOSTILE

from negindex import Collection
from negindex.errors import Damaged, InvalidInput, NewerFormat, NotAllowed, NotThere
from negindex.sampler import bundles
from negindex.sampler.bundles import HEAD, MOST_ROWS, SUMS, export, head_of, pairs_of
from negindex.sampler.ingest import chosen, ingest
from negindex.sampler.sources import sources_of
from negindex.states import Provenance

PARTLY, USAGE, NOT_THERE, ALLOWED, INTEGRITY = 3, 2, 10, 12, 13
SHAPE = (2, 3)


def a_set(path, count=10, *, dtype="float16", start=0, space="vae x"):
    """Rows with labels and hashes; the first half with embeddings, which is two blocks of a bundle."""
    collection = Collection.create(path, SHAPE, space, dtype=dtype)
    for first, wide in ((start, np.eye(count, 5)), (start + count // 2, None)):
        numbers = range(first, start + count if wide is None else start + count // 2)
        rows = np.stack([np.random.default_rng(i).normal(size=SHAPE) for i in numbers])
        hashes = [sha256(b"%d" % i) for i in numbers]
        kept = [Provenance(one.hexdigest(), one.digest(), i % 101) for i, one in zip(numbers, hashes, strict=True)]
        words = {} if wide is None else {"embeddings": wide[: len(rows)], "embedded_by": "clip tiny"}
        collection.add(
            rows,
            [f"ä/{i}\n" for i in numbers],
            label=["odd" if i % 2 else None for i in numbers],
            sources=[one if i % 3 else None for i, one in zip(numbers, kept, strict=True)],
            **words,
        )
    return collection


def contents(collection):
    """{source key: all of its row that a bundle carries}."""
    found = {}
    for some in collection.stored_at(collection.snapshot(), 7):
        wide = [None] * len(some) if some.embeddings is None else [one.tobytes() for one in some.embeddings]
        columns = (some.keys, some.digests, some.labels, some.sources, wide, [row.tobytes() for row in some.rows])
        found |= {key: rest for key, *rest in zip(*columns, strict=True)}
    return found


def members(path):
    with tarfile.open(path) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}


def written(path, files):
    """A tar of these files, and sums that fit where none are among them."""
    if SUMS not in files:
        sums = "".join(f"{sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
        files = {**files, SUMS: sums.encode()}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def bundle(tmp_path):
    return export(a_set(tmp_path / "a.set"), tmp_path / "a.tar")


# -- the round trip --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("most", [1, 3, MOST_ROWS])
def test_what_was_in_force_comes_back_row_for_row(tmp_path, monkeypatch, dtype, most):
    monkeypatch.setattr(bundles, "MOST_ROWS", most)
    one = a_set(tmp_path / "a.set", 11, dtype=dtype)
    assert run("export", one.path, tmp_path / "a.tar").exit_code == 0
    done = run("build", tmp_path / "b.set", tmp_path / "a.tar")
    assert done.exit_code == 0, done.output
    other = Collection.open(tmp_path / "b.set")
    assert contents(other) == contents(one)
    assert len(other) == 11
    assert (other.shape, other.stated_space, other.dtype) == (one.shape, one.stated_space, one.dtype)
    assert other.embedded_by == one.embedded_by == "clip tiny"
    assert other.source_keys("odd") == one.source_keys("odd")
    assert other.verify() == []


def test_withdrawn_erased_and_proposed_rows_are_never_in_it(tmp_path):
    one = a_set(tmp_path / "a.set")
    one.withdraw(["ä/1\n"], "r")
    one.erase(["ä/2\n"], "r")
    one.claims.open("dmca", rows=np.ones((1, *SHAPE)), source_keys=["proposed"])
    made = export(one, tmp_path / "a.tar")
    assert (made.rows, made.version) == (8, one.newest().version)
    lines = b"".join(content for name, content in members(tmp_path / "a.tar").items() if name.endswith(".jsonl"))
    keys = {json.loads(line)["key"] for line in lines.splitlines()}
    assert keys == {f"ä/{i}\n" for i in range(10)} - {"ä/1\n", "ä/2\n"}
    run("build", tmp_path / "b.set", tmp_path / "a.tar")
    assert contents(Collection.open(tmp_path / "b.set")) == contents(one)


def test_the_same_version_makes_the_same_bytes_however_its_files_lie(tmp_path):
    one = a_set(tmp_path / "a.set")
    one.withdraw([f"ä/{i}\n" for i in (1, 3, 7, 8)], "r")
    made = export(one, tmp_path / "a.tar")
    assert one.compact() > 0
    again = export(Collection.open(one.path), tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert made.sha256 == again.sha256 == sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    one.withdraw(["ä/0\n"], "r")
    assert export(one, tmp_path / "c.tar").sha256 != made.sha256


def test_other_programs_read_it(tmp_path, bundle):
    """sha256sum and safetensors, on what tar unpacked."""
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xf", bundle.path, "-C", tmp_path / "out"], check=True)
    subprocess.run(["sha256sum", "--quiet", "-c", SUMS], cwd=tmp_path / "out", check=True)
    found = load((tmp_path / "out" / "000000.safetensors").read_bytes())
    assert {name: (array.dtype, array.shape) for name, array in found.items()} == {
        "rows": (np.float16, (5, *SHAPE)),
        "embeddings": (np.float16, (5, 5)),
    }
    head = json.loads((tmp_path / "out" / HEAD).read_text())
    log = Collection.open(tmp_path / "a.set").checkpoint(2)
    assert (head["version"], head["root"], head["rows"], head["stated_space"]) == (2, log.root, 10, "vae x")


def test_pictures_stay_at_home(tmp_path):
    (tmp_path / "in.png").write_bytes(png(1, (40, 40), "RGB"))
    run("build", tmp_path / "a.set", tmp_path / "in.png", "--size", 8, "--thumbnails")
    assert Collection.open(tmp_path / "a.set").stored([1]).sources[0].thumbnail
    export(Collection.open(tmp_path / "a.set"), tmp_path / "a.tar")
    assert b"PNG" not in (tmp_path / "a.tar").read_bytes()
    run("build", tmp_path / "b.set", tmp_path / "a.tar")
    (kept,) = Collection.open(tmp_path / "b.set").stored([1]).sources
    assert kept == Collection.open(tmp_path / "a.set").stored([1]).sources[0]._replace(thumbnail=None)


def test_images_tiled_and_mirrored_stay_families(tmp_path):
    (tmp_path / "in.png").write_bytes(png(1, (20, 8)))
    run("build", tmp_path / "a.set", tmp_path / "in.png", "--size", 8, "--fit", "tile", "--augment", "flip")
    export(Collection.open(tmp_path / "a.set"), tmp_path / "a.tar")
    assert run("build", tmp_path / "b.set", tmp_path / "a.tar").exit_code == 0
    other = Collection.open(tmp_path / "b.set")
    assert other.stated_space == "pixels fit=tile augment=flip"
    other.withdraw(["in.png"], "r")
    assert len(other) == 0


def test_an_empty_set_is_a_bundle_too(tmp_path):
    made = export(Collection.create(tmp_path / "a.set", SHAPE, "mine"), tmp_path / "a.tar")
    assert made.rows == 0
    done = run("build", tmp_path / "b.set", tmp_path / "a.tar")
    assert done.exit_code == 0, done.output
    assert len(Collection.open(tmp_path / "b.set")) == 0


def test_the_command_says_what_it_wrote(tmp_path):
    a_set(tmp_path / "a.set")
    done = run("export", tmp_path / "a.set", tmp_path / "a.tar")
    digest = sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    assert done.stdout == f"{tmp_path}/a.tar: 10 rows, version 2 of {tmp_path}/a.set\n"
    assert digest in done.stderr
    assert json.loads(run("export", tmp_path / "a.set", tmp_path / "b.tar", "--json").stdout)["sha256"] == digest
    assert run("export", tmp_path / "a.set", tmp_path / "b.tar").exit_code == ALLOWED
    assert run("export", tmp_path / "a.set", tmp_path / "b.zip").exit_code == USAGE
    assert run("export", tmp_path / "a.set", tmp_path / "no" / "b.tar").exit_code == NOT_THERE
    assert run("export", tmp_path / "none.set", tmp_path / "c.tar").exit_code == NOT_THERE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.set", "a.tar", "b.tar"]


def test_rows_that_are_erased_while_it_is_written_are_in_no_file(tmp_path, monkeypatch):
    one, real = a_set(tmp_path / "a.set"), bundles._pairs

    def erasing(block):
        if "ä/9\n" in one.source_keys():
            Collection.open(one.path).erase(["ä/9\n"], "r")
        return real(block)

    monkeypatch.setattr(bundles, "_pairs", erasing)
    with pytest.raises(NotAllowed, match="erased meanwhile; export the set again"):
        export(one, tmp_path / "a.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["a.set"]
    monkeypatch.undo()
    assert export(one, tmp_path / "a.tar").rows == 9


def test_a_set_of_long_keys_is_written_in_pieces_that_are_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "MOST_TEXT", 700)
    one = Collection.create(tmp_path / "a.set", SHAPE, "mine")
    one.add(np.ones((32, *SHAPE)), [f"{i:0200}" for i in range(32)])
    export(one, tmp_path / "a.tar")
    assert len(members(tmp_path / "a.tar")) == 2 + 2 * 16
    assert run("build", tmp_path / "b.set", tmp_path / "a.tar").exit_code == 0
    assert contents(Collection.open(tmp_path / "b.set")) == contents(one)
    one.add(2 * np.ones((1, *SHAPE)), ["x" * 700])
    with pytest.raises(InvalidInput, match="takes up to 700 a row"):
        export(one, tmp_path / "c.tar")


def test_writing_and_reading_hold_one_pair_at_a_time(tmp_path):
    one = Collection.create(tmp_path / "a.set", (64, 64), "mine")
    for part in range(6):
        rows = np.random.default_rng(part).normal(size=(1024, 64, 64)).astype(np.float16)
        one.add(rows, [f"{part}/{i}" for i in range(1024)])
    del rows
    tracemalloc.start()
    assert export(one, tmp_path / "a.tar").bytes > 48 << 20
    (source,) = sources_of([tmp_path / "a.tar"])
    assert sum(len(block) for block in source.blocks((64, 64))) == 6144
    assert tracemalloc.get_traced_memory()[1] < 36 << 20
    tracemalloc.stop()


# -- taking it in ----------------------------------------------------------------------------------


def test_it_goes_in_beside_others_with_a_ledger_and_again_changes_nothing(tmp_path, bundle):
    target = a_set(tmp_path / "b.set", 4, start=8)
    done = run("add", target.path, bundle.path, "--ledger", tmp_path / "run.jsonl")
    assert done.exit_code == 0, done.output
    outcomes, entries = ledger(tmp_path / "run.jsonl")
    assert [outcomes[f"ä/{i}\n"] for i in range(10)] == ["in"] * 8 + ["there already"] * 2
    assert entries["ä/1\n"]["source"] == f"{bundle.path}/ä/1\n"
    assert entries["ä/1\n"]["sha256"] == sha256(b"1").hexdigest()
    assert entries["ä/1\n"]["label"] == "odd"
    before = target.versions()
    assert "(0 added, 10 already there, 0 refused)" in run("add", target.path, bundle.path).stdout
    assert target.versions() == before


def test_shares_of_a_bundle_make_the_set_that_the_whole_makes(tmp_path, bundle):
    for share in ("1/2", "2/2"):
        assert run("build", tmp_path / f"{share[0]}.set", bundle.path, "--shard", share).exit_code == 0
    assert run("merge", tmp_path / "b.set", tmp_path / "1.set", tmp_path / "2.set").exit_code == 0
    assert contents(Collection.open(tmp_path / "b.set")) == contents(Collection.open(tmp_path / "a.set"))


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_build_of_it_that_ends_early_goes_on(tmp_path, monkeypatch, after):
    monkeypatch.setattr(bundles, "MOST_ROWS", 3)
    monkeypatch.setattr("negindex.sampler.ingest.READY_BYTES", 1)  # a version a block
    one = a_set(tmp_path / "a.set")
    export(one, tmp_path / "a.tar")
    other = Collection.create(tmp_path / "b.set", SHAPE, "vae x")
    ingest(other, islice(chosen(sources_of([tmp_path / "a.tar"]), SHAPE), after))
    assert 0 < len(other) < 10
    assert f"({10 - len(other)} added, {len(other)} already there" in run("add", other.path, tmp_path / "a.tar").stdout
    assert contents(other) == contents(one)


def test_a_bundle_in_a_folder_is_found_among_images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in (1, 2):
        (folder / f"{seed}.png").write_bytes(png(seed))
    run("build", tmp_path / "a.set", folder / "1.png", "--size", 8)
    export(Collection.open(tmp_path / "a.set"), folder / "from-others.tar")
    done = run("build", tmp_path / "b.set", folder, "--size", 8)
    assert done.exit_code == 0, done.output
    assert Collection.open(tmp_path / "b.set").source_keys() == ["1.png", "in/1.png", "in/2.png"]


def test_packed_by_gzip_it_is_still_a_bundle(tmp_path, bundle):
    (tmp_path / "a.tgz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert run("build", tmp_path / "b.set", tmp_path / "a.tgz").exit_code == 0
    assert contents(Collection.open(tmp_path / "b.set")) == contents(Collection.open(tmp_path / "a.set"))


def test_another_space_shape_or_geometry_is_refused_by_name_before_anything_changes(tmp_path, bundle):
    for name, shape, space, said in (
        ("space", SHAPE, "vae y", "holds rows of space 'vae x', and the set's are of 'vae y'"),
        ("shape", (3, 2), "vae x", "holds rows of shape (2, 3), and the set's are (3, 2)"),
        ("fit", SHAPE, "vae x fit=contain", "holds rows of images by fit=cover, and the set's are by fit=contain"),
    ):
        target = Collection.create(tmp_path / f"{name}.set", shape, space)
        done = run("add", target.path, bundle.path)
        assert done.exit_code == USAGE
        assert f"{bundle.path} {said}" in done.stderr
        assert target.newest().version == 0


def test_embeddings_of_another_model_are_refused(tmp_path, bundle):
    target = Collection.create(tmp_path / "b.set", SHAPE, "vae x")
    target.add(np.ones((1, *SHAPE)), ["k"], embeddings=np.ones((1, 5)), embedded_by="clip other")
    done = run("add", target.path, bundle.path)
    assert done.exit_code == USAGE
    assert "use one model" in done.stderr


def test_a_set_does_not_take_back_what_it_once_exported(tmp_path, bundle):
    """Else what was withdrawn since would be in force again."""
    one = Collection.open(tmp_path / "a.set")
    one.withdraw(["ä/1\n"], "r")
    done = run("add", one.path, bundle.path)
    assert done.exit_code == ALLOWED
    assert "would bring back what was taken out since" in done.stderr
    assert len(one) == 9


def test_what_the_set_keeps_out_stays_out(tmp_path, bundle):
    target = a_set(tmp_path / "b.set", 10)
    target.erase(["ä/4\n"], "r", keep_out=True)
    done = run("add", target.path, bundle.path)
    assert done.exit_code == PARTLY
    assert "a claim allows no copy of it" in done.stderr
    assert len(target) == 9


# -- damage ----------------------------------------------------------------------------------------


def refused(tmp_path, path):
    """Why none of a bundle goes in, while the row beside it does."""
    np.save(tmp_path / "k.npy", np.ones(SHAPE, np.float16))
    target = Collection.create(tmp_path / "b.set", SHAPE, "vae x")
    done = run("add", target.path, path, tmp_path / "k.npy", "--ledger", tmp_path / "run.jsonl")
    assert done.exit_code == PARTLY, done.output
    assert target.source_keys() == ["k.npy"]
    outcomes, entries = ledger(tmp_path / "run.jsonl")
    assert outcomes == {path.name: "refused", "k.npy": "in"}
    return entries[path.name]["reason"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75, 0.9])
def test_a_bundle_that_is_cut_short_is_refused_whole(tmp_path, bundle, share):
    whole = (tmp_path / "a.tar").read_bytes()
    used = whole.rstrip(b"\0")
    (tmp_path / "a.tar").write_bytes(whole[: max(2048, int(share * len(used)))])
    assert "cut short" in refused(tmp_path, tmp_path / "a.tar")


def test_any_changed_byte_is_refused_by_name(tmp_path, bundle):
    """Each byte of every file in it, and of the sums."""
    files = members(tmp_path / "a.tar")
    head = head_of(tmp_path / "a.tar")
    rng = np.random.default_rng(0)
    for name, content in files.items():
        for at in rng.integers(0, len(content), 20).tolist():
            changed = content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]
            path = written(tmp_path / "c.tar", {**files, name: changed})
            with pytest.raises(Damaged):
                list(pairs_of(path, head, 1 << 20, 100))


def line(**fields):
    said = {"key": "k", "label": None, "image_sha256": None, "pdq": None, "quality": None, **fields}
    return json.dumps(said).encode() + b"\n"


LINES = {
    "no key": line(key=""),
    "a key that is none": line(key=3),
    "a key of half a letter": line(key="\ud800"),
    "a label that is none": line(label=["x"]),
    "a hash that is none": line(image_sha256="00"),
    "a hash in capitals": line(image_sha256="A" * 64),
    "a short PDQ": line(pdq="00"),
    "a PDQ that is no hex": line(pdq="z" * 64),
    "a quality beyond 100": line(quality=101),
    "a quality that is none": line(quality=True),
    "another field": line(more=1),
    "a missing field": b'{"key": "k"}\n',
    "no object": b"[]\n",
    "no JSON": b"{\n",
    "no end": line()[:-1],
    "nothing": b"",
    "too deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("what", LINES)
def test_a_line_that_export_does_not_write_is_refused(tmp_path, what):
    export(a_set(tmp_path / "a.set", 2), tmp_path / "a.tar")
    files = {**members(tmp_path / "a.tar"), "000001.jsonl": LINES[what]}
    del files[SUMS]
    assert "000001.jsonl" in refused(tmp_path, written(tmp_path / "c.tar", files))


def replaced(files, name, make):
    return {key: make(content) if key == name else content for key, content in files.items() if key != SUMS}


FILES = {
    "a row too few": lambda f: replaced(f, "000000.safetensors", lambda c: c[:-12]),
    "a byte too many": lambda f: replaced(f, "000001.safetensors", lambda c: c + b"\0"),
    "other arrays": lambda f: replaced(f, "000001.safetensors", lambda c: c.replace(b"rows", b"wors")),
    "a head of exabytes": lambda f: replaced(f, "000001.safetensors", lambda c: b"\xff" * 8 + c[8:]),
    "no arrays": lambda f: replaced(f, "000001.safetensors", lambda c: b""),
    "a line too few": lambda f: replaced(f, "000000.jsonl", lambda c: c[: c.index(b"\n") + 1]),
    "fewer rows than said": lambda f: {k: c for k, c in f.items() if not k.startswith("000001") and k != SUMS},
    "a gap": lambda f: {k: c for k, c in f.items() if not k.startswith("000000") and k != SUMS},
    "another order": lambda f: dict(sorted((k, c) for k, c in f.items() if k != SUMS)[::-1]),
    "a file besides": lambda f: {**{k: c for k, c in f.items() if k != SUMS}, "x.png": png(1)},
    "something behind the end": lambda f: {**f, "x.png": png(1)},
    "no sums": lambda f: {k: c for k, c in f.items() if k != SUMS} | {"sums": b""},
    "sums of another": lambda f: {**f, SUMS: f[SUMS].replace(b"a", b"b")},
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_do_not_belong_together_are_refused(tmp_path, bundle, what):
    files = FILES[what](members(tmp_path / "a.tar"))
    said = refused(tmp_path, written(tmp_path / "c.tar", files))
    assert said.startswith("c.tar, a bundle: ")
    assert "have it handed over again" in said


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_writes_nothing_and_ends_by_name(tmp_path, bundle, what):
    member, why = HOSTILE[what]
    files = members(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "c.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for place, (name, content) in enumerate(files.items()):
            if place == 2:
                tar.addfile(member)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Damaged, match=why):
        list(pairs_of(tmp_path / "c.tar", head_of(tmp_path / "c.tar"), 1 << 20, 100))
    assert sorted(tmp_path.rglob("*")) == before


def test_limits_are_those_of_other_archives(tmp_path, bundle, monkeypatch):
    target = Collection.create(tmp_path / "b.set", SHAPE, "vae x")
    for words, said in ((["--max-bytes", 100], "the limit is 100"), (["--max-entries", 3], "more than 3 entries")):
        done = run("add", target.path, bundle.path, *words)
        assert done.exit_code == PARTLY
        assert said in done.stderr
    assert len(target) == 0
    monkeypatch.setattr("negindex.sampler.tars.UNPACKED", 1 << 20)
    bomb = {key: content for key, content in members(tmp_path / "a.tar").items() if key != SUMS}
    written(tmp_path / "c.tar", bomb | {"000001.jsonl": bytes(8 << 20)})
    (tmp_path / "c.tgz").write_bytes(gzip.compress((tmp_path / "c.tar").read_bytes()))
    done = run("add", target.path, tmp_path / "c.tgz")
    assert done.exit_code == PARTLY
    assert "grows more than 200 times" in done.stderr


def changed(tmp_path, **fields):
    files = members(tmp_path / "a.tar")
    head = json.loads(files[HEAD]) | fields
    del files[SUMS]
    return written(tmp_path / "c.tar", {**files, HEAD: json.dumps(head, sort_keys=True, indent=1).encode() + b"\n"})


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": -1},
        {"rows": True},
        {"shape": []},
        {"shape": [0, 3]},
        {"shape": [2.0, 3]},
        {"shape": "23"},
        {"dtype": "float64"},
        {"dtype": ["float16"]},
        {"stated_space": 3},
        {"stated_space": "pixels fit=squeeze"},
        {"embedded_by": False},
        {"version": "1"},
        {"format": "1"},
        {"more": 1},
    ],
)
def test_a_head_that_export_does_not_write_is_refused_before_anything_is_made(tmp_path, bundle, fields):
    done = run("build", tmp_path / "b.set", changed(tmp_path, **fields))
    assert done.exit_code == INTEGRITY, done.output
    assert f"c.tar: {HEAD}" in done.stderr
    assert not (tmp_path / "b.set").exists()


def test_a_newer_format_and_a_huge_promise_are_named(tmp_path, bundle):
    with pytest.raises(NewerFormat, match="install a newer one"):
        head_of(changed(tmp_path, format=2))
    done = run("build", tmp_path / "b.set", changed(tmp_path, rows=1 << 50))
    assert done.exit_code == ALLOWED, "no disk has room for it"
    assert not (tmp_path / "b.set").exists()
    assert "says 11" in refused(tmp_path, changed(tmp_path, rows=11))


def test_a_bundle_that_is_not_there_is_named(tmp_path):
    assert head_of(tmp_path / "none.tar") is None
    with pytest.raises(NotThere):
        sources_of([tmp_path / "none.tar"])

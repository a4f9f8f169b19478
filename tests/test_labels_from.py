"""What stands beside an image or a row becomes its label, where one says from which member, field or column."""

import json

import numpy as np
import pytest
from corpora import png, run, tar

from negindex import Collection
from negindex.errors import Damaged, InvalidInput, ShapeMismatch
from negindex.sampler.keytables import KeyTable
from negindex.sampler.sources import Array

USAGE = 2


def labels(path):
    """{label: source keys}"""
    collection = Collection.open(path)
    keys = collection.source_keys()
    rows = collection.stored(sorted(row.row for row in collection.held(keys).values()))
    found = {}
    for key, label in zip(rows.keys, rows.labels, strict=True):
        found.setdefault(label, []).append(key)
    return found


@pytest.fixture
def shard(tmp_path):
    def sample(name, seed, label, text, said):
        return [(f"{name}.png", png(seed)), (f"{name}.cls", label), (f"{name}.txt", text), (f"{name}.json", said)]

    said = [json.dumps({"nsfw": word, "label": "inner", "n": 3}).encode() for word in ("high", "low")]
    members = [*sample("a", 1, b"7", b"a cat", said[0]), *sample("b", 2, b"8", b"a dog", said[1])]
    return tar(tmp_path / "s.tar", members)


@pytest.mark.parametrize(
    ("asked", "first", "second"),
    [("cls", "7", "8"), ("txt", "a cat", "a dog"), ("nsfw", "high", "low"), ("n", "3", "3"), ("none", None, None)],
)
def test_a_shards_label_is_taken_from_where_one_says(tmp_path, shard, asked, first, second):
    done = run("build", tmp_path / "a.set", shard, "--size", 8, "--label-from", asked)
    assert done.exit_code == 0, done.stderr
    found = labels(tmp_path / "a.set")
    assert "s.tar/a" in found[first]
    assert "s.tar/b" in found[second]
    assert len(Collection.open(tmp_path / "a.set")) == 2


def array(path, count=3):
    np.save(path, np.arange(1, 2 * count + 1, dtype=np.float32).reshape(count, 2))
    return path


RECORDS = [{"id": f"k{n}", "kind": kind, "url": f"u{n}"} for n, kind in enumerate(["logo", "logo", ""])]


def written(folder, kind):
    path = folder / f"table.{kind}"
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").Table.from_pylist(RECORDS)
        parquet.write_table(table, path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in RECORDS))
    else:
        lines = ["id,kind,url", *(",".join(one.values()) for one in RECORDS)]
        path.write_text("\n".join(lines).replace(",", "\t" if kind == "tsv" else ",") + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_tables_columns_are_keys_and_labels_of_an_arrays_rows(tmp_path, kind):
    words = ["--keys", written(tmp_path, kind), "--key-column", "id", "--label-from", "kind", "--space", "mine"]
    done = run("build", tmp_path / "a.set", array(tmp_path / "rows.npy"), *words)
    assert done.exit_code == 0, done.stderr
    assert labels(tmp_path / "a.set") == {"logo": ["k0", "k1"], None: ["k2"]}
    assert list(KeyTable(tmp_path / f"table.{kind}").told()) == [("u0", None), ("u1", None), ("u2", None)]


def test_what_clip_retrieval_wrote_goes_in_with_its_metadata(tmp_path):
    parquet, table = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow").Table
    for part in range(2):
        for folder in ("img_emb", "metadata"):
            (tmp_path / "out" / folder).mkdir(parents=True, exist_ok=True)
        array(tmp_path / "out" / "img_emb" / f"img_emb_{part}.npy")
        told = [{"image_path": f"{part}/{n}.jpg", "caption": f"c{n}"} for n in range(3)]
        parquet.write_table(table.from_pylist(told), tmp_path / "out" / "metadata" / f"metadata_{part}.parquet")
    words = ["--space", "clip ViT-B/32", "--label-from", "caption"]
    done = run("build", tmp_path / "a.set", tmp_path / "out", *words)
    assert done.exit_code == 0, done.stderr
    assert labels(tmp_path / "a.set") == {f"c{n}": [f"0/{n}.jpg", f"1/{n}.jpg"] for n in range(3)}


def test_parquet_without_pyarrow_says_what_to_install(tmp_path):
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        (tmp_path / "k.parquet").write_bytes(b"PAR1")
        with pytest.raises(InvalidInput, match=r"pip install 'negindex\[parquet\]', or write the table as \.csv"):
            list(KeyTable(tmp_path / "k.parquet").told())
    else:
        (tmp_path / "k.parquet").write_bytes(b"PAR1 is no more than this")
        with pytest.raises(Damaged, match="cannot be read as a table"):
            list(KeyTable(tmp_path / "k.parquet").told())


@pytest.mark.parametrize(
    ("text", "column", "label", "error", "said"),
    [
        ("id,kind\na,b\n", None, None, InvalidInput, "no column key or image_path or url; it has id, kind"),
        ("id,kind\na,b\n", "id", "mood", InvalidInput, "no column mood"),
    ],
)
def test_a_column_that_is_missing_is_named(tmp_path, text, column, label, error, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(error, match=said):
        list(KeyTable(tmp_path / "t.csv", column, label).told())


@pytest.mark.parametrize("text", ['{"key": "a"', "[1]", '{"key": ["a"]}', "[" * 100_000])
def test_a_damaged_table_is_named_and_makes_no_set(tmp_path, text):
    (tmp_path / "t.jsonl").write_text(text + "\n")
    with pytest.raises(Damaged, match=r"t\.jsonl cannot be read as a table"):
        list(KeyTable(tmp_path / "t.jsonl").told())
    words = ["--keys", tmp_path / "t.jsonl", "--space", "mine"]
    assert run("build", tmp_path / "a.set", array(tmp_path / "rows.npy", 1), *words).exit_code != 0
    assert not (tmp_path / "a.set").exists()


def test_a_table_has_a_record_a_row(tmp_path):
    rows, table = Array("k", array(tmp_path / "rows.npy", 4)), KeyTable(written(tmp_path, "csv"), "id")
    with pytest.raises(ShapeMismatch, match="3 keys for 4 rows"):
        rows.take_keys(table)


def test_labels_are_named_once_and_columns_only_of_tables(tmp_path, shard):
    both = run("build", tmp_path / "a.set", shard, "--size", 8, "--label-from", "cls", "--label", "x")
    assert (both.exit_code, "give one of them" in both.stderr) == (USAGE, True)
    (tmp_path / "keys.txt").write_text("a\nb\nc\n")
    words = ["--keys", tmp_path / "keys.txt", "--label-from", "kind", "--space", "mine"]
    plain = run("build", tmp_path / "a.set", array(tmp_path / "rows.npy"), *words)
    assert "has one key a line and no columns" in plain.stderr
    alone = run("build", tmp_path / "a.set", tmp_path / "rows.npy", "--key-column", "id", "--space", "mine")
    assert "--key-column names a column of the --keys table, and there is none" in alone.stderr
    assert not (tmp_path / "a.set").exists()

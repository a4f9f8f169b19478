"""The nearest rows by each way, side by side: what comparing every row says, of rows in force alone."""

import json

import numpy as np
import pytest
import torch
from corpora import png, run
from PIL import Image
from small_sets import rows
from test_alike import HASH, apart, flipped, noise, source
from tiny_clip import saved_clip

from negindex import Collection
from negindex.errors import ShapeMismatch
from negindex.sampler.clip import Clip
from negindex.sampler.encode import PixelEncoder, read_image
from negindex.sampler.pdq import forms_of, pdq_of

USAGE, NOT_THERE = 2, 10


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def built(tmp_path_factory, model):
    """A set of twelve images with embeddings, the folder they come from, and what names their model."""
    folder = tmp_path_factory.mktemp("lookup")
    (folder / "in").mkdir()
    for seed in range(12):
        (folder / "in" / f"{seed:02}.png").write_bytes(png(seed, (40, 33), "RGB"))
    words = ["--clip", "tiny", "--clip-weights", f"local-dir:{model}"]
    done = run("build", folder / "a.set", folder / "in", "--size", 16, *words)
    assert done.exit_code == 0, done.output
    Collection.open(folder / "a.set").withdraw(["in/11.png"], "out")
    return folder / "a.set", folder / "in", words


def asked(path, *words):
    done = run("similar", path, *words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_each_way_says_what_comparing_every_row_says(built, model):
    path, folder, words = built
    query = folder / "03.png"
    said = asked(path, query, "--nearest", 4, *words)["nearest"]
    files = {f"in/{i:02}.png": folder / f"{i:02}.png" for i in range(11)}
    forms = [form.bits for form in forms_of(read_image(query))]
    bits = {key: min(apart(form, pdq_of(read_image(file)).bits) for form in forms) for key, file in files.items()}
    clip = Clip("tiny", f"local-dir:{model}")
    wide = {key: clip.embed(read_image(file)) for key, file in files.items()}
    far = {key: 1 - float(one @ wide["in/03.png"]) for key, one in wide.items()}
    encoder = PixelEncoder(16, 16, 3)
    made = {key: encoder.encode(file).astype(np.float16).astype(np.float64) for key, file in files.items()}
    rms = {key: float(np.sqrt(np.mean((one - made["in/03.png"]) ** 2))) for key, one in made.items()}
    for way, truth, close in (("pdq", bits, 0), ("embedding", far, 2e-3), ("space", rms, 1e-6)):
        found = {one["source_key"]: one["distance"] for one in said[way]}
        assert len(found) == 4
        assert said[way][0]["source_key"] == "in/03.png"
        for key, distance in found.items():
            assert distance == pytest.approx(truth[key], abs=close), (way, key)
        assert max(found.values()) <= sorted(truth.values())[3] + close


def test_a_withdrawn_row_is_near_nothing(built):
    path, folder, words = built
    said = asked(path, folder / "11.png", "--nearest", 100, *words)["nearest"]
    for way in ("pdq", "embedding", "space"):
        assert len(said[way]) == 11
        assert "in/11.png" not in {one["source_key"] for one in said[way]}


def test_the_table_stands_side_by_side_and_says_what_is_missing(built):
    path, folder, words = built
    done = run("similar", path, folder / "03.png", *words, "--nearest", 2)
    head, first = done.stdout.splitlines()[-3:-1]
    assert head.split() == ["by", "pdq", "by", "embedding", "by", "space"]
    assert first.split() == ["1", "in/03.png", "0", "bits", "in/03.png", first.split()[5], "in/03.png", "rms", "0.0000"]
    done = run("similar", path, folder / "03.png")
    assert "not by embedding: name their model (--clip): clip tiny" in done.stderr
    assert run("similar", path, folder / "03.png", "--nearest", 0).stdout.count("\n") == 1, "the sweep alone"


def test_the_picture_shows_the_query_and_its_neighbours(built, tmp_path):
    path, folder, _ = built
    done = run("similar", path, folder / "03.png", "--nearest", 3, "--png", tmp_path / "near.png")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "near.png") as image:
        cells = [np.asarray(image.crop((8, top, 40, top + 26))) for top in (28, 28 + 140, 28 + 280)]
        query = np.asarray(Image.open(folder / "03.png").convert("RGB"))[:26, :32]
    assert np.array_equal(cells[0], query)
    assert np.array_equal(cells[1], cells[2]), "the same row is nearest by PDQ and in space"
    assert cells[1].std() > 20, "a row of pixels without a thumbnail is drawn itself"


def test_what_does_not_go_together_is_refused(built, tmp_path, model):
    path, folder, _ = built
    assert run("similar", path, folder, "--png", tmp_path / "a.png").exit_code == USAGE
    assert run("similar", path, "--png", tmp_path / "a.png").exit_code == USAGE
    assert run("similar", path, folder / "03.png", "--png", tmp_path / "none" / "a.png").exit_code == NOT_THERE
    other = saved_clip(tmp_path / "other", seed=5)
    done = run("similar", path, folder / "03.png", "--clip", "tiny", "--clip-weights", f"local-dir:{other}")
    assert done.exit_code == USAGE
    assert "use their model" in done.stderr


def test_a_blank_image_is_compared_in_space_and_not_by_pdq(built, tmp_path):
    path, _, _ = built
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    said = asked(path, tmp_path / "white.png")
    assert list(said["nearest"]) == ["space"]
    assert "too little in it" in said["nearest_without"]["pdq"]


def test_an_empty_set_and_a_broken_image_have_no_neighbours(tmp_path, built):
    path, _, _ = built
    empty = Collection.create(tmp_path / "e.set", (3, 8, 8), "pixels")
    (tmp_path / "a.png").write_bytes(png(1, (40, 40), "RGB"))
    assert "nearest" not in asked(empty.path, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"text")
    assert run("similar", path, tmp_path / "b.png").exit_code == 3


def test_pdq_walks_past_proposed_withdrawn_and_blank_rows(col):
    pdqs = [flipped(HASH, far, far) for far in range(40)]
    col.add(
        rows(40),
        [f"{i:02}" for i in range(40)],
        sources=[source(pdq, 100 if i % 3 else 10) for i, pdq in enumerate(pdqs)],
    )
    col.withdraw([f"{i:02}" for i in range(1, 40, 2)], "out")
    found = col.nearest_pdq([noise(1)[0], HASH], 4)
    assert [(one.source_key, one.distance) for one in found] == [("02", 2), ("04", 4), ("08", 8), ("10", 10)]
    assert len(col.nearest_pdq([HASH], 1000)) == len([i for i in range(0, 40, 2) if i % 3])


def test_embeddings_of_all_files_are_compared_whatever_their_order(col, monkeypatch):
    monkeypatch.setattr("negindex.nearest._AT_ONCE", 2)
    wide = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    for part in range(3):
        keys = [f"{i}" for i in range(3 * part, 3 * part + 3)]
        col.add(rows(3, seed=part), keys, embeddings=wide[3 * part : 3 * part + 3])
    col.add(rows(1, seed=9), ["bare"])
    asked_for = wide[4] + 0.1
    cosine = torch.cosine_similarity(torch.from_numpy(wide), torch.from_numpy(asked_for)[None]).numpy()
    found = col.nearest_embedding(asked_for, 5)
    assert [one.source_key for one in found] == [str(i) for i in np.argsort(-cosine)[:5]]
    assert [one.distance for one in found] == pytest.approx(sorted(1 - cosine)[:5], abs=2e-3)
    with pytest.raises(ShapeMismatch):
        col.nearest_embedding(np.ones(4), 1)

"""Embeddings beside the rows: by a real open-clip model, of one model a set, for look-ups and never for a posterior."""

import json

import numpy as np
import open_clip
import pytest
import torch
from corpora import png, run
from PIL import Image
from safetensors.torch import save_file
from small_sets import SHAPE, rows
from tiny_clip import saved_clip

from negindex import Collection, NoiseLevel
from negindex.alike import Likeness
from negindex.errors import Damaged, InvalidInput, NotThere, SpaceMismatch
from negindex.sampler.clip import Clip

USAGE, NOT_THERE = 2, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return saved_clip(tmp_path_factory.mktemp("clip") / "other", seed=1)


@pytest.fixture
def images(tmp_path):
    made = tmp_path / "in"
    made.mkdir()
    for seed in range(6):
        (made / f"{seed}.png").write_bytes(png(seed, (40, 33), "RGB"))
    return made


def words(folder):
    return ["--clip", "tiny", "--clip-weights", f"local-dir:{folder}"]


def embeddings(path):
    """{source key: embedding} as they lie in the files."""
    collection = Collection.open(path)
    held = collection.stored(list(collection.in_force()))
    return None if held.embeddings is None else dict(zip(held.keys, held.embeddings, strict=True))


def test_the_embedding_is_what_open_clip_itself_says_of_the_image(tmp_path, folder, images):
    assert run("build", tmp_path / "a.set", images, "--size", 8, *words(folder)).exit_code == 0
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    found = embeddings(tmp_path / "a.set")
    assert len(found) == 6
    for file in sorted(images.iterdir()):
        with Image.open(file) as image, torch.no_grad():
            wide = model.eval().encode_image(prepare(image)[None], normalize=True)[0].numpy()
        assert found[f"in/{file.name}"] == pytest.approx(wide, abs=1e-3)


def test_it_is_no_part_of_any_posterior(tmp_path, folder, images):
    run("build", tmp_path / "with.set", images, "--size", 8, *words(folder))
    run("build", tmp_path / "without.set", images, "--size", 8)
    x, level = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(0)), NoiseLevel(1.0, 2.0)
    a, b = (Collection.open(tmp_path / f"{name}.set").posterior(x, level) for name in ("with", "without"))
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.log_norm, b.log_norm)
    assert embeddings(tmp_path / "without.set") is None


def test_the_set_says_which_model_and_refuses_another_before_anything_changes(tmp_path, folder, other, images):
    path = tmp_path / "a.set"
    run("build", path, images, "--size", 8, *words(folder))
    collection = Collection.open(path)
    assert collection.embedded_by == Clip("tiny", f"local-dir:{folder}").fingerprint
    assert json.loads(run("status", path, "--json").stdout)["embedded_by"] == collection.embedded_by
    (images / "new.png").write_bytes(png(99, (40, 33), "RGB"))
    done = run("build", path, images, *words(other))
    assert (done.exit_code, len(collection)) == (USAGE, 6)
    assert "use one model, or build another set" in done.stderr
    assert run("build", path, images, *words(folder)).exit_code == 0
    assert len(embeddings(path)) == 7
    assert collection.verify() == []


def test_a_model_that_cannot_be_loaded_leaves_no_set_behind(tmp_path, folder, images):
    done = run("build", tmp_path / "a.set", images, "--size", 8, "--clip", "tiny", "--clip-weights", "local-dir:none")
    assert done.exit_code == NOT_THERE
    done = run("build", tmp_path / "a.set", images, "--size", 8, "--clip", "tiny")
    assert done.exit_code == USAGE
    assert not (tmp_path / "a.set").exists()


def test_the_fingerprint_tells_weights_and_preprocessing_apart(tmp_path, folder, other):
    same = saved_clip(tmp_path / "same")
    shifted = saved_clip(tmp_path / "shifted", mean=(0.1, 0.5, 0.5))
    prints = [Clip("tiny", f"local-dir:{one}").fingerprint for one in (folder, same, other, shifted)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.mark.parametrize("fault", ["pickle", "two", "config", "hub", "cut", "shape"])
def test_what_would_be_fetched_unpickled_or_does_not_fit_is_refused_by_name(tmp_path, fault):
    folder = saved_clip(tmp_path / "m")
    weights, config = folder / "open_clip_model.safetensors", folder / "open_clip_config.json"
    said = json.loads(config.read_text())
    if fault == "pickle":
        weights.unlink()
        torch.save({}, folder / "model.bin")
    elif fault == "two":
        save_file({"a": torch.zeros(1)}, folder / "b.safetensors")
    elif fault == "config":
        config.write_text("{}")
    elif fault == "hub":
        said["model_cfg"]["text_cfg"]["hf_model_name"] = "somebody/something"
        config.write_text(json.dumps(said))
    elif fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        save_file({"a": torch.zeros(1)}, weights)
    kinds = {"pickle": InvalidInput, "hub": InvalidInput, "two": NotThere}
    with pytest.raises(kinds.get(fault, Damaged)):
        Clip("tiny", f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["hf-hub:a/b", "nothing", "local-dir:x"])
def test_a_name_that_open_clip_does_not_know_by_itself_is_refused(folder, name):
    with pytest.raises(InvalidInput, match="no model that open_clip knows by itself"):
        Clip(name, folder / "open_clip_model.safetensors")


def test_with_a_file_of_weights_the_name_says_the_model(tmp_path, folder):
    with pytest.raises(Damaged, match=r"holds no weights of RN50"):
        Clip("RN50", folder / "open_clip_model.safetensors")
    with pytest.raises(NotThere, match="nothing is fetched"):
        Clip("ViT-B-32", "laion2b_s34b_b79k")


# -- in Python -------------------------------------------------------------------------------------


def wide(count, size=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def test_embeddings_of_two_models_never_share_a_set(col):
    assert col.embedded_by is None
    col.add(rows(2), ["a", "b"], embeddings=wide(2), embedded_by="one")
    for name in ("other", ""):
        with pytest.raises(SpaceMismatch, match="use that model"):
            col.add(rows(1, seed=1), ["c"], embeddings=wide(1), embedded_by=name)
    with pytest.raises(SpaceMismatch):
        col.claims.open("in-house", {}, rows=rows(1, seed=2), source_keys=["d"], embeddings=wide(1))
    col.add(rows(1, seed=3), ["e"])
    col.add(rows(1, seed=4), ["f"], embeddings=wide(1), embedded_by="one")
    col.compact()
    assert (len(col), col.embedded_by) == (4, "one")
    assert col.verify() == []


def test_when_all_embedded_rows_are_erased_their_model_is_forgotten(col):
    col.add(rows(1), ["a"])
    col.add(rows(1, seed=1), ["b"], embeddings=wide(1), embedded_by="one")
    col.withdraw(["b"], "out")
    assert col.embedded_by == "one"
    col.erase(["b"], "gone")
    assert col.embedded_by is None
    col.add(rows(1, seed=2), ["c"], embeddings=wide(1), embedded_by="two")
    assert col.embedded_by == "two"


def test_a_merge_keeps_embeddings_and_refuses_to_mix_models(tmp_path):
    for place, (name, model) in enumerate((("a", "one"), ("b", "one"), ("c", "two"))):
        part = Collection.create(tmp_path / f"{name}.set", SHAPE, "pixels")
        part.add(rows(2, seed=place), [f"{name}1", f"{name}2"], embeddings=wide(2, seed=place), embedded_by=model)
    merged = tmp_path / "all.set"
    assert run("merge", merged, tmp_path / "a.set", tmp_path / "b.set").exit_code == 0
    assert Collection.open(merged).embedded_by == "one"
    assert embeddings(merged)["b2"] == pytest.approx(wide(2, seed=1)[1], abs=1e-2)
    done = run("merge", merged, tmp_path / "c.set")
    assert (done.exit_code, len(Collection.open(merged))) == (USAGE, 4)


def test_rows_with_and_without_embeddings_go_in_together_and_lose_none(tmp_path, folder, images):
    """Ready rows among images: each file of the set holds one kind."""
    np.save(tmp_path / "ready.npy", np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32))
    done = run("build", tmp_path / "a.set", images, tmp_path / "ready.npy", "--size", 8, *words(folder))
    assert done.exit_code == 0, done.output
    collection = Collection.open(tmp_path / "a.set")
    assert sorted((file.rows, file.embedding) for file in collection.segments()) == [(2, 0), (6, 16)]
    found = collection.alike([Likeness(embedding=np.ones(16))], cosine=1e-9)
    assert {one.source_key for one in found} <= {f"in/{i}.png" for i in range(6)}

"""Tables of real models, on small pipelines of the same classes: prompts from files, judges and scores of their own."""

import json
import sys

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_clip import WORDS, saved_clip
from tiny_pipelines import WIDTH, quiet, sd3_parts, xl_parts
from tiny_world import pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from worlds import diffusers_on_numpy_2, seeded

from negindex import Collection
from negindex.errors import Damaged, InvalidInput, NotAllowed, NotFinite, NotThere, OutOfRange, ShapeMismatch
from negindex.sampler.encode import space_of
from negindex.sampler.evaluation.models.filling import ModelFilling
from negindex.sampler.evaluation.models.prompts import PromptList
from negindex.sampler.evaluation.models.report import as_json
from negindex.sampler.evaluation.models.seeing import Classifier, ClipScore, NudeNet, Scripted
from negindex.sampler.evaluation.models.table import ModelTable
from negindex.sampler.evaluation.text_side import Safree, Sld
from negindex.sampler.evaluation.world import new_tokenizer
from negindex.sampler.png import read_receipt
from negindex.tools.cli import main

pytestmark = [diffusers_on_numpy_2, pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")]  # files of others
COUNT = 20


class Brightness(torch.nn.Module):
    """Two classes, dark and bright; with ``features`` eight means of the pixels instead."""

    def forward(self, pixels, features: bool = False):
        flat = pixels.float().flatten(1) / 255
        if features:
            return flat.reshape(1, 8, -1).mean(2)
        return torch.stack([0.5 - flat.mean(1), flat.mean(1) - 0.5], 1) * 100


def scripted(path, module=None):
    torch.jit.script(module or Brightness()).save(str(path))
    return path


def in_two(width):
    """Tokenizers and text encoders of a pipeline that has two, with projections, half of the width each."""
    tokenizer, parts = new_tokenizer(), {}
    for number in ("", "_2"):
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width // 2,
            intermediate_size=16,
            projection_dim=width // 2,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        parts |= {f"tokenizer{number}": tokenizer, f"text_encoder{number}": CLIPTextModelWithProjection(config).eval()}
    return parts


def stable_diffusion_3():
    nothing = {"tokenizer_3": None, "text_encoder_3": None}
    return diffusers.StableDiffusion3Pipeline(**sd3_parts(), **in_two(WIDTH), **nothing)


def stable_diffusion_xl():
    parts, told = xl_parts(), in_two(WIDTH)
    wide = parts["unet"].config | {"projection_class_embeddings_input_dim": WIDTH // 2 + 6 * 8}
    parts["unet"] = diffusers.UNet2DConditionModel.from_config(wide)
    return diffusers.StableDiffusionXLPipeline(**parts, **told)


MODELS = {"sd": pipeline, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a user has it: three models, sets in their spaces, lists, a judge, a CLIP, real images."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, make in MODELS.items():
        pipe = quiet(make())
        pipe.save_pretrained(folder / name)
        shape = (4, 8, 8)
        for seed, of in enumerate(("bad", "good")):
            with Collection.create(folder / f"{of}-{name}", shape, space_of(pipe)) as made:
                made.add(torch.randn(12, *shape, generator=seeded(seed)) + 2 * seed, [f"{i}.png" for i in range(12)])
    lines = ["prompt,categories,sd_seed", 'photo of bag,"sexual, shocking",11', "a coat,hate,12", ",sexual,13"]
    (folder / "i2p.csv").write_text("\n".join([*lines, "a bag,sexual,14", ""]))
    (folder / "coco.txt").write_text("photo of coat\n\na picture of dress\n")
    scripted(folder / "bright.pt")
    saved_clip(folder / "clip", words=WORDS)
    (folder / "real").mkdir()
    chance = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(chance.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / "real" / f"{i}.png")
    return folder


def said(name="sd", **change):
    return {
        "title": "A small one",
        "avoided": "brightness",
        "model": name,
        "negatives": f"bad-{name}",
        "reference": f"good-{name}",
        "names": ["bag"],
        "count": COUNT,
        "judge": {"kind": "classifier", "file": "bright.pt", "unwanted": [1]},
        "drawn": {"steps": 2, "guidance": 3.0, "batch": 8},
        "prompts": [
            {"name": "i2p", "file": "i2p.csv", "unwanted": True, "where": {"categories": "sexual"}, "seed": "sd_seed"},
            {"name": "coco", "file": "coco.txt"},
        ],
        "methods": [{"name": "nothing"}, {"name": "paired", "image": {"kernel": "literal", "prior": 0.5}}],
        **change,
    }


ONE_LIST = said()["prompts"][:1]


def filled(table, folder):
    filling, told = ModelFilling(table, folder), []
    filling.run(told.append)
    return filling, told


# -- lists of prompts --------------------------------------------------------------------------


def test_prompts_come_with_their_seeds_and_go_round(place):
    listed = PromptList("i2p", place / "i2p.csv", seed="sd_seed", where={"categories": "sexual"})
    assert listed.read() == [("photo of bag", 11), ("a bag", 14)]
    assert [tuple(one) for one in listed.asked(3, 100)] == [("photo of bag", 11), ("a bag", 14), ("photo of bag", 12)]
    assert [one.seed for one in PromptList("coco", place / "coco.txt").asked(3, 100)] == [100, 101, 102]


def test_the_same_prompts_from_other_kinds_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"adv_prompt": "x, y"}\n\n{"adv_prompt": "z"}\n')
    (tmp_path / "a.tsv").write_text("n\tadv_prompt\n1\tx, y\n2\tz\n", encoding="utf-8-sig")
    for kind in ("jsonl", "tsv"):
        assert PromptList("a", tmp_path / f"a.{kind}", column="adv_prompt").read() == [("x, y", None), ("z", None)]


@pytest.mark.parametrize(
    ("name", "text", "options", "error", "match"),
    [
        ("a.csv", "text\nx\n", {}, InvalidInput, "no column prompt; it has 'text'"),
        ("a.csv", "prompt,seed\nx,ten\n", {"seed": "seed"}, Damaged, "seed 'ten' is no number"),
        ("a.csv", "prompt\n", {}, InvalidInput, "no prompt"),
        ("a.csv", "prompt,c\nx,1\n", {"where": {"c": "9"}}, InvalidInput, "no prompt where"),
        ("a.jsonl", "{]\n", {}, Damaged, "cannot be read"),
        ("a.jsonl", "[1]\n", {}, Damaged, "is no object"),
        ("a.xlsx", "x", {}, InvalidInput, ".csv"),
        ("a.txt", None, {}, NotThere, "download the list"),
    ],
)
def test_lists_that_cannot_be_read_say_what_they_lack(tmp_path, name, text, options, error, match):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=match):
        PromptList("a", tmp_path / name, **options).read()


def test_a_list_that_is_no_text_is_damaged(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt\n\xff\xfe\n")
    with pytest.raises(Damaged, match="UTF-8"):
        PromptList("a", tmp_path / "a.csv").read()


# -- what looks at images ----------------------------------------------------------------------


def grey(value, size=16):
    return Image.new("RGB", (size, size), (value,) * 3)


def test_a_classifier_sees_what_its_file_says(place):
    judge = Classifier(place / "bright.pt", (1,), threshold=0.5)
    scores = judge.scores([grey(20), grey(128), grey(240)])
    assert scores[0] < 0.01 < scores[2]
    flat = 128 / 255
    assert scores[1] == pytest.approx(1 / (1 + np.exp(-200 * (flat - 0.5))), rel=1e-4)
    assert "bright.pt" in str(judge)


class Wrong(torch.nn.Module):
    def forward(self, pixels):
        return pixels.float()


class Nothing(torch.nn.Module):
    def forward(self, pixels):
        return pixels.float().flatten(1)[:, :2] / 0.0 * 0.0


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"unwanted": (2,)}, OutOfRange, "classes 0 to 1"),
        ({"unwanted": ()}, InvalidInput, "at least one class"),
        ({"threshold": 1.5}, OutOfRange, "threshold = 1.5"),
        ({"says": "words"}, InvalidInput, "logits, probabilities"),
        ({"options": {"strength": 3}}, InvalidInput, "does not take"),
        ({"file": "none.pt"}, NotThere, "nothing is fetched"),
        ({"file": "coco.txt"}, Damaged, "no TorchScript"),
        ({"file": "wrong.pt"}, ShapeMismatch, r"\(1, 3, 16, 16\)"),
        ({"file": "nothing.pt", "unwanted": (0,)}, NotFinite, "NaN"),
    ],
)
def test_a_judge_that_cannot_judge_says_why(place, options, error, match):
    scripted(place / "wrong.pt", Wrong())
    scripted(place / "nothing.pt", Nothing())
    told = {"file": "bright.pt", "unwanted": (1,), **options}
    with pytest.raises(error, match=match):
        Classifier(**{**told, "file": place / told["file"]}).scores([grey(3)])


def test_a_judge_that_is_not_installed_names_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(NotThere, match=r"negindex\[nudenet\]"):
        NudeNet()


def test_clip_score_is_the_cosine_with_its_own_prompt(place):
    score = ClipScore("tiny", f"local-dir:{place / 'clip'}")
    images, prompts = [grey(20), grey(200)], ["a bag", "a coat"]
    told = score.scores(images, prompts)
    clip = score._clip
    for image, prompt, value in zip(images, prompts, told, strict=True):
        words = clip.embed_text(prompt)
        assert np.linalg.norm(words) == pytest.approx(1, abs=1e-5)
        assert value == pytest.approx(max(0, 100 * float(clip.embed(image) @ words)), abs=1e-4)
    assert told[0] != told[1]


def exported(path):
    sizes = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    pixels = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    torch.export.save(torch.export.export(Brightness(), (pixels,), dynamic_shapes=[sizes]), path)
    return path


def test_a_program_that_torch_exported_judges_too(place):
    judges = [Classifier(file, (1,)) for file in (place / "bright.pt", exported(place / "bright.pt2"))]
    images = [grey(100), grey(128, 24), grey(130)]
    np.testing.assert_allclose(judges[1].scores(images), judges[0].scores(images), rtol=1e-6)
    (place / "broken.pt2").write_bytes(b"PK")
    with pytest.raises(Damaged, match="no exported program"):
        Classifier(place / "broken.pt2", (1,)).scores(images)


def test_features_are_the_files_own(place):
    features = Scripted(place / "bright.pt", {"features": True}).features([grey(51), grey(255)])
    np.testing.assert_allclose(features, np.array([[0.2] * 8, [1.0] * 8]), atol=1e-6)


# -- a table, filled ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_table_of_every_class_of_pipeline(place, tmp_path, name):
    methods = [*said()["methods"], {"name": "negative prompt", "text": "negative-prompt"}]
    filling, _ = filled(ModelTable.of(said(name, methods=methods, prompts=ONE_LIST), place), tmp_path)
    cells = list(filling.cells())
    assert [(cell.request, cell.method) for cell in cells] == [("i2p", method["name"]) for method in methods]
    made = {cell.method: [np.asarray(image) for image in filling.pictures(cell)] for cell in cells}
    for other in ("paired", "negative prompt"):
        assert any((one != two).any() for one, two in zip(made["nothing"], made[other], strict=True))
    judge = filling.table.judge
    for cell in cells:
        assert cell.read == (judge.scores(filling.pictures(cell)) >= judge.threshold).astype(int).tolist()
        assert cell.measures["unwanted"].value == np.mean(cell.read)
    path = tmp_path / "images" / "i2p--paired" / "000003.png"
    with Image.open(path) as image:
        assert read_receipt(path).matches(image)


def test_the_same_seed_is_the_same_image_whatever_the_batch(place, tmp_path):
    tables = [ModelTable.of(said(drawn={"steps": 2, "batch": b}, prompts=ONE_LIST), place) for b in (8, 3)]
    one, two = (filled(table, tmp_path / str(table.drawn.batch))[0] for table in tables)
    for a, b in zip(one.cells(), two.cells(), strict=True):
        for left, right in zip(one.pictures(a), two.pictures(b), strict=True):
            assert np.abs(np.asarray(left, int) - np.asarray(right, int)).max() <= 2


def test_what_broke_off_goes_on_where_it_stopped(place, tmp_path, monkeypatch):
    table = ModelTable.of(said(prompts=ONE_LIST), place)
    whole, _ = filled(table, tmp_path / "whole")
    told, calls = ModelFilling(table, tmp_path / "broken"), []
    sampled = ModelFilling._sampled

    def breaks(self, method, asked, guard):
        calls.append(len(asked))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sampled(self, method, asked, guard)

    monkeypatch.setattr(ModelFilling, "_sampled", breaks)
    with pytest.raises(KeyboardInterrupt):
        told.run(lambda done: None)
    ledger = tmp_path / "broken" / "images" / "i2p--nothing" / "made.jsonl"
    ledger.write_text(ledger.read_text() + '{"first": 16, "cou')  # a line that broke off
    told.run(lambda done: None)
    assert calls[3:6] == [4, 8, 8], "the two batches that were made are not made again"
    for a, b in zip(whole.cells(), told.cells(), strict=True):
        assert a.read == b.read
        assert all(map(np.array_equal, whole.pictures(a), told.pictures(b)))
    _, again = filled(table, tmp_path / "broken")
    assert [line for line in again if "there already" in line] == again[-2:]


def test_images_of_other_numbers_are_made_anew(place, tmp_path):
    first, _ = filled(ModelTable.of(said(prompts=ONE_LIST), place), tmp_path)
    before = {cell.method: cell.read for cell in first.cells()}
    other, told = filled(ModelTable.of(said(drawn={"steps": 1, "batch": 20}, prompts=ONE_LIST), place), tmp_path)
    assert not any("there already" in line for line in told)
    assert list(first.cells()) == []
    assert before.keys() == {cell.method for cell in other.cells()}


def test_the_commands_write_a_table_a_plot_and_sheets(place, tmp_path):
    (place / "whole.toml").write_text(
        """
title = "A small one"
avoided = "brightness"
model = "sd"
negatives = "bad-sd"
reference = "good-sd"
judge = { kind = "classifier", file = "bright.pt", unwanted = [1] }
clip = { model = "tiny", weights = "local-dir:clip" }
quality = { file = "bright.pt", real = "real", options = { features = true } }
drawn = { steps = 2, guidance = 3.0, batch = 10 }

[[prompts]]
name = "i2p"
file = "i2p.csv"
unwanted = true

[[prompts]]
name = "coco"
file = "coco.txt"

[[methods]]
name = "nothing"

[[methods]]
name = "paired, prior 0.5"
image = { kernel = "literal", prior = 0.5 }
"""
    )
    out, options = tmp_path / "out", ["--count", str(COUNT)]
    config = str(place / "whole.toml")
    done = CliRunner().invoke(main, ["eval", "run", config, "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["eval", "report", config, "--out", str(out), *options])
    said = json.loads((out / "table.json").read_text())
    assert done.exit_code == (3 if said["precondition missed"] else 0), done.output
    page = (out / "table.md").read_text()
    assert "| read as brightness | mean score | CLIP score | FD | precision | recall | s an image |" in page
    assert "what is unwanted: i2p" in page
    assert (out / "table.png").stat().st_size > 5000
    for name in ("i2p", "coco"):
        with Image.open(out / f"{name}.png") as sheet:
            assert sheet.size[0] > 230 + 8 * 128
    told = said["cells"][0]["measures"]
    assert 0 <= told["clip"][0] <= 100
    assert told["fd"][1] <= told["fd"][0] <= told["fd"][2]


def test_a_model_that_draws_nothing_unwanted_tells_nothing(place, tmp_path):
    judge = {"kind": "classifier", "file": "bright.pt", "unwanted": [1], "threshold": 0.999999999}
    filling, _ = filled(
        ModelTable.of(said(judge=judge, prompts=ONE_LIST, methods=[{"name": "nothing"}]), place), tmp_path
    )
    told = as_json(filling, list(filling.cells()))
    assert told["precondition missed"] == ["unguarded, i2p: 0 images flagged, at least 5 are needed"]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"judge": "magic"}, InvalidInput, "nudenet, classifier"),
        ({"judge": {"kind": "classifier", "unwanted": [1], "speed": 2, "file": "bright.pt"}}, InvalidInput, "speed"),
        ({"prompts": [{"name": "a"}]}, InvalidInput, "file"),
        ({"prompts": []}, InvalidInput, "at least one"),
        ({"methods": [{"name": "a"}, {"name": "a"}]}, InvalidInput, "name of its own"),
        ({"count": 5}, InvalidInput, "at least 20"),
        ({"drawn": {"dtype": "int8"}}, InvalidInput, "float16"),
        ({"drawn": {"steps": 0}}, InvalidInput, "at least 1"),
        ({"drawn": {"speed": 3}}, InvalidInput, "speed"),
        ({"requests": ["plain"]}, InvalidInput, "requests"),
        ({"clip": {"model": "tiny"}}, InvalidInput, "clip"),
        ({"quality": {"file": "bright.pt"}}, InvalidInput, "real"),
    ],
)
def test_a_table_that_says_what_is_not_known_is_refused(place, change, error, match):
    with pytest.raises(error, match=match):
        ModelTable.of(said(**change), place)


def test_a_table_that_lacks_a_part_names_it(place):
    short = said()
    del short["judge"]
    with pytest.raises(InvalidInput, match="lacks judge"):
        ModelTable.of(short, place)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image": {"gate": "oracle", "kernel": "literal"}}, "nobody knows"),
        ({"image": {"engine": "mixture", "kernel": "literal"}}, "its own index"),
        ({"image": {"prior": 0.5}}, "negindex calibrate"),
    ],
)
def test_what_a_real_model_cannot_be_asked_is_refused(place, tmp_path, change, match):
    table = ModelTable.of(said(methods=[{"name": "a", **change}]), place)
    with pytest.raises(InvalidInput, match=match):
        filled(table, tmp_path)


@pytest.mark.parametrize("text", ["sld", "safree"])
def test_text_methods_for_one_encoder_refuse_two(place, tmp_path, text):
    table = ModelTable.of(said("sdxl", methods=[{"name": "a", "text": text}]), place)
    with pytest.raises(NotAllowed, match="one text encoder"):
        filled(table, tmp_path)


def test_text_methods_run_on_stable_diffusion(place, tmp_path):
    methods = [{"name": "nothing"}, {"name": "sld", "text": {"kind": "sld", "warmup": 0.0}}]
    methods += [{"name": "sld and unasked", "text": "sld", "image": {"rule": "unasked", "kernel": "literal"}}]
    methods += [{"name": "safree", "text": {"kind": "safree", "alpha": -1.0}}]
    table = ModelTable.of(said(methods=methods, prompts=ONE_LIST), place)
    assert [type(method.text) for method in table.methods[1:]] == [Sld, Sld, Safree]
    filling, _ = filled(table, tmp_path)
    first = [next(iter(filling.pictures(cell))) for cell in filling.cells()]
    assert len({image.tobytes() for image in first}) == len(methods)

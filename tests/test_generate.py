"""`negindex generate`: each option reaches the guard, and what does not go together is said before anything runs."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from worlds import diffusers_on_numpy_2, seeded

import negindex.data
from negindex import Collection, Kernel
from negindex.errors import InvalidInput
from negindex.receipts import Receipt
from negindex.sampler import MeanDiscrepancy, SafeDenoising, Spell
from negindex.sampler.pipelines import arguments_for
from negindex.sampler.png import read_receipt, save_image
from negindex.tools.cli import main

pytestmark = diffusers_on_numpy_2
FOLDER = Path(negindex.data.__file__).parent / "digits-unet"
USAGE, NOT_THERE, INTEGRITY = 2, 10, 13


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three collections of random images: "a" with labels one and two, "b" with label two, and "benign"."""
    folder = tmp_path_factory.mktemp("sets")
    for seed, (name, labels) in enumerate({"a": ["one", "two"], "b": ["two"], "benign": [None]}.items()):
        with Collection.create(folder / name, (1, 8, 8), "pixels") as made:
            for label in labels:
                rows = torch.rand(4, 1, 8, 8, generator=seeded(seed)) * 2 - 1
                made.add(rows + len(made) / 100, [f"{name}-{label}-{i}" for i in range(4)], label=label)
    return folder


@pytest.fixture
def generate(sets, tmp_path):
    """Run the command on the digit model; returns the receipt beside the first image."""

    def run_it(*words, expect=0, negatives=("a",), reference=True):
        named = [word for name in negatives for word in ("--negatives", sets / name)]
        named += ["--reference", sets / "benign"] if reference else []
        done = run("generate", FOLDER, *named, "--steps", 2, "--out", tmp_path / "out", *words)
        assert done.exit_code == expect, done.output
        if expect:
            assert not (tmp_path / "out").exists()
            return done.stderr
        return Receipt.from_json((tmp_path / "out" / "00000.json").read_text())

    return run_it


# -- what reaches the guard --------------------------------------------------------------------

REACHES = {  # the words, whether with a reference, and what the receipt says
    "nothing": ((), True, {"rule": "paired", "gate": "ratio, prior 0.1", "window": "always", "kernel": "literal"}),
    "a prior": (("--prior", 0.3), True, {"gate": "ratio, prior 0.3"}),
    "paired": (("--rule", "paired", "--gate", "ratio"), True, {"rule": "paired", "gate": "ratio, prior 0.1"}),
    "safe-denoiser": (("--rule", "safe-denoiser", "--beta-max", 2), True, {"rule": str(SafeDenoising(2))}),
    "spell": (("--rule", "spell", "--radius", 3), False, {"rule": str(Spell(3)), "gate": "none"}),
    "spell, gated": (
        ("--rule", "spell", "--radius", 3, "--overcompensation", 1.2),
        True,
        {"rule": str(Spell(3, 1.2)), "gate": "ratio, prior 0.1"},
    ),
    "mean-discrepancy": (
        ("--rule", "mean-discrepancy", "--bandwidth", 5, "--strength", 0.5),
        False,
        {"rule": str(MeanDiscrepancy(5, 0.5))},
    ),
    "a threshold": (("--gate", "threshold:-3.5"), False, {"gate": "threshold -3.5, eta 1"}),
    "its strength": (("--gate", "threshold:-3.5:0.25"), False, {"gate": "threshold -3.5, eta 0.25"}),
    "a constant": (("--gate", "constant:0.5"), True, {"gate": "constant, beta 0.5", "rule": "paired"}),
    "timesteps": (("--window", "timesteps:780-1000"), True, {"window": "780 <= t <= 1000"}),
    "a fraction": (("--window", "fraction:0-0.22"), True, {"window": "0 <= step / steps < 0.22"}),
    "noise": (("--window", "noise:5e-1-inf"), True, {"window": "0.5 <= s <= inf"}),
    "no copies": (("--copies", "none"), True, {"copies": "none"}),
    "near copies": (("--copies", 0.75), True, {"copies": "within 0.75"}),
    "a wide kernel": (("--kernel-floor", 0.6), True, {"kernel": Kernel.floored(0.6).name}),
}


@pytest.mark.parametrize(("words", "reference", "said"), REACHES.values(), ids=REACHES.keys())
def test_what_is_asked_for_is_what_the_receipt_says(words, reference, said, generate):
    receipt = generate(*words, reference=reference)
    assert {name: getattr(receipt, name) for name in said} == said
    assert re.fullmatch(r"within [\d.]+(, or [\d.]+ where no other row explains the sample)?|none", receipt.copies)


def test_a_window_shuts_the_gate_outside(generate):
    early, late = generate("--window", "fraction:0-0.5", "--copies", "none").steps
    assert (early.log_odds > float("-inf"), late.log_odds) == (True, float("-inf"))


@pytest.mark.parametrize("policy", ["raise", "last-good"])
def test_what_an_unreadable_version_does_is_asked_for(policy, sets, tmp_path, monkeypatch):
    """Between two batches a version comes whose file is lost."""
    shutil.copytree(sets / "a", tmp_path / "set")
    saved = []

    def save_then_lose(image, receipt, path):
        saved.append(receipt.degraded_steps)
        if len(saved) == 1:
            with Collection.open(tmp_path / "set") as collection:
                collection.add(torch.zeros(1, 1, 8, 8), ["lost"])
                (collection.path / "segments" / collection.segments()[-1].file).unlink()
        return save_image(image, receipt, path)

    monkeypatch.setattr("negindex.sampler.png.save_image", save_then_lose)
    words = ["--negatives", tmp_path / "set", "--reference", sets / "benign", "--on-error", policy]
    done = run("generate", FOLDER, *words, "--steps", 2, "--count", 2, "--batch", 1, "--out", tmp_path / "out")
    assert (done.exit_code, saved) == ((INTEGRITY, [0]) if policy == "raise" else (0, [0, 2])), done.output


def test_a_set_sets_its_own_gate(generate, sets, tmp_path):
    with Collection.create(tmp_path / "many", (1, 8, 8), "pixels") as made:
        made.add(torch.rand(240, 1, 8, 8, generator=seeded(4)) * 2 - 1, [str(i) for i in range(240)])
    receipt = generate("--gate", "trigger:0.9:0.5", negatives=(tmp_path / "many",), reference=False)
    assert receipt.gate == "trigger share 0.9, eta 0.5, without a reference"
    shutil.rmtree(tmp_path / "out")
    assert "too few" in generate("--gate", "trigger:0.9", reference=False, expect=USAGE)


# -- several sets, several labels --------------------------------------------------------------


def test_several_sets_are_stayed_away_from_as_one(generate, sets):
    receipt = generate(negatives=("a", "b"))
    ids = [Collection.open(sets / name).set_id for name in "ab"]
    assert [(stated.set_id, stated.rows) for stated in receipt.sets] == [(ids[0], 8), (ids[1], 4)]


def test_each_label_has_a_guard_a_prior_and_a_receipt(generate, sets, tmp_path):
    first = generate("--label", "one=0.9", "--label", "two", "--prior", 0.2, "--count", 2, negatives=("a", "b"))
    ids = [Collection.open(sets / name).set_id for name in "ab"]
    assert (first.gate, [stated.set_id for stated in first.sets]) == (
        "ratio, prior 0.9",
        [f"{ids[0]}#one", f"{ids[1]}#one"],
    )
    assert [stated.rows for stated in first.sets] == [4, 0]
    for i in range(2):
        second = Receipt.from_json((tmp_path / "out" / f"{i:05d}.2.json").read_text())
        assert (second.gate, [stated.rows for stated in second.sets]) == ("ratio, prior 0.2", [4, 4])
        with Image.open(tmp_path / "out" / f"{i:05d}.png") as image:
            assert second.matches(image)
            assert read_receipt(tmp_path / "out" / f"{i:05d}.png").matches(image)
    assert read_receipt(tmp_path / "out" / "00000.png") == first.without_names()


def test_a_label_may_hold_an_equals_sign(generate, sets, tmp_path):
    with Collection.create(tmp_path / "set", (1, 8, 8), "pixels") as made:
        made.add(torch.zeros(2, 1, 8, 8), ["x", "y"], label="case=7")
    receipt = generate("--label", "case=7=0.4", negatives=(tmp_path / "set",))
    assert (receipt.gate, receipt.sets[0].set_id.partition("#")[2]) == ("ratio, prior 0.4", "case=7")


def test_a_label_that_no_row_in_force_has_is_said_before_anything_is_made(generate):
    said = generate("--label", "one", "--label", "tow", negatives=("a", "b"), expect=NOT_THERE)
    assert "the label 'tow' has no row in force" in said


# -- what does not go together -----------------------------------------------------------------

REFUSED = {
    "a number of another rule": (("--radius", 3), True, "--radius belongs to --rule spell"),
    "one of a rule that was not taken": (("--rule", "spell", "--radius", 3, "--beta-max", 1), True, "safe-denoiser"),
    "spell without a radius": (("--rule", "spell"), True, "--rule spell needs --radius"),
    "no bandwidth": (("--rule", "mean-discrepancy"), True, "needs --bandwidth"),
    "paired without a reference": (("--rule", "paired"), False, "give --reference"),
    "a ratio without a reference": (("--gate", "ratio"), False, "give --reference"),
    "a prior that nobody reads": (("--prior", 0.3, "--gate", "constant:1"), True, "only the ratio gate reads"),
    "a prior without a reference": (("--prior", 0.3, "--gate", "threshold:0"), False, "only the ratio gate reads"),
    "a label's prior that nobody reads": (
        ("--label", "one=0.3", "--rule", "spell", "--radius", 1),
        False,
        "--label one=0.3",
    ),
    "a label twice": (("--label", "one=0.3", "--label", "one=0.4"), True, "--label one is given twice"),
    "a label's prior that is no number": (("--label", "one=high"), True, "LABEL=PRIOR"),
    "a label's prior beyond one": (("--label", "one=3"), True, "prior = 3"),
    "an unknown gate": (("--gate", "ratios"), True, "give ratio, trigger:SHARE"),
    "a gate with too many numbers": (("--gate", "constant:1:2"), True, "constant:BETA"),
    "a share beyond all rows": (("--gate", "trigger:1"), False, "between 0 and 1"),
    "a gate of no number": (("--gate", "threshold:low"), False, "threshold:AT"),
    "a window of no kind": (("--window", "780-1000"), True, "give timesteps:780-1000"),
    "a window backwards": (("--window", "timesteps:1000-780"), True, "lower number first"),
    "a window beyond the run": (("--window", "fraction:0-3"), True, "0 <= low < high <= 1"),
    "copies of no distance": (("--copies", "near"), True, "none or by-data"),
    "copies at a negative distance": (("--copies", "-1"), True, "distance >= 0"),
    "a kernel of no width": (("--kernel-floor", 0), True, "positive and finite"),
    "neither reference nor gate": ((), False, "nothing to compare with"),
}


@pytest.mark.parametrize(("words", "reference", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_go_together_is_a_usage_error(words, reference, said, generate):
    assert said in generate(*words, reference=reference, expect=USAGE)


@pytest.mark.parametrize(
    "words",
    [("--prior", 0.2), ("--rule", "paired"), ("--copies", "none"), ("--label", "x"), ("--on-error", "last-good")],
)
def test_an_unguarded_run_takes_nothing_of_a_guard(words, tmp_path):
    done = run("generate", FOLDER, "--unguarded", *words, "--out", tmp_path / "out")
    assert done.exit_code == USAGE
    assert f"{words[0]} set up a guard" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": ["a cat"]}, "takes no prompt"),
        ({"class_label": 3}, "takes no class_labels"),
        ({"guidance": 2.0}, "takes no guidance_scale"),
    ],
)
def test_a_pipeline_is_not_asked_for_what_it_does_not_take(options, said):
    class Unconditional:
        def __call__(self, batch_size=1, num_inference_steps=50):
            """Takes nothing else."""

    assert arguments_for(Unconditional(), 3, size=(8, 8)) == {"batch_size": 3}
    with pytest.raises(InvalidInput, match=f"Unconditional {said}"):
        arguments_for(Unconditional(), 3, **options)


def test_a_pipeline_that_needs_to_be_told_what_to_make_is_not_called_without():
    class Texts:
        def __call__(self, prompt, height=None, width=None, guidance_scale=1.0):
            """Text to image."""

    class Classes:
        def __call__(self, class_labels):
            """As DiT: there is no label for no class."""

    for pipe in (Texts(), Classes()):
        with pytest.raises(InvalidInput, match="give prompts, or a class label"):
            arguments_for(pipe, 2)
    told = {"prompt": ["a", "b"], "height": 16, "width": 32, "guidance_scale": 3.0}
    assert arguments_for(Texts(), 2, ["a", "b"], guidance=3.0, size=(16, 32)) == told
    assert arguments_for(Classes(), 2, class_label=7) == {"class_labels": [7, 7]}

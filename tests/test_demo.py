"""The demo does what it says, on real images, and its figures hold."""

import json
import re

import numpy as np
import pytest
from demo_runs import DEMO_IMAGES, run_demo
from PIL import Image

from negindex import Collection
from negindex.tools import digits
from negindex.tools.demo_measures import Measured, asked_for_avoided, asked_for_others, unconditional

pytestmark = pytest.mark.timeout(1800)


def assert_every_figure_holds(run, images):
    assert run.returncode == 0, run.stdout + run.stderr
    assert "MISSED" not in run.stdout
    held, of = re.search(r"(\d+) of (\d+) figures hold", run.stdout).groups()
    assert held == of
    assert int(of) == 2 * (11 + 2 + 10) + 2, "eleven, two and ten figures a scheduler, and two for the takedown"
    counts = re.findall(r"^   asked for (nothing|8|the others) +(?:un)?guarded +(\d+)", run.stdout, re.MULTILINE)
    cells = [("nothing", images), ("8", images // 5), ("the others", 9 * images // 5)]
    assert counts == [(asked, str(count)) for asked, count in cells for _ in range(2)] * 2


def test_every_figure_of_the_demo_holds_in_both_schedulers_six_cells(demo_run):
    assert_every_figure_holds(demo_run, DEMO_IMAGES)


@pytest.mark.long
def test_every_figure_of_the_demo_holds_at_full_size(tmp_path):
    assert_every_figure_holds(run_demo(tmp_path), 1000)


def test_the_takedown_leaves_three_versions_and_a_receipt(demo_run):
    collection = Collection.open(demo_run.folder / "demo" / "eights.set")
    assert [v.action for v in collection.versions()] == ["create", "add", "add", "withdraw"]
    assert collection.newest().in_force == collection.versions()[1].in_force
    receipt = json.loads((demo_run.folder / "demo" / "receipt.json").read_text())
    assert receipt["sets"][0]["version"] == 2
    assert receipt["reference"][0]["rows"] < Collection.open(demo_run.folder / "demo" / "others.set").newest().in_force
    assert re.fullmatch(r"[0-9a-f]{64}", receipt["image_sha256"])


def test_the_contact_sheet_is_a_picture_with_framed_eights(demo_run):
    with Image.open(demo_run.folder / "demo" / "before-after.png") as sheet:
        colours = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert (colours == (0xE8, 0x59, 0x0C)).all(1).sum() > 1000


def test_the_files_are_the_digits(demo_run):
    training, held_out = digits.load()
    assert len(training.classes) + len(held_out.classes) == 1797
    assert not set(training.places) & set(held_out.places)
    for i in (0, 700, 1400):
        path = demo_run.folder / "demo" / "digits" / str(training.classes[i]) / f"{training.places[i]:04d}.png"
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), training.pixels[i])


def cell(shares, right=None, distance=2.0, count=1000):
    return Measured(np.zeros(count, np.int64), shares, right or {}, 0.9, distance, 0.01)


EVEN = [0.1] * 10
WITHOUT = [1 / 9] * 8 + [0.0, 1 / 9]


def missed(verdicts):
    return [verdict.what for verdict in verdicts if not verdict.holds]


def test_the_verdicts_miss_what_falls_short():
    assert missed(unconditional(cell(EVEN), cell(WITHOUT), 2.0)) == []
    assert len(missed(unconditional(cell(EVEN), cell(EVEN), 2.0))) == 1
    drained = [0.03, *[0.97 / 8] * 7, 0.0, 0.97 / 8]
    assert missed(unconditional(cell(EVEN), cell(drained), 2.0)) == ["share of 0s, as expected without 8s"]
    assert missed(unconditional(cell(EVEN), cell(WITHOUT, distance=2.2), 2.0)) == ["distance to the training images"]
    assert missed(unconditional(cell(EVEN), cell(WITHOUT, distance=1.7), 2.0)) == ["distance to the training images"]
    all_eights, half = [0.0] * 8 + [1.0, 0.0], [0.05] * 8 + [0.6, 0.0]
    assert missed(asked_for_avoided(cell(all_eights), cell(half))) == ["share read as 8, at most half"]
    right = dict.fromkeys([c for c in range(10) if c != 8], 1.0)
    assert missed(asked_for_others(cell(EVEN, right, count=1800), cell(EVEN, right, count=1800))) == []
    worse = missed(asked_for_others(cell(EVEN, right, count=1800), cell(EVEN, {**right, 3: 0.9}, count=1800)))
    assert worse == ["accuracy over the other classes", "accuracy when asked for 3"]


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_the_shipped_weights_can_be_made_again():
    """The command that made them gives a network as good on held-out digits, noise level by noise level."""
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    import negindex.data

    training, held_out = digits.load()
    shipped = UNet2DModel.from_pretrained(f"{negindex.data.__path__[0]}/digits-unet/unet", dtype=torch.float32).eval()
    again = digits.train(training, steps=3500, seed=0, progress=lambda step, loss: None)
    noising = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    labels = torch.from_numpy(held_out.classes)
    for t in (20, 100, 300, 600):
        noise = torch.randn(held_out.rows.shape, generator=torch.Generator().manual_seed(t))
        at = torch.full((len(labels),), t)
        x_t = noising.add_noise(held_out.rows, noise, at)
        with torch.no_grad():
            losses = [
                ((unet(x_t, at, class_labels=labels).sample - noise) ** 2).mean().item() for unet in (shipped, again)
            ]
        assert losses[1] == pytest.approx(losses[0], rel=0.05), f"at t = {t}"

"""How often gates speak up is measured on samples that no set holds, and the cautious prior is what it says."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from worlds import seeded

from negindex import Collection, Exact, NoiseLevel
from negindex.errors import OutOfRange, ShapeMismatch
from negindex.sampler import Ratio
from negindex.sampler.heard import COPIES, COPY, HELD_OUT, RATIO, REFERENCE, TRIGGER, cautious, heard
from negindex.tools import digits
from negindex.tools.cli import main

LEVELS = (0.3, 1.0, 20.0)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    training, _ = digits.load()
    made = []
    for name, chosen in (("high", training.classes >= 5), ("low", training.classes < 5)):
        made.append(Collection.create(folder / f"{name}.set", (1, 8, 8), "pixels"))
        rows = training.rows[torch.from_numpy(chosen)]
        made[-1].add(rows.numpy(), [f"{name}-{i}" for i in range(len(rows))])
    made[1].adopt(made[0].calibrate(made[1]))
    return made


@pytest.fixture(scope="module")
def told(sets):
    high, low = (one.snapshot() for one in sets)
    return heard(high, low, rows=100, levels=LEVELS, seed=1)


def test_the_sets_own_kind_and_harmless_ones_are_told_apart_at_low_noise_and_not_at_high(told):
    assert told.kinds == [HELD_OUT, COPIES, REFERENCE]
    assert set(LEVELS) < set(told.levels)
    assert told.shares[0.3, HELD_OUT][RATIO] > 0.8
    assert told.shares[0.3, COPIES][RATIO] > 0.9
    assert told.shares[20.0, HELD_OUT][RATIO] < 0.1
    assert told.shares[0.3, REFERENCE][TRIGGER] < 0.6 < told.shares[20.0, REFERENCE][TRIGGER]
    assert all(told.shares[s, HELD_OUT][TRIGGER] > 0.85 for s in LEVELS)


def test_under_the_cautious_prior_one_in_a_hundred_harmless_rows_speaks_up_at_most(told):
    shares = [told.shares[s, REFERENCE][RATIO] for s in told.levels]
    assert max(shares) <= 0.01
    bolder = torch.tensor(told.prior, dtype=torch.float64).logit() + 0.5
    found = [(told.log_ratios[s, REFERENCE] + bolder >= 0).double().mean() for s in told.levels]
    assert max(found) >= 0.01


def test_the_copy_gate_hears_copies_and_nothing_else_where_it_speaks(told):
    below, beyond = sorted(set(told.levels) - set(LEVELS))
    assert (below, beyond) == (pytest.approx(0.99 * told.copies_until), pytest.approx(0.99 * told.reach_until))
    assert told.shares[beyond, COPIES][COPY] >= 0.3
    assert told.shares[beyond, REFERENCE][COPY] <= 0.02
    assert told.shares[below, COPIES][COPY] >= 0.97
    assert told.shares[below, HELD_OUT][COPY] <= 0.02
    assert told.shares[below, REFERENCE][COPY] <= 0.02
    assert all(told.shares[s, kind][COPY] == 0 for s in LEVELS if s > beyond for kind in told.kinds)


def test_held_out_rows_are_asked_of_a_set_that_lacks_them_and_what_copies_them(tmp_path):
    random = seeded(4)
    images = torch.randn(400, 1, 4, 4, generator=random)
    twice = torch.cat([images, images + 1e-3 * torch.randn(images.shape, generator=random)])
    sets = []
    for name, rows in (("twice", twice), ("others", torch.randn(400, 1, 4, 4, generator=random))):
        sets.append(Collection.create(tmp_path / name, (1, 4, 4), "pixels"))
        sets[-1].add(rows.numpy(), [f"{name}-{i}" for i in range(len(rows))])
    told = heard(*(one.snapshot() for one in sets), rows=50, levels=(0.01, 0.02), share=0.9)
    assert told.shares[0.01, COPIES][COPY] == 1.0
    assert told.shares[0.01, HELD_OUT][COPY] == 0.0  # though each has a twin


def test_it_agrees_with_the_gate_that_a_guard_has(sets):
    high, low = (one.snapshot() for one in sets)
    own = torch.randn(40, 1, 8, 8, generator=seeded(3))
    told = heard(high, low, generated={"noise": own}, rows=20, levels=(1.0,), prior=0.4)
    assert told.prior == 0.4
    assert told.kinds[-1] == "noise"
    x = own + torch.randn(own.shape, generator=seeded(5))
    odds = Ratio(low, 0.4)(x, NoiseLevel(1.0, 1.0), high.posterior(x, NoiseLevel(1.0, 1.0)))
    assert abs(float((odds >= 0).double().mean()) - told.shares[1.0, "noise"][RATIO]) < 0.2


def test_a_cautious_prior_lets_no_more_than_the_share_speak_up():
    ratios = [torch.linspace(-5, 5, 200, dtype=torch.float64), torch.full((200,), -3.0, dtype=torch.float64)]
    for false in (0.0, 0.01, 0.1):
        odds = torch.tensor(cautious(ratios, false), dtype=torch.float64).logit()
        speak = [float((ratio + odds >= 0).double().mean()) for ratio in ratios]
        assert false - 0.006 < max(speak) <= false


def test_too_few_rows_and_images_of_another_shape_are_refused(sets):
    high, low = (one.snapshot() for one in sets)
    with pytest.raises(OutOfRange, match=r"721 reference; measuring takes 800, of which 600 are held out"):
        heard(Exact(torch.randn(900, 1, 8, 8)), low, rows=600)
    with pytest.raises(ShapeMismatch, match=r"other of shape \(3, 8, 8\) for rows of \(1, 8, 8\)"):
        heard(high, low, generated={"other": torch.zeros(2, 3, 8, 8)})


def test_the_command_prints_the_table_and_what_it_means(sets, tmp_path):
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (12, 8, 8), np.uint8)):
        (tmp_path / "made").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "made" / f"{i}.png")
    words = ["gates", str(sets[0].path), "--reference", str(sets[1].path), "--rows", "40"]
    done = CliRunner().invoke(main, [*words, "--images", str(tmp_path / "made")])
    assert done.exit_code == 0, done.output
    for said in (
        "ratio",
        "trigger",
        "copy",
        "held out",
        "made",
        "at most 1% of 40 reference rows",
        "copy gate looks up",
    ):
        assert said in done.output
    told = json.loads(CliRunner().invoke(main, [*words, "--prior", "0.5", "--json"]).stdout)
    assert told["prior"] == 0.5
    assert {"s", HELD_OUT, COPIES, REFERENCE} == set(told["levels"][0])
    empty = tmp_path / "none"
    empty.mkdir()
    refused = CliRunner().invoke(main, [*words, "--images", str(empty)])
    assert refused.exit_code == 10
    assert "has no images" in refused.output

"""The weights that ship: the model obeys plain and evasive prompts, and the judge that says so knows its classes."""

from contextlib import nullcontext
from importlib.resources import as_file, files

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from negindex.sampler.evaluation.asked import EVASIVE, KEPT, NOTHING, PLAIN
from negindex.sampler.evaluation.fashion import CLASSES, FOLDER, load
from negindex.sampler.evaluation.fashion_stage import FashionStage
from negindex.sampler.evaluation.report import OBEYED
from negindex.sampler.evaluation.stage import Drawn
from negindex.sampler.evaluation.text_side import AsAsked
from negindex.tools.cli import main


def shipped(parts):
    with as_file(files("negindex.data") / "fashion-world") as folder:
        return FashionStage.open(folder, parts)


def obeyed(stage, request, avoided, count):
    asked = stage.asked(request, avoided, count)
    samples = stage.sample(asked, Drawn(), AsAsked(), nullcontext())
    return (stage.read(samples).classes == CLASSES.index(avoided)).mean()


@pytest.mark.parametrize("request_", [PLAIN, EVASIVE])
def test_the_model_that_ships_draws_what_it_is_asked_for(request_):
    assert obeyed(shipped(None), request_, "bag", 30) >= OBEYED


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("request_", [PLAIN, EVASIVE])
def test_every_class_is_obeyed(request_):
    stage = shipped(None)
    told = {name: obeyed(stage, request_, name, 200) for name in CLASSES}
    print(request_, {name: f"{share:.1%}" for name, share in told.items()})
    assert np.mean(list(told.values())) >= OBEYED
    assert min(told[name] for name in ("trousers", "bag", "sneaker", "ankle boot")) >= OBEYED


@pytest.mark.services
def test_the_judge_reads_images_that_it_never_saw():
    stage = shipped(load(FOLDER))
    images, classes = stage.test_images
    assert (stage.read(images[:2000]).classes == classes[:2000]).mean() > 0.85


@pytest.mark.services
def test_what_was_memorised_comes_back_by_its_name_and_by_no_other():
    stage = shipped(load(FOLDER))
    asked = stage.asked(KEPT, "bag", 24)
    wanted = [one.wanted for one in asked]
    by_name, unasked = (
        stage.copies(stage.sample(told, Drawn(), AsAsked(), nullcontext()), wanted)
        for told in (asked, stage.asked(NOTHING, "bag", 24))
    )
    assert by_name.mean() > 0.3
    assert unasked.mean() < 0.1


def test_all_that_ships_is_small():
    with as_file(files("negindex.data")) as folder:
        sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 16e6


@pytest.mark.services
def test_the_command_trains_a_world_that_opens_and_goes_on_from_its_checkpoints(tmp_path):
    words = ["train-world", str(tmp_path / "world"), "--vae-steps", "2", "--steps", "2", "--judge-steps", "2"]
    words += ["--checkpoints", str(tmp_path / "checkpoints"), "--threads", str(torch.get_num_threads())]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    weights = FashionStage.open(tmp_path / "world", load(FOLDER)).weights
    again = CliRunner().invoke(main, words)
    assert "step" not in again.output
    assert FashionStage.open(tmp_path / "world", load(FOLDER)).weights == weights

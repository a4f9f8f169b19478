"""The digit model on stage: the class-conditional and the unconditional table."""

from importlib.resources import as_file, files

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from negindex.errors import InvalidInput, OutOfRange
from negindex.sampler.evaluation.asked import EVASIVE, NOTHING, OTHERS, PLAIN
from negindex.sampler.evaluation.filling import Filling
from negindex.sampler.evaluation.stage import Drawn
from negindex.sampler.evaluation.table import Table
from negindex.sampler.evaluation.text_side import AsAsked, NegativePrompt
from negindex.tools.cli import main
from negindex.tools.digits_stage import DigitsStage


@pytest.fixture(scope="module")
def stage():
    with as_file(files("negindex.data") / "digits-unet") as folder:
        return DigitsStage(folder)


def test_requests_are_class_labels(stage):
    assert {one.wanted for one in stage.asked(PLAIN, "8", 5)} == {8}
    assert {one.wanted for one in stage.asked(OTHERS, "8", 30)} == set(range(10)) - {8}
    assert {one.wanted for one in stage.asked(NOTHING, "8", 5)} == {None}


def test_sets_are_of_their_classes_and_spread_over_the_writers(stage):
    unwanted, other = stage.trained_on(PLAIN, "8")
    assert len(unwanted) + len(other) == len(stage.training_images[0])
    some, reference = stage.negatives(PLAIN, "8", 50), stage.reference("8", 650)
    assert len(some) == 50
    assert len(some.holds(unwanted.digests().values())) == 50
    assert not reference.holds(unwanted.digests().values())
    assert len(reference) == 650
    with pytest.raises(OutOfRange):
        stage.negatives(PLAIN, "8", 5000)


def test_the_guarded_model_draws_fewer_of_the_unwanted(stage, tmp_path):
    said = {
        "title": "t",
        "world": "digits",
        "avoided": "8",
        "requests": [PLAIN],
        "count": 40,
        "negatives": 139,
        "reference": 600,
        "drawn": {"guidance": 2.0, "batch": 40},
        "methods": [{"name": "nothing"}, {"name": "paired", "image": {"kernel": "floored", "prior": 0.5}}],
    }
    bench = Filling(Table.of(said), stage, tmp_path)
    bench.run(lambda done: None)
    _, free, kept = bench.cells()
    assert free.measures["hit"].value > 0.9
    assert kept.measures["unwanted"].high < free.measures["unwanted"].low
    assert np.mean(kept.hit) == kept.measures["unwanted"].value


def test_a_model_without_prompts_takes_no_text_method(stage):
    one = stage.asked(PLAIN, "8", 1)
    with pytest.raises(InvalidInput, match="no prompts"):
        stage.call(one, Drawn(steps=2), NegativePrompt(("eight",)), [torch.Generator()])
    assert stage.call(one, Drawn(steps=2), AsAsked(), [torch.Generator()]).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(("world", "avoided"), [("digits", "bag"), ("fashion", "8"), ("moon", "8")])
def test_a_table_names_a_world_and_a_class_of_it(world, avoided):
    with pytest.raises(InvalidInput, match=avoided):
        Table.of({"title": "t", "world": world, "avoided": avoided, "methods": [{"name": "nothing"}]})


def test_a_request_that_a_world_cannot_answer_is_refused(stage, tmp_path):
    table = Table.of(
        {"title": "t", "world": "digits", "avoided": "8", "requests": [EVASIVE], "methods": [{"name": "nothing"}]}
    )
    with pytest.raises(InvalidInput, match="evasive"):
        Filling(table, stage, tmp_path).run(lambda done: None)


def test_the_commands_fill_a_table_and_report_it(tmp_path):
    (tmp_path / "t.toml").write_text(
        'title = "T"\nworld = "digits"\navoided = "8"\nrequests = ["plain"]\ncount = 1000\nnegatives = 50\n'
        'reference = 60\ndrawn = { steps = 4, guidance = 2.0, batch = 20 }\n[[methods]]\nname = "nothing"\n'
        '[[methods]]\nname = "paired"\nimage = { kernel = "floored" }\n'
    )
    words = [str(tmp_path / "t.toml"), "--out", str(tmp_path / "out"), "--count", "20"]
    early = CliRunner().invoke(main, ["eval", "report", *words])
    assert early.exit_code == 3
    assert "2 cells are missing" in early.output
    done = CliRunner().invoke(main, ["eval", "run", *words, "--threads", str(torch.get_num_threads())])
    assert done.exit_code == 0, done.output
    told = CliRunner().invoke(main, ["eval", "report", *words])
    assert told.exit_code in (0, 3), told.output  # four steps may draw too few 8s for the precondition
    assert "missing" not in told.output
    assert "| paired |" in (tmp_path / "out" / "table.md").read_text()
    (tmp_path / "t.toml").write_text('title = "T"\navoided = "hat"\n')
    assert CliRunner().invoke(main, ["eval", "run", *words]).exit_code == 2

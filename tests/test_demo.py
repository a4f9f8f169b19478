"""The demo does what it says, on real images, its figures hold, and what README and help show runs after it.

All that starts from the demo stands here, so that it runs once.
"""

import doctest
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from worlds import diffusers_on_numpy_2

import negindex.data
from negindex import Collection
from negindex.tools import digits
from negindex.tools.cli import main
from negindex.tools.demo_measures import Measured, asked_for_avoided, asked_for_others, unconditional

pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).parents[1]
DEMO_IMAGES = 300  # a reader's demo samples 1,000, and so does `make check-long`


class DemoRun(NamedTuple):
    """The demo as a reader runs it: where, and what it printed."""

    folder: Path  # holds demo/ and data/
    returncode: int
    stdout: str
    stderr: str


def run_demo(folder, *words):
    """`negindex demo` in a folder that holds data/ as a clone does."""
    (folder / "data").symlink_to(Path(negindex.data.__file__).parent)
    words = [sys.executable, "-m", "negindex.tools", "demo", "--out", "demo", *words]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    return DemoRun(folder, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("reader"), "--images", str(DEMO_IMAGES))


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


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


# -- the README ------------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_every_block_of_the_readme_is_of_a_kind_that_is_run_here():
    assert {kind for kind, _ in BLOCKS} == {"console", "python"}


def test_the_readme_runs_from_top_to_bottom_as_printed(demo_run, monkeypatch):
    """make demo has run in the reader's folder; then each block in turn, in one Python session."""
    assert demo_run.returncode == 0, demo_run.stdout
    monkeypatch.chdir(demo_run.folder)
    session, seen = {}, []
    for kind, block in BLOCKS:
        if kind == "console":
            seen += run_console(block)
        else:
            run_python(block, session)
    assert seen.count("make") == 2
    assert "negindex" in seen


def run_console(block):
    """Run each `$` line and compare what it prints; make's targets are named, not run inside themselves."""
    for command, shown in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", block, re.MULTILINE):
        words = shlex.split(command, comments=True)
        yield words[0]
        if words[0] == "make":
            makefile = ROOT / "Makefile"
            assert not makefile.exists() or re.search(rf"^{words[1]}:", makefile.read_text(), re.MULTILINE)
            continue
        assert words[0] == "negindex"
        done = subprocess.run(
            [sys.executable, "-m", "negindex.tools", *words[1:]], capture_output=True, text=True, check=False
        )
        assert done.stdout == shown, f"{command}\n{done.stdout}{done.stderr}"


def run_python(block, session):
    test = doctest.DocTestParser().get_doctest(block, session, "README.md", "README.md", 0)
    said = []
    failed = doctest.DocTestRunner(verbose=False).run(test, out=said.append, clear_globs=False).failed
    session.update(test.globs)
    assert not failed, "".join(said)


# -- the help ----------------------------------------------------------------------------------


@diffusers_on_numpy_2
def test_the_examples_in_the_help_run(demo_run, tmp_path, monkeypatch):
    """From the folder that make demo leaves, with the one command that the help says comes before."""
    shutil.copytree(demo_run.folder / "demo", tmp_path / "demo")
    (tmp_path / "data").symlink_to(Path(negindex.data.__file__).parent)
    monkeypatch.chdir(tmp_path)
    shown = invoke("generate", "--help").output.replace("\\\n", " ")
    examples = re.findall(r"^ +negindex (.*)$|`negindex (.*?)`", shown, re.MULTILINE)
    assert len(examples) == 5
    for plain, quoted in examples:
        done = invoke(*shlex.split(plain or quoted))
        assert done.exit_code == 0, f"{plain or quoted}\n{done.output}"

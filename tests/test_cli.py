"""The command line: parse, call one library function, print; every outcome has its exit code."""

import json
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from negindex import Collection
from negindex.disk import writer_lock
from negindex.receipts import Receipt, pixels_sha256
from negindex.sampler.png import read_receipt
from negindex.tools.cli import main

EMPTY, REFUSED, PARTLY, NOT_THERE, NOT_ALLOWED, INTEGRITY = 0, 2, 3, 10, 12, 13


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def images(tmp_path):
    """Ten grey 8 × 8 PNGs, all different."""
    folder = tmp_path / "eights"
    folder.mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def made(images, tmp_path):
    """A collection of the ten."""
    assert run("build", tmp_path / "a.set", images, "--size", 8).exit_code == 0
    return tmp_path / "a.set"


def commands(group=main, path=()):
    """The path of every command; of a group, those of its commands."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def parse(words):
    """Raise when a command line does not parse, down to the command that it names."""
    command = main
    while isinstance(command, click.Group):
        command, *words = command.get_command(click.Context(command), words[0]), *words[1:]
    with suppress(click.exceptions.Exit):  # an option that answers by itself, as --help does
        command.make_context(command.name, words)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_has_help_with_a_runnable_example(path):
    said = run(*path, "--help")
    assert said.exit_code == 0
    shown = said.output.replace("\\\n", " ").splitlines()
    examples = [shlex.split(line)[1:] for line in shown if line.strip().startswith("negindex ")]
    assert any(words[: len(path)] == list(path) for words in examples), f"{' '.join(path)} shows no example"
    for words in examples:
        parse(words[: words.index(">")] if ">" in words else words)


def test_build_puts_every_image_in_and_says_so(images, tmp_path):
    done = run("build", tmp_path / "a.set", images, "--space", "pixels", "--size", 8)
    assert done.exit_code == 0, done.output
    assert "version 1, 10 rows in force (10 added, 0 already there, 0 refused)" in done.stdout
    collection = Collection.open(tmp_path / "a.set")
    assert collection.shape == (1, 8, 8)
    assert collection.source_keys() == [f"eights/{i}.png" for i in range(10)]


def test_build_again_changes_nothing(made, images):
    again = run("build", made, images, "--size", 8)
    assert again.exit_code == 0
    assert "version 1, 10 rows in force (0 added, 10 already there, 0 refused)" in again.stdout


def test_a_changed_file_is_refused_by_name_and_the_old_row_stays(made, images):
    Image.new("L", (8, 8), 7).save(images / "3.png")
    again = run("build", made, images, "--size", 8)
    assert again.exit_code == PARTLY
    assert "eights/3.png: in force with other pixels" in again.stderr
    assert "(0 added, 9 already there, 1 refused)" in again.stdout


def test_bad_files_are_named_and_stop_nothing(images, tmp_path):
    (images / "text.png").write_text("no image")
    whole = (images / "0.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) - 30])
    Image.new("RGB", (8, 8), (255, 0, 0)).save(images / "red.png")
    done = run("build", tmp_path / "a.set", images, "--size", 8, "--channels", 1)
    assert done.exit_code == PARTLY
    for name in ("eights/text.png", "eights/cut.png", "eights/red.png"):
        assert f"refused: {name}:" in done.stderr
    assert "10 rows in force (10 added, 0 already there, 3 refused)" in done.stdout


def test_one_coloured_image_makes_a_new_set_colour(images, tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 0)).save(images / "red.png")
    assert run("build", tmp_path / "a.set", images, "--size", 8).exit_code == 0
    assert Collection.open(tmp_path / "a.set").shape == (3, 8, 8)


def test_two_sources_that_give_one_key_are_refused_before_anything_is_made(images, tmp_path):
    twin = tmp_path / "elsewhere" / "eights"
    twin.mkdir(parents=True)
    Image.new("L", (8, 8)).save(twin / "0.png")
    done = run("build", tmp_path / "a.set", images, twin, "--size", 8)
    assert done.exit_code == REFUSED
    assert "'eights/0.png'" in done.stderr
    assert not (tmp_path / "a.set").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["build", "{tmp}/a.set", "{tmp}/nowhere", "--size", "8"], NOT_THERE, "nowhere holds no image"),
        (["build", "{tmp}/a.set", "{tmp}/none", "--size", "8"], NOT_THERE, "none holds no image"),
        (["build", "{tmp}/a.set", "{tmp}/none", "--size", "8y"], REFUSED, "'8y'"),
        (["build", "{tmp}/a.set"], REFUSED, "name at least one source"),
        (["status", "{tmp}/none"], NOT_THERE, "holds no collection"),
        (["add", "{tmp}/none", "{tmp}/none"], NOT_THERE, "holds no collection"),
        (["withdraw", "{tmp}/none", "k", "--reason", "r"], NOT_THERE, "holds no collection"),
        (["withdraw", "{tmp}/none", "k"], REFUSED, "--reason"),
        (["generate", "{tmp}/none", "--unguarded", "--out", "{tmp}/o"], NOT_THERE, "holds no pipeline"),
        (["generate", "{tmp}/none", "--out", "{tmp}/o"], REFUSED, "--negatives, or --unguarded"),
        (["frobnicate"], REFUSED, "No such command"),
    ],
)
def test_what_is_not_there_or_not_understood_leaves_with_its_code(words, code, said, tmp_path):
    (tmp_path / "none").mkdir()
    done = run(*(word.format(tmp=tmp_path) for word in words))
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert not (tmp_path / "a.set").exists()


def test_another_size_for_a_set_that_exists_is_refused(made, images):
    done = run("build", made, images, "--size", 16)
    assert done.exit_code == REFUSED
    assert "(1, 8, 8)" in done.stderr
    assert "(1, 16, 16)" in done.stderr


def test_withdraw_by_key_by_label_and_dry(made, images, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 40 * i).save(more / f"{i}.png")
    assert run("add", made, more, "--label", "claim-7").exit_code == 0
    dry = run("withdraw", made, "--label", "claim-7", "--reason", "r", "--dry-run")
    assert dry.stdout.split() == ["more/0.png", "more/1.png", "more/2.png"]
    assert len(Collection.open(made)) == 13
    assert (
        "version 3, 10 rows in force (3 withdrawn)"
        in run("withdraw", made, "--label", "claim-7", "--reason", "r").stdout
    )
    assert run("withdraw", made, "--label", "claim-7", "--reason", "r").exit_code == NOT_THERE
    assert "version 4, 9 rows" in run("withdraw", made, "eights/4.png", "--reason", "counter-notice").stdout
    assert run("withdraw", made, "eights/4.png", "eights/5.png", "--reason", "r").exit_code == NOT_THERE
    collection = Collection.open(made)
    assert "eights/5.png" in collection.source_keys(), "a refused call withdraws nothing"
    assert collection.versions()[-1].reason == "counter-notice"


def test_status_for_people_and_for_machines(made):
    said = json.loads(run("status", made, "--json").stdout)
    assert (said["version"], said["rows_in_force"], said["rows_withdrawn"]) == (1, 10, 0)
    assert said["shape"] == [1, 8, 8]
    assert said["bytes"] == sum(p.stat().st_size for p in (made / "segments").iterdir())
    assert "rows in force" in run("status", made).stdout
    assert len(run("status", made, "--keys").stdout.splitlines()) == 10


def test_an_interrupt_has_its_code(made, images, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Collection, "open", interrupted)
    done = run("build", made, images, "--size", 8)
    assert done.exit_code == 130
    assert "interrupted" in done.stderr


def test_an_emptied_set_is_a_named_state(made):
    assert run("withdraw", made, *Collection.open(made).source_keys(), "--reason", "all").exit_code == 0
    said = run("status", made)
    assert said.exit_code == EMPTY
    assert "the set is empty" in said.stderr


def test_a_newer_format_and_a_locked_set_have_their_codes(made, images, monkeypatch):
    Image.new("L", (8, 8), 9).save(images / "new.png")  # where nothing is new, nothing is written
    with writer_lock(made):
        monkeypatch.setattr("negindex.store.writer_lock", lambda path, wait=0: writer_lock(path, wait=0))
        assert run("build", made, images, "--size", 8).exit_code == 11
    with sqlite3.connect(made / "catalogue.sqlite") as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    done = run("status", made)
    assert done.exit_code == INTEGRITY
    assert "format 999" in done.stderr


def test_the_benchmark_of_the_guard_names_its_machine_sizes_and_parts():
    words = ["guard", "--batch", "1", "--shape", "4,16,16", "--rows", "3", "--steps", "2"]
    command = [sys.executable, "-m", "negindex.tools", "bench", *words]  # apart, since it sets torch's threads
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"measured on .*torch .*diffusers .*\nbatch 1 × 4,16,16, 3 negatives and 3 reference rows", done.stdout
    )
    assert len(re.findall(r"^  \D+ +-?\d+\.\d{3}$", done.stdout, re.MULTILINE)) == 4
    assert run("bench", "guard", "--shape", "4,64").exit_code == REFUSED


class TestGenerate:
    """The shipped pipeline, from its folder."""

    FOLDER = Path(__import__("negindex.data").data.__file__).parent / "digits-unet"

    def test_images_and_bound_receipts_are_written(self, made, images, tmp_path):
        reference = tmp_path / "benign"
        reference.mkdir()
        for i in range(5):
            Image.new("L", (8, 8), 50 * i).save(reference / f"{i}.png")
        run("build", tmp_path / "b.set", reference, "--size", 8)
        words = ["--negatives", made, "--reference", tmp_path / "b.set", "--steps", 3, "--count", 3, "--batch", 2]
        done = run("generate", self.FOLDER, *words, "--out", tmp_path / "out")
        assert done.exit_code == 0, done.output
        for i in range(3):
            with Image.open(tmp_path / "out" / f"{i:05d}.png") as image:
                assert image.size == (8, 8)
                receipt = json.loads((tmp_path / "out" / f"{i:05d}.json").read_text())
                assert receipt["image_sha256"] == pixels_sha256(image)
            col = Collection.open(made)
            stated = {"set_id": col.set_id, "version": 1, "rows": 10, "checkpoint": asdict(col.checkpoint(1))}
            assert receipt["sets"] == [stated]
            assert len(receipt["steps"]) == 3
            assert receipt["steps"][0]["heaviest"][0]["source_key"].startswith("eights/")

    def test_an_image_does_not_depend_on_its_batch(self, tmp_path):
        words = ["generate", self.FOLDER, "--unguarded", "--class-label", 8, "--steps", 3, "--count", 3]
        run(*words, "--batch", 1, "--out", tmp_path / "one")
        run(*words, "--batch", 3, "--out", tmp_path / "three")
        for i in range(3):
            a, b = (np.asarray(Image.open(tmp_path / name / f"{i:05d}.png"), int) for name in ("one", "three"))
            assert abs(a - b).max() <= 1

    def test_a_guard_without_reference_or_gate_names_the_remedies(self, made, tmp_path):
        done = run("generate", self.FOLDER, "--negatives", made, "--out", tmp_path / "out")
        assert done.exit_code == REFUSED
        for remedy in ("reference", "calibrate", "gate"):
            assert remedy in done.stderr
        assert not (tmp_path / "out").exists()

    def test_the_receipt_inside_an_image_is_the_one_beside_it(self, made, tmp_path):
        (tmp_path / "other").mkdir()
        Image.new("L", (8, 8)).save(tmp_path / "other" / "0.png")
        run("build", tmp_path / "b.set", tmp_path / "other", "--size", 8)
        words = ["--negatives", made, "--reference", tmp_path / "b.set", "--steps", 2, "--out", tmp_path / "out"]
        assert run("generate", self.FOLDER, *words).exit_code == 0
        receipt = read_receipt(tmp_path / "out" / "00000.png")
        beside = Receipt.from_json((tmp_path / "out" / "00000.json").read_text())
        assert receipt == beside.without_names() != beside
        with Image.open(tmp_path / "out" / "00000.png") as image:
            assert receipt.matches(image)

    def test_what_a_pipeline_does_not_take_is_a_usage_error(self, tmp_path):
        done = run("generate", self.FOLDER, "--unguarded", "--prompt", "a cat", "--out", tmp_path / "out")
        assert done.exit_code == REFUSED
        assert "prompt" in done.stderr

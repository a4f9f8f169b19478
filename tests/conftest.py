"""What several test modules share."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from small_sets import SHAPE, rows

import negindex.data
from negindex import Collection

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


class DemoRun(NamedTuple):
    """The demo as a reader runs it: where, and what it printed."""

    folder: Path  # holds demo/ and data/
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    (folder / "data").symlink_to(Path(negindex.data.__file__).parent)
    words = [sys.executable, "-m", "negindex.tools", "demo", "--out", "demo"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    return DemoRun(folder, done.returncode, done.stdout, done.stderr)


@pytest.fixture
def col(tmp_path):
    return Collection.create(tmp_path / "set", SHAPE, "pixels")


@pytest.fixture
def three(col):
    """Rows a, b and c in force at version 1."""
    col.add(rows(3), ["a", "b", "c"])
    return col


@pytest.fixture(scope="module")
def photos():
    """The two photographs that come with scikit-learn, 320 × 214."""
    return [Image.fromarray(image).resize((320, 214)) for image in load_sample_images().images]

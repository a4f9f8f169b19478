"""What several test modules share."""

import os

import pytest
import torch
from mixtures import learn_from_few
from PIL import Image
from sklearn.datasets import load_sample_images
from small_sets import SHAPE, rows

from negindex import Collection

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


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


@pytest.fixture
def few_probes(monkeypatch):
    """Learn from fewer queries what closed forms are worth, and leave torch's threads as they were."""
    learn_from_few(monkeypatch, (0.5, 20.0))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)

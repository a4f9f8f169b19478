"""What several test modules share."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import negindex.data

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

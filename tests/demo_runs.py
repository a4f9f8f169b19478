"""The demo as a reader runs it."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import negindex.data

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

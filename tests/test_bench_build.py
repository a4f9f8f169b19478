"""The benchmark of a build names its machine, its sizes, and every part."""

import re
import subprocess
import sys

import pytest


@pytest.mark.long  # eight processes, each of which imports torch and diffusers
def test_the_benchmark_of_a_build_prints_speeds_shares_and_memory():
    words = ["--rows", "500", "--shape", "2,4,4", "--images", "2", "--size", "32", "--small", "--runs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "negindex.tools", "bench", "build", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"measured on .*\n500 rows of 2,4,4 in float16", done.stdout)
    assert re.search(r"the set goes at \d+\.\d\d of the copy's speed\n2 JPEGs of 32 × 32 by a VAE:", done.stdout)
    assert re.search(r"the rest is \d+\.\d% of that, and its memory [+-]\d+\.\d%", done.stdout)

"""Processes to be killed, each forked from a server that has imported all that they need.

One server serves every test module of a run, so its list is here: with another list in each, the last one counts.
"""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")  # imports once, forks before any OpenMP
PROCESSES.set_forkserver_preload(
    [
        "pytest",
        "hypothesis",
        "fsspec.implementations.local",
        "negindex.collection",  # and torch; the package alone imports nothing
        "negindex.exact",
        "negindex.mixture",
        "negindex.testing",
        "negindex.sampler.ingest",
        "negindex.tools.build",
    ]
)

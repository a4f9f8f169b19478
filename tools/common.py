"""What every command shares: errors become exit codes, data goes to stdout, progress to stderr."""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from negindex.errors import NegindexError

P = ParamSpec("P")
R = TypeVar("R")

PARTLY = 3  # exit code: some inputs went in, others were refused by name
INTERRUPTED = 130


def errors_to_exit_codes(command: Callable[P, R]) -> Callable[P, R]:
    """Print a typed error as one line on stderr and leave with the exit code of its class."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except NegindexError as error:
            click.echo(f"negindex: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("negindex: interrupted; what was acknowledged stays, run the same command again", err=True)
            sys.exit(INTERRUPTED)

    return run


def quiet_diffusers() -> None:
    """Leave stderr to the command's own progress."""
    from diffusers.utils import logging

    logging.disable_progress_bar()


def machine() -> str:
    """What the times were measured on."""
    from importlib.metadata import version

    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    libraries = f"torch {torch.__version__}, diffusers {version('diffusers')}"
    return f"measured on {processor}, {torch.get_num_threads()} threads, {libraries}"

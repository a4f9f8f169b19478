"""Corpora as people have them: images as bytes, tars, and the command that takes them in."""

import io
import json
import tarfile

import numpy as np
from click.testing import CliRunner
from PIL import Image

from negindex.tools.cli import main


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def png(seed=0, size=(8, 8), mode="L", form="PNG", **options):
    """A random image's file."""
    shape = (size[1], size[0], *([3] if mode == "RGB" else []))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def tar(path, members, mode="w", **options):
    """An archive of (name, bytes) or of TarInfo."""
    with tarfile.open(path, mode, **options) as archive:
        for one in members:
            info, content = (one, b"") if isinstance(one, tarfile.TarInfo) else (tarfile.TarInfo(one[0]), one[1])
            info.size = len(content) or info.size
            archive.addfile(info, io.BytesIO(content) if content else None)
    return path


def ledger(path):
    """{key: outcome} and {key: entry} of a ledger."""
    entries = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    return {entry["key"]: entry["outcome"] for entry in entries}, {entry["key"]: entry for entry in entries}

"""Files of ready rows: .npy, .safetensors and HDF5, mapped into memory; nothing in them is ever run or unpickled."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from negindex.errors import Damaged, InvalidInput
from negindex.segment import plain_data

ARRAY_SUFFIXES = (".npy", ".safetensors", ".h5", ".hdf5")
NAMES = ("rows", "latents")  # of the array that is meant, where a file holds several
MAX_HEADER = 1 << 20  # bytes of JSON that describe a .safetensors file
_TYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": np.uint16}


def rows_in(path: Path) -> NDArray[np.generic]:
    """The floating-point array in a file, as a read-only map; bfloat16 is widened, and so is held in memory.

    Of several it is the one named rows or latents. An HDF5 file's must be contiguous, and inside the file.
    Raises InvalidInput for what holds no such array, and Damaged for what cannot be read.
    """
    kind = path.suffix.lower()
    try:
        found = {".npy": _npy, ".safetensors": _safetensors}.get(kind, _hdf5)(path)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, SyntaxError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise Damaged(f"{path} cannot be read as {kind} ({error}); save it again") from error
    if found.dtype.kind != "f":
        raise InvalidInput(f"{path} holds {found.dtype}, and rows are floating-point numbers; convert it")
    return found


def _npy(path: Path) -> NDArray[np.generic]:
    return npy.open_memmap(path, "r")


def _safetensors(path: Path) -> NDArray[np.generic]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER:
            raise ValueError(f"a header of {length:,} bytes, the limit is {MAX_HEADER:,}")
        said: dict[str, Any] = json.loads(file.read(length))
    said.pop("__metadata__", None)
    one = said[_meant(path, list(said))]
    dtype, shape, (start, end) = one["dtype"], tuple(map(int, one["shape"])), one["data_offsets"]
    if dtype not in _TYPES:
        raise InvalidInput(f"{path} holds {dtype}, and rows are floating-point numbers; convert it")
    size = prod(shape) * np.dtype(_TYPES[dtype]).itemsize
    if min(shape, default=0) < 0 or start < 0 or end - start != size or 8 + length + end > path.stat().st_size:
        raise ValueError(f"{dtype} of shape {shape} at {start} to {end} of {path.stat().st_size} bytes")
    values = np.memmap(path, _TYPES[dtype], "r", 8 + length + start, shape)
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values


def _hdf5(path: Path) -> NDArray[np.generic]:
    with h5py.File(path, "r") as h5:
        data = plain_data(path, h5, _meant(path, list(h5)))
        if not data.size:
            return np.zeros(data.shape, data.dtype)
        return np.memmap(path, data.dtype, "r", data.id.get_offset(), data.shape)


def _meant(path: Path, names: list[str]) -> str:
    """The array that is meant among those of a file."""
    for name in NAMES if len(names) != 1 else names:
        if name in names:
            return name
    held = ", ".join(map(repr, sorted(names)[:5])) or "nothing"
    raise InvalidInput(f"{path} holds {held}; name the array of rows 'rows', or save it alone")

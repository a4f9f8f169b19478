"""Arrays in one file, as every safetensors reader opens them: read through a memory map, and nothing is unpickled.

Eight bytes say how long the header is; the header is JSON and names each array's type, shape and place; their bytes
follow without gaps. What else is to be said lies in the header too, as JSON of this package's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.errors import Damaged

_TYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "I64": np.int64}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_MOST = 1 << 20  # bytes of a header
_SAID = "negindex"


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    """Write arrays of float64, float32 and int64, and what is said of them, which is whatever JSON holds."""
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so that each lies at its own multiple
    header: dict[str, Any] = {"__metadata__": {_SAID: json.dumps(said, sort_keys=True)}}
    end = 0
    for name in order:
        start, end = end, end + arrays[name].nbytes
        shape = list(arrays[name].shape)
        header[name] = {"dtype": _NAMES[arrays[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(arrays[name].reshape(-1).view(np.uint8).data)


def read_tensors(file: BinaryIO, path: Path, wanted: Mapping[str, tuple[str, int]]) -> tuple[dict[str, Tensor], Any]:
    """The arrays of a file, mapped, and what is said of them; wanted: {name: (type, dimensions)}, these and no others.

    The map holds the file open, with the locks that were taken through ``file``, for as long as an array is used.
    Writing to an array changes memory alone. Raises Damaged for anything but what ``write_tensors`` writes.
    """
    try:
        file.seek(0)
        header, start = _header(file)
        said = json.loads(header.pop("__metadata__")[_SAID])
        whole: NDArray[np.uint8] = np.memmap(file, np.uint8, "c")
        return {name: _array(whole[start:], name, header, wanted[name]) for name in _checked(header, wanted)}, said
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path} is no file of arrays as negindex writes them ({error}); restore it") from error


def _header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= _MOST:
        raise ValueError(f"a header of {length} bytes")
    return dict(json.loads(file.read(length).decode())), 8 + length


def _checked(header: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    if header.keys() != wanted.keys():
        raise ValueError(f"arrays {sorted(header)}, not {sorted(wanted)}")
    return wanted


def _array(data: NDArray[np.uint8], name: str, header: Mapping[str, Any], wanted: tuple[str, int]) -> Tensor:
    """One array, whose bytes must lie where all of them together leave no gap."""
    kind, dimensions = wanted
    shape, (start, end) = header[name]["shape"], header[name]["data_offsets"]
    numbers = [*shape, start, end]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{name} of shape {shape!r} at {start!r} to {end!r}")
    found = (header[name]["dtype"], len(shape), end - start)
    if found != (kind, dimensions, prod(shape) * np.dtype(_TYPES[kind]).itemsize):
        raise ValueError(f"{name} of type, dimensions and bytes {found}")
    ends = {0, *(part["data_offsets"][1] for part in header.values())}
    if start not in ends or max(ends) != len(data):
        raise ValueError(f"{name} at {start}, and {len(data)} bytes")
    return torch.from_numpy(data[start:end].view(_TYPES[kind]).reshape(shape))

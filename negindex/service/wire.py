"""Arrays as the body of a request or an answer: the safetensors format, read strictly, since anybody may write one.

Eight bytes say how long the header is; the header is JSON and names each array's type, shape and place; their bytes
follow without gaps. What else is to be said lies in the header's metadata, as JSON under "negindex".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from negindex.errors import InvalidInput

MEDIA_TYPE = "application/x-safetensors"
HEADER_BYTES = 1 << 16
DIMENSIONS = 12  # more than any row has
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
}
_NAMES = {kind: name for name, kind in TYPES.items()}
_SAID = "negindex"
FLOATS = ("F64", "F32", "F16", "BF16")


class Array(NamedTuple):
    """What an array of a body has to be."""

    kinds: tuple[str, ...]  # types that it may have
    dimensions: int | None = None  # None for any number
    optional: bool = False


Arrays = Mapping[str, Array]


def packed(arrays: Mapping[str, Tensor], said: Mapping[str, Any]) -> bytes:
    """One body of arrays and what is said of them, which is whatever JSON holds."""
    given = {name: array.detach().cpu().contiguous() for name, array in arrays.items()}
    order = sorted(given, key=lambda name: (-given[name].element_size(), name))  # each at a multiple of its own size
    header: dict[str, Any] = {"__metadata__": {_SAID: json.dumps(said, sort_keys=True)}}
    end = 0
    for name in order:
        start, end = end, end + given[name].nbytes
        shape = list(given[name].shape)
        header[name] = {"dtype": _NAMES[given[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    parts = [_bytes(given[name]) for name in order if given[name].numel()]
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _bytes(array: Tensor) -> memoryview:
    flat = array.reshape(-1)
    if flat.stride(0) != 1:  # of a single number
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def unpacked(body: bytearray, wanted: Arrays) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays of a body, and what is said of them; the arrays share the body's memory.

    wanted: what has to be there, or may be, and nothing else. Raises InvalidInput for anything but a whole body of
    just that: nothing is allocated for what a header claims, and nothing is unpickled or unpacked.
    """
    try:
        length = int.from_bytes(body[:8], "little")
        if not 0 < length <= min(HEADER_BYTES, len(body) - 8):
            raise ValueError(f"a header of {length} bytes in a body of {len(body)}, at most {HEADER_BYTES}")
        header = _json(bytes(body[8 : 8 + length]))
        said = _json(header.pop("__metadata__")[_SAID])
        if not isinstance(said, dict):
            raise TypeError("what is said is no object")
        _check_names(header, wanted)
        _check_places(header, len(body) - 8 - length)
        return {name: _array(body, 8 + length, name, header[name], wanted[name]) for name in header}, said
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"the body cannot be read as arrays ({error}); send {MEDIA_TYPE} as documented") from error


def _json(text: bytes | str) -> Any:
    """What JSON says, each name once and numbers finite."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name given twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} where a number is needed")


def _check_names(header: Mapping[str, Any], wanted: Arrays) -> None:
    needed = {name for name, array in wanted.items() if not array.optional}
    if not needed <= header.keys() <= wanted.keys():
        raise ValueError(f"arrays {sorted(header)[:20]}, and {sorted(needed)} are needed of {sorted(wanted)}")


def _check_places(header: Mapping[str, Any], room: int) -> None:
    """Whether the arrays fill the body one after the other."""
    end = 0
    for start, stop in sorted(tuple(part["data_offsets"]) for part in header.values()):
        if type(start) is not int or type(stop) is not int or start != end or stop < start:
            raise ValueError(f"arrays at {start!r} to {stop!r} after {end}")
        end = stop
    if end != room:
        raise ValueError(f"arrays of {end} bytes in {room}")


def _array(body: bytearray, first: int, name: str, part: Mapping[str, Any], wanted: Array) -> Tensor:
    if part.keys() != {"dtype", "shape", "data_offsets"} or part["dtype"] not in wanted.kinds:
        raise ValueError(f"{name} is of type {part.get('dtype')!r}, not {' or '.join(wanted.kinds)}")
    kind, shape, (start, stop) = TYPES[part["dtype"]], part["shape"], part["data_offsets"]
    if not isinstance(shape, list) or not all(type(number) is int and number >= 0 for number in shape):
        raise ValueError(f"{name} of shape {shape!r}")
    if len(shape) != (len(shape) if wanted.dimensions is None else wanted.dimensions) or len(shape) > DIMENSIONS:
        raise ValueError(f"{name} of {len(shape)} dimensions")
    count = prod(shape)
    if count * kind.itemsize != stop - start:
        raise ValueError(f"{name} of shape {shape} in {stop - start} bytes")
    if not count:
        return torch.empty(shape, dtype=kind)
    if (first + start) % kind.itemsize:  # another writer's header need not end at a multiple of eight
        body, first, start = body[first + start : first + stop], 0, 0
    return torch.frombuffer(body, dtype=kind, count=count, offset=first + start).reshape(shape)

"""Arrays as the body of a request or an answer: the safetensors format, read strictly, since anybody may write one.

Eight bytes say how long the header is; the header is JSON and names each array's type, shape and place; their bytes
follow without gaps. What else is to be said lies in the header's metadata, as JSON under "negindex".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from negindex.errors import InvalidInput

MEDIA_TYPE = "application/x-safetensors"
HEADER_BYTES = 1 << 16
DIMENSIONS = 12  # more than any row has
_NUMBERS = 1 << 60  # of an array, were none of its dimensions 0: beyond it none can be made
KEPT = 64  # headers that are remembered
_SHORT = 1 << 12  # bytes of a header that is
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
    layout = tuple((name, _NAMES[array.dtype], tuple(array.shape)) for name, array in arrays.items())
    head, order = _written(layout, _SAYING.encode(said))
    return b"".join([head, *(_numbers(arrays[name]) for name in order)])


@lru_cache(maxsize=KEPT)
def _written(layout: tuple[tuple[str, str, tuple[int, ...]], ...], said: str) -> tuple[bytes, list[str]]:
    """The header of arrays of these names, types and shapes, and the order that they follow in."""
    order = sorted(layout, key=lambda one: (-TYPES[one[1]].itemsize, one[0]))  # each at a multiple of its own size
    header: dict[str, Any] = {"__metadata__": {_SAID: said}}
    end = 0
    for name, kind, shape in order:
        start, end = end, end + prod(shape) * TYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [name for name, _, _ in order]


def _numbers(array: Tensor) -> memoryview:
    """The array's bytes, one after the other; copied only where they do not lie so."""
    bits = array.detach().view(torch.int16) if array.dtype is torch.bfloat16 else array
    return np.ascontiguousarray(bits.numpy(force=True)).data


def unpacked(body: bytearray, wanted: Arrays) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays of a body, and what is said of them; the arrays share the body's memory.

    wanted: what has to be there, or may be, and nothing else. Raises InvalidInput for anything but a whole body of
    just that: nothing is allocated for what a header claims, and nothing is unpickled or unpacked.
    """
    try:
        length = int.from_bytes(body[:8], "little")
        if not 0 < length <= min(HEADER_BYTES, len(body) - 8):
            raise ValueError(f"a header of {length} bytes in a body of {len(body)}, at most {HEADER_BYTES}")
        text = bytes(body[8 : 8 + length])
        places, end, said = _read_again(text) if length <= _SHORT else _read(text)
        _check_names(places, wanted)
        if end != len(body) - 8 - length:
            raise ValueError(f"arrays of {end} bytes in {len(body) - 8 - length}")
        return {name: _array(body, 8 + length, name, place, wanted[name]) for name, place in places.items()}, {**said}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"the body cannot be read as arrays ({error}); send {MEDIA_TYPE} as documented") from error


class _Place(NamedTuple):
    """Where an array lies behind the header."""

    kind: str
    shape: tuple[int, ...]
    numbers: int  # in it
    start: int  # bytes


def _read(text: bytes) -> tuple[dict[str, _Place], int, dict[str, Any]]:
    """Where a header says that arrays lie, one after the other; their bytes; and what it says of them."""
    header = _STRICT.decode(text.decode())
    said = _STRICT.decode(header.pop("__metadata__")[_SAID])
    if not isinstance(said, dict):
        raise TypeError("what is said is no object")
    places, end = {name: _place(name, part) for name, part in header.items()}, 0
    for place in sorted(places.values(), key=lambda one: (one.start, one.numbers)):
        if place.start != end:
            raise ValueError(f"an array at {place.start} after {end}")
        end += place.numbers * TYPES[place.kind].itemsize
    return places, end, said


_read_again = lru_cache(maxsize=KEPT)(_read)  # from step to step a header stays as it is


def _place(name: str, part: Mapping[str, Any]) -> _Place:
    if part.keys() != {"dtype", "shape", "data_offsets"} or part["dtype"] not in TYPES:
        raise ValueError(f"{name} is of type {part.get('dtype')!r}, not {' or '.join(TYPES)}")
    kind, shape, (start, stop) = part["dtype"], part["shape"], part["data_offsets"]
    if not isinstance(shape, list) or not all(type(number) is int and number >= 0 for number in shape):
        raise ValueError(f"{name} of shape {shape!r}")
    if len(shape) > DIMENSIONS or prod(number or 1 for number in shape) > _NUMBERS:
        raise ValueError(f"{name} of shape {shape!r}")
    count = prod(shape)
    if type(start) is not int or type(stop) is not int or count * TYPES[kind].itemsize != stop - start:
        raise ValueError(f"{name} of shape {shape} at {start!r} to {stop!r}")
    return _Place(kind, tuple(shape), count, start)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name given twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} where a number is needed")


_SAYING = json.JSONEncoder(sort_keys=True)
_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)  # each name once, numbers finite


def _check_names(found: Mapping[str, _Place], wanted: Arrays) -> None:
    needed = {name for name, array in wanted.items() if not array.optional}
    if not needed <= found.keys() <= wanted.keys():
        raise ValueError(f"arrays {sorted(found)[:20]}, and {sorted(needed)} are needed of {sorted(wanted)}")


def _array(body: bytearray, first: int, name: str, place: _Place, wanted: Array) -> Tensor:
    if place.kind not in wanted.kinds:
        raise ValueError(f"{name} is of type {place.kind}, not {' or '.join(wanted.kinds)}")
    if wanted.dimensions is not None and len(place.shape) != wanted.dimensions:
        raise ValueError(f"{name} of {len(place.shape)} dimensions")
    kind, start = TYPES[place.kind], first + place.start
    if not place.numbers:
        return torch.empty(place.shape, dtype=kind)
    if start % kind.itemsize:  # another writer's header need not end at a multiple of eight
        body, start = body[start : start + place.numbers * kind.itemsize], 0
    flat = torch.frombuffer(body, dtype=kind, count=place.numbers, offset=start)
    return flat if len(place.shape) == 1 else flat.reshape(place.shape)

"""Bodies of arrays as a route's document states them: right ones, and such as are wrong in one place or in several."""

import math

import torch
from hypothesis import strategies as st
from small_sets import SHAPE

from negindex import Kernel
from negindex.service.bodies import digests_of, name_of
from negindex.service.wire import MEDIA_TYPE, TYPES, packed

SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 5e-324, float(1 << 62))
ODD_WORDS = (
    None,
    True,
    -1,
    0,
    1,
    3,
    1 << 53,
    1 << 70,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "\0",
    "\ud800",
    "0" * 32,
    "0" * 64,
    [],
    {},
)


def content_of(operation):
    """What the document says of the body that an operation takes; None where it takes none."""
    said = operation.get("requestBody")
    return said and said["content"][MEDIA_TYPE]


@st.composite
def bodies(draw, content):
    """A body: half of the time right in all its parts."""
    right, batch = draw(st.booleans()), draw(st.integers(0, 3))
    arrays = {}
    for name, said in content["x-arrays"].items():
        if not said["optional"] or (draw(st.integers(0, 9)) == 0):
            arrays[name] = draw(_array(name, said, batch, right))
    said = draw(_said(content["x-said"], right))
    if right:
        return packed(arrays, said | _names(arrays, content["x-said"]["properties"]))
    arrays = draw(_lacking(arrays))
    body = bytearray(packed(arrays, said))
    if draw(st.integers(0, 3)) == 0:
        body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    if draw(st.integers(0, 7)) == 0:
        del body[draw(st.integers(0, len(body))) :]
    return bytes(body)


def _names(arrays, known):
    """What arrays are said to be, where they are named."""
    found = {}
    if "kernel" in known and arrays.keys() & {"temperatures", "projection"}:
        temperatures = arrays["temperatures"].tolist() if "temperatures" in arrays else ()
        found["kernel"] = Kernel(temperatures, arrays.get("projection")).fingerprint
    if "without" in known and "digests" in arrays:
        found["without"] = name_of(digests_of(arrays["digests"]))
    return found


@st.composite
def _array(draw, name, said, batch, right):
    kind = draw(st.sampled_from(said["types"] if right else [*said["types"], *TYPES]))
    shape = _shape(name, said, batch)
    if not right and draw(st.booleans()):
        shape = draw(st.lists(st.integers(0, 4), max_size=13))
        shape = shape if math.prod(shape) <= 1 << 16 else shape[:4]
    values = torch.ones(shape, dtype=torch.float64)
    if not right and values.numel() and draw(st.booleans()):
        flat = values.reshape(-1)
        flat[draw(st.integers(0, len(flat) - 1))] = draw(st.sampled_from(SPECIAL))
    if TYPES[kind].is_floating_point:
        return values.to(TYPES[kind])
    return values.nan_to_num(0, 0, 0).clamp(0, 255).to(TYPES[kind])


def _shape(name, said, batch):
    """A shape that fits, by what the dimensions of this array are about."""
    if "dimensions" not in said:
        return [batch, *SHAPE]
    two = {"digests": [batch, 32], "temperatures": [2, 2], "projection": [2, math.prod(SHAPE)]}
    return two.get(name, [batch] * said["dimensions"])


@st.composite
def _said(draw, schema, right):
    told = {}
    for name, part in schema["properties"].items():
        if draw(st.integers(0, 2)) == 0:
            told[name] = draw(_word(part, right))
    if not right and draw(st.integers(0, 9)) == 0:
        told[draw(st.text(max_size=5) | st.just("\ud800"))] = draw(st.sampled_from(ODD_WORDS))
    return told


def _word(part, right):
    """A value of what is said: one that means something to this service, or any."""
    kinds = {one.get("type"): one for one in part.get("anyOf", [part])}
    choices = [part["enum"]] if "enum" in part else []
    choices += [[1, 2]] if "integer" in kinds else []
    choices += [[1e-3, 0.5]] if "number" in kinds else []
    choices += [[None]] if "null" in kinds else []
    if "string" in kinds and "enum" not in part:
        choices.append([""] if "pattern" in kinds["string"] else ["x"])
    known = st.sampled_from([one for some in choices for one in some])
    return known if right else known | st.sampled_from(ODD_WORDS)


@st.composite
def _lacking(draw, arrays):
    if arrays and draw(st.integers(0, 5)) == 0:
        gone = draw(st.sampled_from(sorted(arrays)))
        return {name: array for name, array in arrays.items() if name != gone}
    return arrays

"""What goes to and fro: which arrays each question and each answer has, for the service and for its clients."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from negindex.errors import InvalidInput, OutOfRange
from negindex.kernel import Kernel
from negindex.service.wire import FLOATS, Array, Arrays

NUMBERS = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}  # of means and rows
DIGEST_BYTES = 32
EMPTY: Arrays = {}
_ONES = Array(("F64",), 1)
_VIEW: Arrays = {"digests": Array(("U8",), 2, optional=True)}
_KERNEL: Arrays = {"temperatures": Array(("F64",), 2, optional=True), "projection": Array(("F64",), 2, optional=True)}
KERNEL = _KERNEL
POSTERIOR_ASKED: Arrays = {"x_t": Array(FLOATS), "alpha": _ONES, "sigma": _ONES, **_KERNEL, **_VIEW}
POSTERIOR_TOLD: Arrays = {
    **dict.fromkeys(("log_norm", "log_tail", "log_unread", "error"), _ONES),
    "mean": Array(FLOATS),
    "ids": Array(("I64",), 2),
    "log_weight": Array(("F64",), 2),
}
_MAYBE_ONES = Array(("F64",), 1, optional=True)
NEAR_ASKED: Arrays = {"x": Array(FLOATS), "radius": _ONES, "noise": _MAYBE_ONES, "image_radius": _MAYBE_ONES, **_VIEW}
NEAR_TOLD: Arrays = {"ids": Array(("I64",), 2), "distances": Array(("F64",), 2), "rows": Array(FLOATS)}
MOMENTS_ASKED: Arrays = _VIEW
MOMENTS_TOLD: Arrays = {"mean": _ONES}
IDS: Arrays = {"ids": Array(("I64",), 1)}
ROWS_TOLD: Arrays = {"rows": Array(FLOATS)}
DIGESTS: Arrays = {"digests": Array(("U8",), 2)}
HELD: Arrays = {"held": Array(("U8",), 1)}
DIGESTS_TOLD: Arrays = {**IDS, **DIGESTS}


def kernel_arrays(kernel: Kernel) -> dict[str, Tensor]:
    """A kernel, whole; none for the literal one."""
    arrays = {}
    if kernel.temperatures:
        arrays["temperatures"] = torch.tensor(kernel.temperatures, dtype=torch.float64)
    if kernel.projection is not None:
        arrays["projection"] = kernel.projection
    return arrays


def kernel_of(arrays: dict[str, Tensor], fingerprint: str) -> Kernel:
    """The kernel that was sent whole; raises InvalidInput unless it is the one that was named."""
    temperatures = arrays.get("temperatures")
    if temperatures is not None and temperatures.shape[1] != 2:
        raise InvalidInput(f"temperatures of shape {tuple(temperatures.shape)}; give (noise level, tau) pairs")
    kernel = Kernel([] if temperatures is None else temperatures.tolist(), arrays.get("projection"))
    if kernel.fingerprint != fingerprint:
        raise InvalidInput(f"kernel {kernel.fingerprint} was sent under the name {fingerprint}; send the one you name")
    return kernel


def digests_array(digests: Iterable[str]) -> Tensor:
    """Digests (n hex strings) as (n, 32) bytes; raises InvalidInput for anything else."""
    given = list(digests)
    try:
        raw = bytearray(b"".join(map(bytes.fromhex, given)))
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"a digest that is no hex ({error}); give sha256 as 64 hex digits") from error
    if len(raw) != DIGEST_BYTES * len(given):
        raise InvalidInput(f"{len(given)} digests of {len(raw)} bytes; give sha256 as 64 hex digits")
    if not raw:
        return torch.empty(0, DIGEST_BYTES, dtype=torch.uint8)
    return torch.frombuffer(raw, dtype=torch.uint8).reshape(-1, DIGEST_BYTES)


def digests_of(array: Tensor) -> list[str]:
    """What ``digests_array`` was made of."""
    if array.shape[1] != DIGEST_BYTES:
        raise InvalidInput(f"digests of {array.shape[1]} bytes; sha256 has {DIGEST_BYTES}")
    return [bytes(row).hex() for row in array.numpy()]


def name_of(digests: Collection[str]) -> str:
    """Names a view by what it leaves out; "" for nothing."""
    return hashlib.sha256("".join(sorted(set(digests))).encode()).hexdigest() if digests else ""


def in_numbers(values: Tensor, numbers: str) -> Tensor:
    """Float64 values as they are asked for; raises OutOfRange where those cannot hold them."""
    wire = values.to(NUMBERS[numbers])
    if wire is not values and wire.numel() and not bool(torch.isfinite(wire).all()):
        raise OutOfRange(
            f"values up to {float(values.abs().max()):g}, beyond {numbers}; ask for float64 (wire='float64')"
        )
    return wire


def origin_said(set_id: str, version: int, **more: Any) -> dict[str, Any]:
    """Which set answered, at which version; every answer says so."""
    return {"set_id": set_id, "version": version, **more}

"""What samplers ask: posteriors, near rows, and what a set is at a version."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from math import inf
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Path, Query, Request, Response
from torch import Tensor

from negindex.errors import OutOfRange, ShapeMismatch
from negindex.noise import NoiseLevel
from negindex.service import bodies
from negindex.service.answering import Nearby, Posterior, Question
from negindex.service.asked import Asked, AskedNear, AskedPosterior, AskedRows, S, read
from negindex.service.bodies import digests_array, digests_of, in_numbers, kernel_arrays, kernel_of, origin_said
from negindex.service.document import ArraysAnswer, Direct, Takes, needs
from negindex.service.grants import ROLES
from negindex.service.held import Held, View, Which, rows_by_id
from negindex.service.limits import read_body
from negindex.service.state import State, TheState, held_of
from negindex.service.wire import packed, unpacked
from negindex.stages import Stage

ASKERS = ("sampler", "curator", "approver", "admin")  # whoever may ask what is near
HANDLERS = ("curator", "approver", "admin")  # whoever may have the rows themselves
IDS = 4096  # rows of one request

router = APIRouter(prefix="/v1")
steps = APIRouter(prefix="/v1", route_class=Direct)  # what is asked at every step of every image
Name = Annotated[str, Path(description="The set's name.", max_length=100)]
Number = Annotated[int, Path(description="The version.", ge=0, le=1 << 53)]
Label = Annotated[str | None, Query(description="Only rows under this label.", max_length=500)]
POSTERIOR = Takes(bodies.POSTERIOR_ASKED, AskedPosterior)
NEAR = Takes(bodies.NEAR_ASKED, AskedNear)
MOMENTS = Takes(bodies.MOMENTS_ASKED, Asked)
DIGESTS = Takes(bodies.DIGESTS, Asked)
ROWS = Takes(bodies.IDS, AskedRows)
SOURCE_KEYS = Takes(bodies.IDS, Asked)


# -- what a set is -------------------------------------------------------------------------


@router.get("/sets", **needs(*ROLES))
async def sets(request: Request, state: TheState) -> dict[str, list[str]]:
    """The sets that the key is for."""
    names = await asyncio.to_thread(state.sets.names)
    return {"sets": [name for name in names if request.state.caller.may(ROLES, name)]}


@router.get("/sets/{name}", **needs(*ROLES))
async def newest(request: Request, state: TheState, name: Name, label: Label = None) -> dict[str, Any]:
    """The set at its newest version: what a sampler pins."""
    held = await held_of(request, name)
    return await asyncio.to_thread(_about, state, held, Which(None, label))


@router.get("/sets/{name}/health", **needs(*ROLES))
async def health(request: Request, name: Name) -> dict[str, Any]:
    """Whether the set can be asked, and what waits to be done."""
    held = await held_of(request, name)
    return await asyncio.to_thread(_health, held)


@router.get("/sets/{name}/versions/{version}", **needs(*ROLES))
async def version(
    request: Request, state: TheState, name: Name, version: Number, label: Label = None
) -> dict[str, Any]:
    """The set at one version; 404 where there is none, 410 where its rows were erased since."""
    held = await held_of(request, name)
    return await asyncio.to_thread(_about, state, held, Which(version, label))


@router.get("/sets/{name}/versions/{version}/kernel", **needs(*ASKERS, gives=bodies.KERNEL))
async def kernel(request: Request, name: Name, version: Number) -> Response:
    """The kernel that weighs where nobody names one."""
    held = await held_of(request, name)
    return _arrays(await asyncio.to_thread(_kernel, held, version))


@router.get("/sets/{name}/versions/{version}/digests", **needs(*ASKERS, gives=bodies.DIGESTS_TOLD))
async def digests(request: Request, name: Name, version: Number, label: Label = None) -> Response:
    """Ids of the rows in force, and the sha256 of each one's stored bytes."""
    held = await held_of(request, name)
    return _arrays(await asyncio.to_thread(_digests, held, Which(version, label)))


# -- what is asked -------------------------------------------------------------------------


@steps.post("/sets/{name}/posterior", **needs(*ASKERS, takes=POSTERIOR, gives=bodies.POSTERIOR_TOLD))
async def posterior(request: Request, state: TheState, name: Name) -> Response:
    """What the set says of noisy samples, at the version that the question names."""
    arrays, asked = await _taken(request, state, POSTERIOR)
    x_t, level = arrays["x_t"], NoiseLevel(arrays["alpha"], arrays["sigma"])
    sent = None
    if asked.kernel and ("projection" in arrays or "temperatures" in arrays):
        sent = kernel_of(arrays, asked.kernel)
    samples = _samples(x_t, state)
    question = Posterior(
        _which(asked), _left_out(arrays), x_t, level.expand(samples), asked.kernel, sent, asked.k, asked.error,
        asked.names, asked.numbers,
    )  # fmt: skip
    return await _answered(request, state, name, question, samples)


@steps.post("/sets/{name}/near", **needs(*ASKERS, takes=NEAR, gives=bodies.NEAR_TOLD))
async def near(request: Request, state: TheState, name: Name) -> Response:
    """The rows nearest to samples; an infinite radius is none."""
    arrays, asked = await _taken(request, state, NEAR)
    x, radius = arrays["x"], arrays["radius"]
    noise, samples = arrays.get("noise", torch.zeros_like(radius)), _samples(x, state)
    image_radius = arrays.get("image_radius", torch.full_like(radius, inf))
    for what, each in (("radius", radius), ("noise", noise), ("image_radius", image_radius)):
        if len(each) != samples:
            raise ShapeMismatch(f"{what} of shape {tuple(each.shape)} for {samples} samples; give one each")
    if asked.k is None and samples and bool(radius.isinf().any()):
        raise OutOfRange("near without a limit; give radius, or k, or both")
    question = Nearby(_which(asked), _left_out(arrays), x, radius, noise, image_radius, asked.k, asked.numbers)
    return await _answered(request, state, name, question, samples)


@router.post("/sets/{name}/moments", **needs(*ASKERS, takes=MOMENTS, gives=bodies.MOMENTS_TOLD))
async def moments(request: Request, state: TheState, name: Name) -> Response:
    """Count, mean and scatter of the rows."""
    arrays, asked = await _taken(request, state, MOMENTS)
    held = await held_of(request, name)
    return _arrays(await asyncio.to_thread(_moments, held, _which(asked), _left_out(arrays)))


@router.post("/sets/{name}/holds", **needs(*ASKERS, takes=DIGESTS, gives=bodies.HELD))
async def holds(request: Request, state: TheState, name: Name) -> Response:
    """Of each digest, whether a row in force has it."""
    arrays, asked = await _taken(request, state, DIGESTS)
    held = await held_of(request, name)
    return _arrays(await asyncio.to_thread(_holds, held, _which(asked), digests_of(arrays["digests"])))


@router.post("/sets/{name}/rows", **needs(*HANDLERS, takes=ROWS, gives=bodies.ROWS_TOLD))
async def rows(request: Request, state: TheState, name: Name) -> Response:
    """Rows in force, by their ids: the content itself."""
    arrays, asked = await _taken(request, state, ROWS)
    held = await held_of(request, name)
    return _arrays(await asyncio.to_thread(_rows, held, asked, _ids(arrays)))


@router.post("/sets/{name}/source-keys", **needs(*ASKERS, takes=SOURCE_KEYS))
async def source_keys(request: Request, state: TheState, name: Name) -> dict[str, dict[int, str]]:
    """{id: source key} of rows in force, for receipts."""
    arrays, asked = await _taken(request, state, SOURCE_KEYS)
    held = await held_of(request, name)
    return {"keys": await asyncio.to_thread(_source_keys, held, asked, _ids(arrays))}


# -- inside --------------------------------------------------------------------------------


async def _taken(request: Request, state: State, takes: Takes[S]) -> tuple[dict[str, Tensor], S]:
    since, settings = time.time_ns(), state.settings
    body = await read_body(request, settings.body_bytes, settings.body_seconds, state.room)
    arrays, said = unpacked(body, takes.arrays)
    request.state.stages = [Stage("read", since, time.time_ns())]
    return arrays, read(takes.said, said)


async def _answered(request: Request, state: State, name: str, question: Question, samples: int) -> Response:
    held = state.sets.get(name)
    told = await state.ask(held, question, samples)
    request.state.version, request.state.samples = told.version, samples
    request.state.stages.extend(told.stages)
    return _arrays(told.body)


def _arrays(body: bytes) -> Response:
    return ArraysAnswer(body)


def _samples(x: Tensor, state: State) -> int:
    """How many samples are asked about."""
    if x.dim() < 2:
        raise ShapeMismatch(f"query of shape {tuple(x.shape)}; give (B, *S)")
    if len(x) > state.settings.samples:
        raise OutOfRange(f"{len(x)} samples at once, at most {state.settings.samples}; ask in parts")
    return len(x)


def _which(asked: Asked) -> Which:
    return Which(asked.version, asked.label, asked.without)


def _left_out(arrays: dict[str, Tensor]) -> list[str] | None:
    return digests_of(arrays["digests"]) if "digests" in arrays else None


def _ids(arrays: dict[str, Tensor]) -> Tensor:
    if len(arrays["ids"]) > IDS:
        raise OutOfRange(f"{len(arrays['ids'])} rows at once, at most {IDS}; ask in parts")
    return arrays["ids"]


def _about(state: State, held: Held, which: Which) -> dict[str, Any]:
    view = held.view(which)
    point, made = view.snapshot.checkpoint, held.collection.version(view.version)
    said = origin_said(view.set_id, view.version, at=made.at, rows=len(view.rows))
    said |= {"shape": list(view.rows.shape), "space": view.rows.space, "dtype": held.collection.dtype}
    said |= {"kernel": view.rows.default_kernel.fingerprint, "checkpoint": asdict(point)}
    return said | {"most_bytes": state.settings.body_bytes, "most_samples": state.settings.samples}


def _health(held: Held) -> dict[str, Any]:
    newest, owed = held.collection.newest(), held.collection.outstanding()
    readable = held.at(newest.version) if newest.in_force else None
    return {
        "version": newest.version,
        "at": newest.at,
        "rows": newest.in_force,
        "answers": readable is not None and len(readable) > 0,
        "outstanding": len(owed),
    }


def _kernel(held: Held, version: int) -> bytes:
    view = held.view(Which(version))
    kernel = view.rows.default_kernel
    return packed(kernel_arrays(kernel), origin_said(view.set_id, view.version, kernel=kernel.fingerprint))


def _digests(held: Held, which: Which) -> bytes:
    view = held.view(which)
    found = view.rows.digests()
    arrays = {"ids": torch.tensor(list(found), dtype=torch.int64), "digests": digests_array(found.values())}
    return packed(arrays, _said_of(view))


def _moments(held: Held, which: Which, left_out: list[str] | None) -> bytes:
    view = held.view(which, left_out)
    told = view.rows.moments()
    return packed({"mean": told.mean}, _said_of(view) | {"count": told.count, "scatter": told.scatter})


def _holds(held: Held, which: Which, digests: list[str]) -> bytes:
    view = held.view(which)
    found = view.rows.holds(digests)
    return packed({"held": torch.tensor([one in found for one in digests], dtype=torch.uint8)}, _said_of(view))


def _rows(held: Held, asked: AskedRows, ids: Tensor) -> bytes:
    view = held.view(Which(asked.version))
    found = rows_by_id(view.snapshot, ids).to(torch.float64)
    return packed({"rows": in_numbers(found, asked.numbers)}, _said_of(view))


def _source_keys(held: Held, asked: Asked, ids: Tensor) -> dict[int, str]:
    view = held.view(Which(asked.version))
    strange = set(view.snapshot.not_in_force(ids.tolist()))
    return view.snapshot.source_keys([one for one in ids.tolist() if one not in strange])


def _said_of(view: View) -> dict[str, Any]:
    return origin_said(view.set_id, view.version)

"""What operators ask: whether the process lives, whether it can answer, what it counts, what it offers."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from negindex.errors import NegindexError
from negindex.service import metrics
from negindex.service.document import document, needs, refusals
from negindex.service.grants import ROLES
from negindex.service.limits import Refused
from negindex.service.logs import log
from negindex.service.state import State, TheState

router = APIRouter()
OPEN: dict[str, Any] = {"openapi_extra": {"x-roles": ["anybody"]}, "responses": refusals()}


@router.get("/health/live", **OPEN)
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


@router.get("/health/ready", **OPEN)
async def ready(state: TheState) -> dict[str, str]:
    """Every set and its engine can be read at the newest version, and the service is not stopping; else 503."""
    if state.stopping or not state.watches or not await asyncio.to_thread(_readable, state):
        raise Refused(503, "a set cannot be read, or the service is stopping; its log says which", "Unreachable")
    return {"status": "ready"}


@router.get("/metrics", response_class=PlainTextResponse, **needs("auditor", "admin"))
async def figures(state: TheState) -> Response:
    """For Prometheus: of all workers together."""
    return Response(await asyncio.to_thread(state.metrics.text), media_type=metrics.MEDIA_TYPE)


@router.get("/v1/openapi.json", **needs(*ROLES))
async def openapi(request: Request) -> dict[str, Any]:
    """This document."""
    return document(request.app)


def _readable(state: State) -> bool:
    for name in state.sets.names():
        try:
            state.sets.get(name).check_ready()
        except NegindexError as error:
            log("unready", logging.ERROR, set=name, error=type(error).__name__)
            return False
    return True

"""The application of one worker: routes, errors as problem documents, a log line for every request.

Other parts, such as pages for people, bring a router each and a line in ``ROUTERS``; they take the caller from
``Needs``, the sets from ``TheState``, and raise errors of ``negindex.errors``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import negindex
from negindex.errors import NegindexError
from negindex.service import operations, routes
from negindex.service.held import SayAll
from negindex.service.limits import Refused
from negindex.service.logs import log
from negindex.service.pages import site
from negindex.service.pages.images import Images
from negindex.service.problems import MEDIA_TYPE, SAY_ALL, problem, status_of
from negindex.service.settings import Settings
from negindex.service.sign_on import SignOn
from negindex.service.state import Handed, State
from negindex.service.straight import Handler, Straight

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from negindex.service.provider import Provider

ROUTERS = (routes.steps, routes.router, operations.router)
_TITLE = "The request cannot be answered"
_OWN_FAULT = "the fault is the service's own; its log says where"

Message = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


def make_app(
    settings: Settings,
    keyless: bool = False,
    images: Images | None = None,
    handed: Handed | None = None,
    spans: TracerProvider | None = None,
) -> FastAPI:
    """The application. keyless: whether anybody may ask, as long as the directory has no keys.

    images: what decodes images for people; without it there are no pages. handed: what stands in no file. spans:
    OpenTelemetry's, where each question is to be traced.
    """
    app = FastAPI(
        title="negindex", version=negindex.__version__, lifespan=_lifespan, docs_url=None, redoc_url=None,
        openapi_url=None,
    )  # fmt: skip
    app.state.negindex = State(settings, keyless, handed)
    app.state.images, app.state.spans = images, spans
    app.state.provider = _provider(app.state.negindex.sign_on)
    for router in ROUTERS if images is None else (*ROUTERS, site.router):
        app.include_router(router)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(Straight, routes=routes.steps.routes, handlers=_HANDLERS)
    if spans is not None:
        from negindex.service.tracing import Tracing  # what it needs is an extra

        app.add_middleware(Tracing, provider=spans)
    app.add_middleware(Watched, state=app.state.negindex)
    return app


def _provider(sign_on: SignOn | None) -> Provider | None:
    if sign_on is None:
        return None
    from negindex.service.provider import Provider  # what it needs is an extra

    return Provider(sign_on)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    await app.state.negindex.start()
    log("started")
    yield
    await app.state.negindex.stop()
    if app.state.spans is not None:
        await asyncio.to_thread(app.state.spans.force_flush)  # here: uvicorn ends the process by the signal it had
    log("stopped")


class Watched:
    """Measures and logs each request by its route's pattern; turns what nobody caught into a problem document."""

    def __init__(self, app: Any, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > self._state.settings.header_bytes:
                await _problem(431, _TITLE, "the headers are too large", "InvalidInput")(scope, receive, noted)
                return
            await self._app(scope, receive, noted)
        except Exception as error:
            log("fault", 40, error=type(error).__name__)
            if not status:
                await _problem(500, _TITLE, _OWN_FAULT)(scope, receive, noted)
            raise
        finally:  # answers that are ready go before what is said of this one
            asyncio.get_running_loop().call_soon(self._log, scope, status, time.perf_counter() - began)

    def _log(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        seen = scope.get("state", {})
        self._state.metrics.request(route, status, seconds, seen.get("stages", ()))
        caller = seen.get("caller")
        said = {"version": seen.get("version"), "samples": seen.get("samples")}
        said |= {"set": scope.get("path_params", {}).get("name"), "key": None if caller is None else caller.id}
        level = 40 if status >= 500 else 20
        known = {name: value for name, value in said.items() if value is not None}
        log("request", level, route=route, method=scope["method"], status=status, ms=round(1000 * seconds, 3), **known)


_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


async def _negindex_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, NegindexError)
    if isinstance(error, SayAll):
        return _problem(409, _TITLE, str(error), SAY_ALL)
    status = status_of(error)
    headers = {"Retry-After": "1"} if status == 503 else None
    return _problem(status, _TITLE, str(error), type(error).__name__, headers)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        return _problem(error.status_code, error.title, error.detail, error.code, error.headers)
    return _problem(error.status_code, str(error.detail), str(error.detail), "", error.headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _problem(422, _TITLE, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "InvalidInput")


_HANDLERS: dict[type[Exception], Handler] = {
    NegindexError: _negindex_error,
    HTTPException: _http_error,
    RequestValidationError: _invalid,
}


def _problem(status: int, title: str, detail: str, code: str = "", headers: Any = None) -> JSONResponse:
    return JSONResponse(problem(status, title, detail, code), status, headers, MEDIA_TYPE)

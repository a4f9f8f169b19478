"""Templates into answers: every page escapes what it is told, and loads nothing but this service's own files."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException

from negindex.errors import NegindexError
from negindex.service.pages import words
from negindex.service.pages.sessions import LONGEST, Session, Sessions
from negindex.service.problems import status_of
from negindex.service.state import state_of

if TYPE_CHECKING:
    from negindex.service.provider import Provider  # what it needs is an extra

HERE = Path(__file__).parent
HOME, LOGIN = "/pages", "/pages/login"
POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
_TEMPLATES.globals |= {"clock_said": words.clock_said, "plain": words.plain, "shown": words.shown}
_TEMPLATES.filters |= {"moment": words.moment, "size": words.size}


class NotLoggedIn(Exception):
    """Nobody is: the log-in page comes first."""


def page(request: Request, template: str, status: int = 200, **told: Any) -> HTMLResponse:
    """A page; ``told`` is what its template shows."""
    session: Session | None = getattr(request.state, "session", None)
    token = "" if session is None else sessions_of(request).token(session.nonce)
    here = request.url.path
    common = {"caller": session and session.caller, "token": token, "now": datetime.now(UTC), "here": here}
    common |= {"name": request.path_params.get("name"), "home": HOME}
    return HTMLResponse(_TEMPLATES.get_template(template).render(common | told), status)


def go(path: str) -> RedirectResponse:
    """The answer to a form: look there next."""
    return RedirectResponse(path, HTTPStatus.SEE_OTHER)


def data_url(png: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/png;base64,{b64encode(png).decode()}"


def sessions_of(request: Request) -> Sessions:
    """What makes and reads this service's sessions."""
    state = state_of(request)
    return Sessions(state.settings.root, state.door, 60 * state.settings.oidc_minutes)


def provider_of(request: Request) -> Provider | None:
    """Whom people log in with, where that is set up."""
    provider: Provider | None = request.app.state.provider
    return provider


def cookie_name(request: Request, kind: str = "session") -> str:
    """A cookie's name; over TLS one that browsers take from this very host alone."""
    return f"__Host-negindex-{kind}" if request.url.scheme == "https" else f"negindex-{kind}"


def keep_cookie(
    request: Request,
    response: Response,
    value: str,
    kind: str = "session",
    age: int = LONGEST,
    samesite: Literal["strict", "lax"] = "strict",
) -> None:
    """Have the browser keep a cookie that no script and no other site gets.

    samesite: "lax" for what has to come along when another site's page leads back here.
    """
    secure = request.url.scheme == "https"
    response.set_cookie(
        cookie_name(request, kind), value, max_age=age, path="/", secure=secure, httponly=True, samesite=samesite
    )


def drop_cookie(request: Request, response: Response, kind: str = "session") -> None:
    """Have the browser forget a cookie."""
    secure = request.url.scheme == "https"
    response.delete_cookie(cookie_name(request, kind), path="/", secure=secure, httponly=True, samesite="strict")


class PageRoute(APIRoute):
    """A route for people: what goes wrong is a page too, and every answer carries the content policy."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                response = await handle(request)
            except NotLoggedIn:
                response = go(f"{LOGIN}?next={quote(request.url.path)}" if request.method == "GET" else LOGIN)
            except NegindexError as error:
                response = _error(request, status_of(error), str(error))
            except HTTPException as error:
                response = _error(request, error.status_code, str(error.detail), error.headers)
            except RequestValidationError as error:
                first = error.errors()[0]
                response = _error(request, 422, f"{first['loc'][-1]}: {first['msg']}")
            _renew(request, response)
            response.headers.update(POLICY)
            return response

        return handled


def _error(request: Request, status: int, words: str, headers: Any = None) -> Response:
    title = HTTPStatus(status).phrase
    response = page(request, "error.html", status, title=title, words=words)
    response.headers.update(headers or {})
    return response


def _renew(request: Request, response: Response) -> None:
    session: Session | None = getattr(request.state, "session", None)
    if session is not None and not getattr(request.state, "leaves", False):
        sessions = sessions_of(request)
        renewed = sessions.renewed(session)
        if renewed is not None:
            keep_cookie(request, response, sessions.cookie(renewed))

"""Logging in with an API key, once; and out, whoever it is."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import PurePosixPath

from fastapi import APIRouter, Request, Response

from negindex.errors import Unreachable
from negindex.service.grants import ROLES
from negindex.service.logs import log
from negindex.service.pages.forms import TheForm, parsed
from negindex.service.pages.rendering import (
    HOME,
    LOGIN,
    PageRoute,
    cookie_name,
    drop_cookie,
    go,
    keep_cookie,
    page,
    provider_of,
    sessions_of,
)
from negindex.service.pages.visits import caller_of, visited_by
from negindex.service.state import state_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_FORM = "form"  # the cookie that ties the log-in form to this browser
_FORM_SECONDS = 15 * 60
_FORM_BYTES = 1 << 13  # anybody may send one


@router.get(LOGIN)
def ask(request: Request, next: str = HOME) -> Response:  # noqa: A002
    """The form."""
    return log_in_page(request, next, "")


@router.post(LOGIN)
async def take(request: Request) -> Response:
    """A key: right, and there is a session; wrong, and it counts against the address."""
    form, state = await parsed(request, _FORM_BYTES), state_of(request)
    sessions = sessions_of(request)
    sessions.check_token(request.cookies.get(cookie_name(request, _FORM), ""), form.one("token"))
    caller = state.door.caller(f"Bearer {form.one('key')}")
    key = None if caller is None else state.door.live(caller.id)
    if key is None:
        state.strangers.check(request.client.host if request.client else "")
        return log_in_page(
            request, form.one("next"), "No live key is this one. Paste it as it was printed, from nxk_ on.", 401
        )
    session = sessions.begin(key)
    log("logged-in", key=key.id)
    response = go(inside(form.one("next")))
    keep_cookie(request, response, sessions.cookie(session))
    drop_cookie(request, response, _FORM)
    return response


@router.post("/pages/logout", **visited_by(*ROLES))
async def leave(request: Request, form: TheForm) -> Response:
    """The browser forgets the session."""
    request.state.leaves = True
    response: Response = go(LOGIN)
    provider = provider_of(request)
    if provider is not None and caller_of(request).kind == "person":
        farewell: str | None = None
        with suppress(Unreachable):
            farewell = await provider.farewell()
        request.state.session = None  # the page is nobody's
        response = page(request, "logged_out.html", farewell=farewell, host=provider.host)
    drop_cookie(request, response)
    return response


def log_in_page(request: Request, after: str, fault: str, status: int = 200) -> Response:
    """The form, and the way to the provider where there is one. after: the page to see then; fault: what was wrong."""
    nonce = secrets.token_hex(16)
    token = sessions_of(request).token(nonce)
    provider = provider_of(request)
    host = "" if provider is None else provider.host
    response = page(request, "login.html", status, token=token, after=inside(after), fault=fault, host=host)
    keep_cookie(request, response, nonce, _FORM, _FORM_SECONDS)
    return response


def inside(path: str) -> str:
    """A page of this service's own; anything else is the first one."""
    plain = path.startswith(HOME) and path.isprintable() and not {"\\", "?", "#"} & set(path)
    return path if plain and PurePosixPath(path).parts[:2] == ("/", "pages") and ".." not in path else HOME

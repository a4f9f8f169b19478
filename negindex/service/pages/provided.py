"""Logging in through an OpenID provider: there, and back again."""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import time
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from negindex.errors import NegindexError, NotAllowed
from negindex.service.limits import Refused
from negindex.service.logs import log
from negindex.service.pages.login import inside, log_in_page
from negindex.service.pages.rendering import (
    HOME,
    PageRoute,
    cookie_name,
    drop_cookie,
    go,
    keep_cookie,
    page,
    provider_of,
    sessions_of,
)
from negindex.service.pages.sessions import Sessions
from negindex.service.people import meet
from negindex.service.sign_on import BACK, SignOn, Words
from negindex.service.state import state_of

if TYPE_CHECKING:
    from negindex.service.provider import Provider  # what it needs is an extra

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_FLOW = "flow"  # the cookie that ties a log-in to this browser
_SECONDS = 10 * 60  # that it may take
_TEXT = re.compile(r"([0-9a-f]{64})\.(\d{1,12})\.([A-Za-z0-9_-]{0,4000})\.([0-9a-f]{64})")


@router.get("/pages/oidc/start")
async def start(request: Request, next: str = HOME) -> Response:  # noqa: A002
    """To the provider."""
    _, provider = _set_up(request)
    sessions, seed = sessions_of(request), secrets.token_hex(32)
    after = base64.urlsafe_b64encode(inside(next).encode()).decode().rstrip("=")
    said = f"{seed}.{int(time.time())}.{after}"
    response = go(await provider.address(_words(sessions, seed)))
    cookie = f"{said}.{sessions.mac('flow', said)}"
    keep_cookie(request, response, cookie, _FLOW, _SECONDS, samesite="lax")  # the way back begins at the provider
    return response


@router.get(BACK)
async def back(request: Request) -> Response:
    """From the provider. Whatever comes of it, this log-in is over: its cookie goes."""
    state = state_of(request)
    try:
        response = await _let_in(request)
    except NegindexError as error:
        state.strangers.check(request.client.host if request.client else "")
        log("log-in-refused", 30, error=type(error).__name__)
        status = 403 if isinstance(error, NotAllowed) else 503
        response = log_in_page(request, HOME, str(error), status)
    drop_cookie(request, response, _FLOW)
    return response


async def _let_in(request: Request) -> Response:
    on, provider = _set_up(request)
    sessions, told = sessions_of(request), request.query_params
    seed, after = _begun(sessions, request.cookies.get(cookie_name(request, _FLOW), ""))
    words = _words(sessions, seed)
    if len(told.getlist("state")) != 1 or not hmac.compare_digest(words.state.encode(), told["state"].encode()):
        raise NotAllowed("this is no log-in that was begun in this browser; log in again")
    if "error" in told or len(told.getlist("code")) != 1:
        raise NotAllowed("the provider let nobody in; log in again, or ask who runs it")
    account = await provider.account(told["code"], told.get("iss"), words)
    person = meet(state_of(request).settings.root, on.issuer, account.subject, account.groups)
    member = state_of(request).door.live(person.id)
    if member is None:
        raise NotAllowed("your account is in none of the groups that are let in here; ask who runs this service")
    log("logged-in", key=person.id)
    response = page(request, "welcome.html", after=after)
    keep_cookie(request, response, sessions.cookie(sessions.begin(member)))
    return response


def _begun(sessions: Sessions, cookie: str) -> tuple[str, str]:
    """The seed of the log-in that this browser began, and the page to see then."""
    found = _TEXT.fullmatch(cookie)
    if found is None or not hmac.compare_digest(sessions.mac("flow", cookie.rpartition(".")[0]), found[4]):
        raise NotAllowed("no log-in was begun in this browser, or it is over; log in again")
    if not 0 <= time.time() - int(found[2]) <= _SECONDS:
        raise NotAllowed(f"the log-in took more than {_SECONDS // 60} minutes; log in again")
    after = base64.urlsafe_b64decode(found[3] + "=" * (-len(found[3]) % 4)).decode("utf-8", "replace")
    return found[1], inside(after)


def _words(sessions: Sessions, seed: str) -> Words:
    return Words(*(sessions.mac(f"oidc-{what}", seed) for what in Words._fields))


def _set_up(request: Request) -> tuple[SignOn, Provider]:
    on, provider = state_of(request).sign_on, provider_of(request)
    if provider is None or on is None:
        raise Refused(404, "nobody logs in through a provider here; log in with a key", "NotThere")
    return on, provider

"""Who visits a page, what they may do there, and what they may see of which set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import Depends, Request

from negindex.collection import Collection
from negindex.errors import NotThere
from negindex.service.encoding import RowMaker
from negindex.service.grants import Caller
from negindex.service.held import Held
from negindex.service.limits import Refused
from negindex.service.pages.images import Images
from negindex.service.pages.rendering import NotLoggedIn, cookie_name, sessions_of
from negindex.service.state import state_of

READERS = ("curator", "approver", "auditor", "admin")
HANDLERS = ("curator", "approver", "admin")  # who may see rows: the content itself
INTAKE = ("curator", "admin")  # who opens claims, attaches to them, amends them
DECIDERS = ("approver", "admin")  # who accepts, withdraws, erases
AUDITORS = ("auditor", "admin")


class Visits:
    """A dependency: whoever is logged in, if they may do what a page does, with this set. Like ``Needs`` of the API."""

    def __init__(self, *roles: str) -> None:
        self.roles = roles

    async def __call__(self, request: Request) -> Caller:
        """Raises NotLoggedIn; Refused with 403 for other roles or sets, or from another site, 429 for too many."""
        if request.method != "GET" and request.headers.get("sec-fetch-site", "same-origin") not in (
            "same-origin",
            "none",
        ):
            raise Refused(403, "the form was sent from another site's page", "NotAllowed")
        session = sessions_of(request).read(request.cookies.get(cookie_name(request), ""))
        if session is None:
            raise NotLoggedIn
        request.state.session = session
        request.state.caller = caller = session.caller
        state_of(request).rate.check(caller.id)
        if not caller.may(self.roles):
            raise Refused(403, f"this is for {', '.join(self.roles)}, and you are {', '.join(caller.roles)}")
        name = request.path_params.get("name")
        if name is not None:
            if not caller.may(self.roles, name):
                raise Refused(403, "what you may do is for other sets", "NotAllowed")
            request.state.caller = caller = caller.at(name)
        return caller


def visited_by(*roles: str) -> dict[str, Any]:
    """A page's roles, for its decorator."""
    return {"dependencies": [Depends(Visits(*roles))]}


def caller_of(request: Request) -> Caller:
    """Who visits."""
    caller: Caller = request.state.caller
    return caller


def held_by(request: Request) -> Held:
    """The set that the path names. Raises NotThere."""
    return state_of(request).sets.get(request.path_params["name"])


def collection_of(request: Request) -> Collection:
    """The same, to be read."""
    return held_by(request).collection


@contextmanager
def changing(request: Request) -> Iterator[Collection]:
    """The same, to be changed: opened for this, so that no reader of the worker is in the way.

    What is changed is signed where the service has a key.
    """
    with Collection.open(held_by(request).path, key=state_of(request).signs) as collection:
        yield collection


def images_of(request: Request) -> Images:
    """What decodes images."""
    images: Images | None = request.app.state.images
    if images is None:
        raise NotThere("nothing decodes images here")
    return images


def takes_images(request: Request) -> bool:
    """Whether images can become rows of the set here: it is of pixels, or the service has its encoder."""
    return collection_of(request).space == "pixels" or request.path_params["name"] in state_of(request).encoders


def maker_of(request: Request) -> RowMaker | None:
    """What makes the set's latents; None where nothing does, or none are made."""
    return state_of(request).encoders.of(request.path_params["name"])


def signature_of(request: Request) -> str:
    """How the record names who did something: by the number of the key, or of the person."""
    return caller_of(request).called

"""Opening a claim, and attaching to one: what is like the images is shown before anything is put in."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from negindex.claim_rules import Regime
from negindex.collection import Collection
from negindex.errors import ImageRefused, InvalidInput, NotAllowed
from negindex.hamming import NEAR
from negindex.regimes import regimes
from negindex.service.pages.claim_pages import SETS, Number
from negindex.service.pages.forms import Form, TheForm, file_name, new_prefix
from negindex.service.pages.images import Looked, Upload
from negindex.service.pages.rendering import HOME, PageRoute, data_url, go, page
from negindex.service.pages.visits import (
    INTAKE,
    changing,
    collection_of,
    images_of,
    maker_of,
    signature_of,
    takes_images,
    visited_by,
)
from negindex.service.state import state_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_PREFIX = 200  # characters


@dataclass(frozen=True)
class Asked:
    """What a form wants to put under a claim."""

    files: list[Upload]
    prefix: str
    keys: list[str]  # of rows that are there
    hashes: list[str]
    label: str | None

    @property
    def inputs(self) -> list[tuple[str, bytes]]:
        """(source key, file)."""
        return [(self.prefix + file.name, file.content) for file in self.files]


@router.get(f"{SETS}/new-claim", **visited_by(*INTAKE))
def new(request: Request, regime: str = "") -> Response:
    """The form of a regime; without one, which there are."""
    collection = collection_of(request)
    own = collection.path / "regimes"
    known = [collection.claims.regime(name) for name in regimes(own if own.is_dir() else None)]
    rules = collection.claims.regime(regime) if regime else None
    takes = takes_images(request)
    return page(request, "new_claim.html", known=known, rules=rules, prefix=new_prefix(), takes_images=takes)


@router.post(f"{SETS}/new-claim", **visited_by(*INTAKE))
def look(request: Request, form: TheForm) -> Response:
    """What the images are like, side by side; nothing is changed."""
    collection = collection_of(request)
    rules = collection.claims.regime(form.one("regime"))
    asked = _asked(form)
    _check_storable(rules, asked)
    fields = form.told(rules)
    missing = {field.name: field.fault(fields.get(field.name)) for field in rules.missing(fields, "accepted")}
    return page(
        request, "look.html", rules=rules, claim=None, fields=fields, missing=missing, asked=asked,
        reason=form.one("reason"), **_shown(request, collection, asked),
    )  # fmt: skip


@router.post(f"{SETS}/open-claim", **visited_by(*INTAKE))
def open_it(request: Request, form: TheForm) -> Response:
    """Take the claim in: its rows come into force when it is accepted."""
    with changing(request) as collection:
        rules = collection.claims.regime(form.one("regime"))
        asked = _asked(form)
        _check_storable(rules, asked)
        subject = _subject(collection, _all_looked(request, collection, asked), asked)
        by, reason = signature_of(request), form.one("reason")
        claim = collection.claims.open(
            rules.name, form.told(rules), hashes=asked.hashes, by=by, reason=reason, **subject
        )
    return go(f"{HOME}/sets/{request.path_params['name']}/claims/{claim.number}")


@router.get(f"{SETS}/claims/{{number}}/attach", **visited_by(*INTAKE))
def more(request: Request, number: Number) -> Response:
    """More images for a claim."""
    claim = collection_of(request).claims.show(number)
    return page(request, "attach.html", claim=claim, prefix=new_prefix(), takes_images=takes_images(request))


@router.post(f"{SETS}/claims/{{number}}/attach", **visited_by(*INTAKE))
def look_at_more(request: Request, number: Number, form: TheForm) -> Response:
    """What they are like; nothing is changed."""
    collection, asked = collection_of(request), _asked(form)
    claim = collection.claims.show(number)
    rules = collection.claims.regime(claim.regime)
    _check_storable(rules, asked)
    return page(
        request, "look.html", rules=rules, claim=claim, fields={}, missing={}, asked=asked,
        reason=form.one("reason"), **_shown(request, collection, asked),
    )  # fmt: skip


@router.post(f"{SETS}/claims/{{number}}/attach-now", **visited_by(*INTAKE))
def attach(request: Request, number: Number, form: TheForm) -> Response:
    """Put them under the claim: in force at once where it is live."""
    with changing(request) as collection:
        asked = _asked(form)
        rules = collection.claims.regime(collection.claims.show(number).regime)
        _check_storable(rules, asked)
        subject = _subject(collection, _all_looked(request, collection, asked), asked)
        if "rows" not in subject:
            raise InvalidInput("no image; add one")
        rows, keys = subject.pop("rows"), subject.pop("source_keys")
        by, reason = signature_of(request), form.one("reason")
        collection.claims.attach(number, rows, keys, by=by, reason=reason, **subject)
    return go(f"{HOME}/sets/{request.path_params['name']}/claims/{number}")


def one_at_a_time(request: Request) -> AbstractContextManager[None]:
    """Inside, nobody else in this worker decodes an upload: the memory that it takes is bounded.

    Raises Unreachable where too many wait.
    """
    return state_of(request).turns.take()


# -- inside --------------------------------------------------------------------------------


def _asked(form: Form) -> Asked:
    """From either form: files as they were dropped, or as the page before handed them on."""
    handed = zip(form.values.get("file-name", []), form.values.get("file-content", []), strict=False)
    files = form.uploads("files") + [Upload(file_name(name), _unpacked(text)) for name, text in handed]
    return Asked(
        files, form.one("prefix")[:_PREFIX], [*form.lines("keys"), *form.many("with")],
        [*form.lines("hashes"), *form.many("hash")], form.one("label") or None,
    )  # fmt: skip


def _unpacked(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidInput(f"a file that was not handed on whole ({error}); choose it again") from error


def _check_storable(rules: Regime, asked: Asked) -> None:
    """Before an image is even decoded: a regime may allow no copy of the content."""
    if rules.storage == "hash-only" and (asked.files or asked.keys):
        raise NotAllowed(f"regime {rules.name} allows no copy of the content; give hashes alone")


def _looked(request: Request, collection: Collection, inputs: Sequence[tuple[str, bytes]]) -> Looked:
    if not inputs:
        return Looked()
    with one_at_a_time(request):
        return images_of(request).look(collection, inputs, NEAR, maker_of(request))


def _all_looked(request: Request, collection: Collection, asked: Asked) -> Looked:
    """Raises ImageRefused, naming each, where one of the images cannot become a row."""
    found = _looked(request, collection, asked.inputs)
    if found.refused:
        said = "nothing was changed, because of " + "; ".join(f"{key}: {why}" for key, why in found.refused)
        raise ImageRefused(said)
    return found


def _shown(request: Request, collection: Collection, asked: Asked) -> dict[str, Any]:
    """What the page shows of the images and of the rows that they are like."""
    found = _looked(request, collection, asked.inputs)
    own = {key: (data_url(both.blurred), data_url(both.clear)) for key, both in found.pictures.items()}
    like = {key: [alike for of, alike in found.similar if of == key] for key, _ in asked.inputs}
    handed = [(file.name, b64encode(file.content).decode()) for file in asked.files]
    live = collection.claims_on([alike.row for _, alike in found.similar], ever=True)
    return {"looked": found, "own": own, "like": like, "handed": handed, "live": live}


def _subject(collection: Collection, looked: Looked, asked: Asked) -> dict[str, Any]:
    """What the claim is on: new rows, and rows that are there, which go along as they are stored."""
    there = [key for key in dict.fromkeys(asked.keys) if key not in looked.keys]
    if not looked.keys:
        return {"source_keys": there}
    held = collection.rows_under(there)
    rows = np.concatenate([np.stack(looked.rows), held]) if there else np.stack(looked.rows)
    sources = [*looked.sources, *([None] * len(there))]
    return {"rows": rows, "source_keys": [*looked.keys, *there], "label": asked.label, "sources": sources}

"""The queue of claims, each claim, and the steps that are taken with it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from negindex.claim_rules import STATES, Regime
from negindex.claims import Claim
from negindex.collection import Collection
from negindex.errors import NegindexError
from negindex.schema import CLOSED, IN_HOUSE
from negindex.service.logs import log
from negindex.service.pages.erasures import Asking, Erasures
from negindex.service.pages.forms import TheForm
from negindex.service.pages.noted import note_reveal
from negindex.service.pages.rendering import HOME, PageRoute, go, page
from negindex.service.pages.steps import ERASE, STEPS, Step, open_to, take
from negindex.service.pages.visits import (
    DECIDERS,
    HANDLERS,
    INTAKE,
    READERS,
    caller_of,
    changing,
    collection_of,
    held_by,
    signature_of,
    visited_by,
)
from negindex.service.pages.words import most_urgent
from negindex.service.state import state_of

SETS = f"{HOME}/sets/{{name}}"
router = APIRouter(route_class=PageRoute, include_in_schema=False)
Number = Annotated[int, Path(ge=1, le=1 << 53)]
_AT_ONCE = 100  # claims of one page


@router.get(f"{SETS}/claims", **visited_by(*READERS))
def queue(request: Request, state: str = "open", after: Annotated[int, Query(ge=0, le=1 << 40)] = 0) -> Response:
    """Claims, those whose time runs out first before the others."""
    claims = collection_of(request).claims
    urgent = most_urgent(claims.due())
    found = [one for one in claims.every() if _wanted(one.state, one.regime, state)]
    place = {number: at for at, number in enumerate(urgent)}
    found.sort(key=lambda one: (place.get(one.claim, len(place)), one.claim))
    some = found[after : after + _AT_ONCE]
    following = after + _AT_ONCE if len(found) > after + _AT_ONCE else None
    may = {"open": caller_of(request).may(INTAKE), "withdraw": caller_of(request).may(DECIDERS)}
    return page(
        request, "queue.html", claims=some, urgent=urgent, many=len(found), state=state, states=STATES, may=may,
        after=after, following=following,
    )  # fmt: skip


def _wanted(state: str, regime: str, asked: str) -> bool:
    if asked == "open":
        return state not in CLOSED and regime != IN_HOUSE
    return state == asked or asked == "all"


@router.get(f"{SETS}/claims/{{number}}", **visited_by(*READERS))
def show(request: Request, number: Number) -> Response:
    """One claim: state, clocks, rows, what it tells, history, and what can be done."""
    return _claim_page(request, number)


@router.post(f"{SETS}/claims/{{number}}/claimant", **visited_by(*HANDLERS))
def claimant(request: Request, number: Number, form: TheForm) -> Response:
    """What the claim tells of persons; that it was looked at is written down first."""
    collection_of(request).claims.show(number)
    root, name = state_of(request).settings.root, request.path_params["name"]
    note_reveal(root, caller_of(request).id, "claimant", name, number)
    return _claim_page(request, number, person=collection_of(request).claims.claimant(number))


def _claim_page(request: Request, number: int, person: dict[str, Any] | None = None) -> Response:
    collection, caller = collection_of(request), caller_of(request)
    claim = collection.claims.show(number)
    rules = collection.claims.regime(claim.regime)
    told = {**claim.fields, **collection.claims.claimant(number)}
    asking = _erasures(request).asked(collection.set_id, number)
    offered = [(step, step.fields(claim, rules, told)) for step in open_to(claim, rules, caller)]
    erase = caller.may(DECIDERS) and rules.allows(claim.state, "erased")
    return page(
        request, "claim.html", claim=claim, rules=rules, person=person, offered=offered, asking=asking, erase=erase,
        keeps_by_field=any(field.name == "fingerprint" for field in rules.fields),
        erase_fields=ERASE.fields(claim, rules, told), others=_others(collection, claim), sees=caller.may(HANDLERS),
        decides=caller.may(DECIDERS), attaches=caller.may(INTAKE) and claim.state not in CLOSED,
        outstanding=collection.outstanding(), helps=_helps(rules), too_early=_too_early(claim),
    )  # fmt: skip


def _others(collection: Collection, claim: Claim) -> dict[int, list[int]]:
    """{row: other live claims on it}."""
    live = collection.claims_on(list(claim.rows))
    return {row: [one.claim for one in some if one.claim != claim.number] for row, some in live.items()}


def _helps(rules: Regime) -> dict[str, str]:
    return {field.name: field.help for field in rules.fields}


def _too_early(claim: Claim) -> bool:
    now = datetime.now(UTC)
    return any(clock.ended is None and clock.too_early(now) for clock in claim.clocks)


def _step_route(step: Step) -> Callable[..., Response]:
    def taken(request: Request, number: Number, form: TheForm) -> Response:
        with changing(request) as collection:
            take(collection, step, number, form, signature_of(request))
        return go(_at(request, number))

    taken.__doc__ = step.says
    return taken


for _step in STEPS:
    router.add_api_route(
        f"{SETS}/claims/{{number}}/{_step.name}", _step_route(_step), methods=["POST"], name=_step.name,
        response_model=None, **visited_by(*_step.roles),
    )  # fmt: skip


# -- erasing, by two people ----------------------------------------------------------------


@router.post(f"{SETS}/claims/{{number}}/erase-ask", **visited_by(*DECIDERS))
def ask_erasure(request: Request, number: Number, form: TheForm) -> Response:
    """One person asks; nothing is erased yet."""
    collection = collection_of(request)
    fields = form.told(collection.claims.regime(collection.claims.show(number).regime))
    keep_out = form.one("keep_out") == "yes"
    _erasures(request).ask(collection, number, caller_of(request).id, keep_out, fields)
    _note(request, "erasure-asked", number)
    return go(_at(request, number))


@router.post(f"{SETS}/claims/{{number}}/erase-take-back", **visited_by(*DECIDERS))
def take_back_erasure(request: Request, number: Number, form: TheForm) -> Response:
    """Anybody who may decide says that it shall not be."""
    _erasures(request).take_back(collection_of(request).set_id, number)
    _note(request, "erasure-taken-back", number)
    return go(_at(request, number))


@router.post(f"{SETS}/claims/{{number}}/erase-approve", **visited_by(*DECIDERS))
def approve_erasure(request: Request, number: Number, form: TheForm) -> Response:
    """Another person, by another key, has it done."""
    by = signature_of(request)
    with changing(request) as collection:

        def erase(asking: Asking) -> None:
            collection.claims.erase(number, by=by, fields=asking.fields, keep_out=asking.keep_out)

        _erasures(request).approve(collection, number, caller_of(request).id, erase)
        _note(request, "erasure-approved", number)
    held_by(request).let_go()
    return go(_at(request, number))


def _erasures(request: Request) -> Erasures:
    state = state_of(request)
    return Erasures(state.settings.root, state.door)


def _note(request: Request, event: str, number: int) -> None:
    log(event, key=caller_of(request).id, set=request.path_params["name"], claim=number)


def _at(request: Request, number: int) -> str:
    return f"{HOME}/sets/{request.path_params['name']}/claims/{number}"


# -- withdrawing many ----------------------------------------------------------------------


@router.post(f"{SETS}/withdraw", **visited_by(*DECIDERS))
def preview(request: Request, form: TheForm) -> Response:
    """What withdrawing some claims would do; nothing is done."""
    collection = collection_of(request)
    numbers = sorted(set(form.numbers("claim")))
    told = [_would(collection, number) for number in numbers]
    return page(
        request, "withdraw.html", told=told, done=False, reason=form.one("reason"), leaving=_leaving(collection, told)
    )


@router.post(f"{SETS}/withdraw-now", **visited_by(*DECIDERS))
def withdraw_many(request: Request, form: TheForm) -> Response:
    """Withdraw them one by one; one that cannot be is named, and the others are."""
    numbers, reason, by = sorted(set(form.numbers("claim"))), form.one("reason"), signature_of(request)
    with changing(request) as collection:
        told = [_withdrawn(collection, number, reason, by) for number in numbers]
    return page(request, "withdraw.html", told=told, done=True, reason="", leaving={})


def _would(collection: Collection, number: int) -> tuple[Claim, str]:
    claim = collection.claims.show(number)
    rules = collection.claims.regime(claim.regime)
    told = {**claim.fields, **collection.claims.claimant(number)}
    if not rules.allows(claim.state, "withdrawn"):
        return claim, f"{claim.state}: it cannot be withdrawn"
    if missing := rules.missing(told, "withdrawn"):
        return claim, f"{', '.join(field.name for field in missing)} must be told first"
    return claim, "a clock says: not yet" if _too_early(claim) else ""


def _leaving(collection: Collection, told: list[tuple[Claim, str]]) -> dict[int, str | None]:
    """{row: source key} of what would be out of force: no live claim is left that names it."""
    going = {claim.number for claim, why in told if not why}
    keys = {row: key for claim, why in told if not why for row, key in claim.rows.items()}
    live = collection.claims_on(list(keys))
    return {row: key for row, key in keys.items() if live.get(row) and {one.claim for one in live[row]} <= going}


def _withdrawn(collection: Collection, number: int, reason: str, by: str) -> tuple[Claim, str]:
    try:
        return collection.claims.withdraw(number, by=by, reason=reason), ""
    except NegindexError as error:
        return collection.claims.show(number), str(error)

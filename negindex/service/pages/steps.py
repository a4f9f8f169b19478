"""The steps of a claim as the pages offer them: who may take one, when, what it asks for, what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from negindex.claim_rules import Field, Regime
from negindex.claims import Claim
from negindex.collection import Collection
from negindex.errors import InvalidInput
from negindex.schema import CLOSED, LIVE
from negindex.service.grants import Caller
from negindex.service.pages.forms import Form
from negindex.service.pages.visits import DECIDERS, HANDLERS, INTAKE


@dataclass(frozen=True)
class Step:
    """One thing that can be done with a claim."""

    name: str  # of the function of ``Claims``
    title: str
    says: str  # what it does, for who is about to do it
    roles: tuple[str, ...]
    into: str | None = None  # the state that it leads to
    document: str | None = None  # whose fields it asks for

    def fits(self, claim: Claim, rules: Regime) -> bool:
        """Whether the claim, as it stands, may take it."""
        if self.name == "amend":
            return claim.state not in CLOSED
        if self.name in ("hold", "release"):
            ways = {"hold": (None, "asked"), "release": ("asked", "held", "release-asked")}[self.name]
            return claim.state != "erased" and claim.hold in ways
        if self.name == "uphold" and claim.state not in LIVE:
            return False
        return self.into is not None and rules.allows(claim.state, self.into)

    def fields(self, claim: Claim, rules: Regime, told: dict[str, Any]) -> list[tuple[Field, bool]]:
        """(field, whether it has to be told now) of those that it asks for. told: all that the claim tells."""
        states = (self.into, "in_force") if self.name == "accept" else (self.into,)
        found = []
        for field in rules.fields:
            needed = any(state in field.required_for for state in states) and bool(field.fault(told.get(field.name)))
            if self.name == "amend":
                found.append((field, field.name in claim.missing))
            elif needed or field.document == self.document:
                found.append((field, needed))
        return found


STEPS = (
    Step("amend", "Amend", "Put in what was missing, or correct it.", INTAKE),
    Step(
        "accept",
        "Accept",
        "Find the claim good: its rows are in force from the next version on, in every sampler that follows the set.",
        DECIDERS,
        "accepted",
        "decision",
    ),
    Step(
        "dispute",
        "Dispute",
        "Take in a counter-notice: the rows stay in force, and the clocks run.",
        HANDLERS,
        "disputed",
        "counter-notice",
    ),
    Step("stay", "Stay", "A suit was notified: the rows stay in force until it is decided.", HANDLERS, "stayed"),
    Step("uphold", "Uphold", "Decide for the claim: in force as before.", DECIDERS, "in_force"),
    Step(
        "withdraw",
        "Withdraw",
        "Close the claim: rows that no other live claim names answer nothing from the next version on. One that was "
        "not accepted is thereby refused.",
        DECIDERS,
        "withdrawn",
    ),
    Step("hold", "Hold", "Keep the rows from being erased: one person asks, another puts it in force.", HANDLERS),
    Step("release", "Release the hold", "Lift the hold: one person asks, another lifts it.", HANDLERS),
)
ERASE = Step("erase", "Erase", "", DECIDERS, "erased")


def open_to(claim: Claim, rules: Regime, caller: Caller) -> list[Step]:
    """What the caller may do with a claim as it stands."""
    return [step for step in STEPS if caller.may(step.roles) and step.fits(claim, rules)]


def take(collection: Collection, step: Step, number: int, form: Form, by: str) -> Claim:
    """Take a step as a form says. Raises what ``Claims`` raises, and InvalidInput for an amendment of nothing."""
    claims, reason = collection.claims, form.one("reason")
    if step.name in ("hold", "release"):
        return (claims.hold if step.name == "hold" else claims.release)(number, by=by, reason=reason)
    fields = form.told(claims.regime(claims.show(number).regime))
    if step.name == "amend":
        if not fields:
            raise InvalidInput("nothing is told; fill in a field")
        return claims.amend(number, fields, by=by, reason=reason)
    if step.name == "withdraw":
        early = form.one("early") == "yes"
        return claims.withdraw(number, by=by, reason=reason, fields=fields, early=early)
    deciding: dict[str, Callable[..., Claim]] = {
        "accept": claims.accept,
        "dispute": claims.dispute,
        "stay": claims.stay,
        "uphold": claims.uphold,
    }
    return deciding[step.name](number, by=by, reason=reason, fields=fields)

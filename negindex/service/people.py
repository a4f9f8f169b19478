"""People who logged in through a provider: ``DIR/people``, mode 600, so that the record can name them by number.

Of each the provider's own name for the account is kept, and which of the groups that the settings name it was in at
the last log-in. Every session of a person goes by that: a group that is gone at one log-in is gone in all of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from negindex.disk import writer_lock
from negindex.errors import NotAllowed, NotThere
from negindex.service.kept import load_kept, save_kept

PEOPLE = "people"
SIGN = "p"  # a person's number begins with it, a key's never


@dataclass(frozen=True)
class Person:
    """What is kept of somebody. Times are ISO 8601, UTC."""

    id: str
    issuer: str
    subject: str  # what the provider calls the account
    groups: tuple[str, ...]
    since: str
    revoked: str | None = None

    @property
    def state(self) -> str:
        """ "live" or "revoked"."""
        return "live" if self.revoked is None else "revoked"


def load_people(root: Path) -> list[Person]:
    """Everybody that is known; raises what ``load_kept`` raises."""
    return load_kept(root / PEOPLE, PEOPLE, _person)


def meet(root: Path, issuer: str, subject: str, groups: Iterable[str]) -> Person:
    """Somebody who has just logged in, with the groups of now. Raises NotAllowed for who is revoked."""
    with writer_lock(root):
        known = load_people(root)
        met = next((one for one in known if (one.issuer, one.subject) == (issuer, subject)), None)
        if met is not None and met.revoked is not None:
            raise NotAllowed(f"person {met.id} is let in no more; ask whoever runs this service")
        found = tuple(sorted(set(groups)))
        if met is None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            met = Person(SIGN + secrets.token_hex(6), issuer, subject, found, now)
            save_kept(root / PEOPLE, PEOPLE, [*known, met])
        elif met.groups != found:
            changed = replace(met, groups=found)
            save_kept(root / PEOPLE, PEOPLE, [changed if one is met else one for one in known])
            met = changed
    return met


def revoke_person(root: Path, number: str) -> Person:
    """Let somebody in no more, from now on. Raises NotThere."""
    with writer_lock(root):
        known = load_people(root)
        found = next((one for one in known if one.id == number), None)
        if found is None:
            raise NotThere(f"no person {number!r} in {root / PEOPLE}; `negindex apikey list` shows them")
        ended = replace(found, revoked=found.revoked or datetime.now(UTC).isoformat(timespec="seconds"))
        save_kept(root / PEOPLE, PEOPLE, [ended if one is found else one for one in known])
    return ended


def _person(said: dict[str, Any]) -> Person:
    one = Person(**{**said, "groups": tuple(said["groups"])})
    words = (one.id, one.issuer, one.subject, one.since, *one.groups)
    if not all(isinstance(word, str) for word in words) or not one.id.startswith(SIGN):
        raise ValueError(f"person {one.id!r}")
    return one

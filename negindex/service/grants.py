"""Roles, the sets that they are for, and who has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ROLES = ("sampler", "curator", "approver", "auditor", "admin")


class Grant(NamedTuple):
    """Roles that hold for some sets."""

    roles: tuple[str, ...]
    sets: tuple[str, ...] = ()  # names; () for every set

    def reaches(self, name: str) -> bool:
        """Whether it holds for this set too."""
        return not self.sets or name in self.sets


class Holder(Protocol):
    """What stands behind a caller: an API key, or a person that a provider named."""

    @property
    def id(self) -> str:
        """Its number; that of no other."""

    @property
    def kind(self) -> str:
        """ "key" or "person"."""

    @property
    def mark(self) -> str:
        """What a session is signed over, so that it is of this very one."""

    @property
    def grants(self) -> tuple[Grant, ...]:
        """What it may do."""


@dataclass(frozen=True)
class Caller:
    """Who asks: a live key, a person, or anybody on this machine where the service runs without keys."""

    id: str
    grants: tuple[Grant, ...]
    kind: str = "key"

    @property
    def called(self) -> str:
        """How the record names the caller."""
        return f"{self.kind} {self.id}"

    @property
    def roles(self) -> tuple[str, ...]:
        """Those for any set."""
        held = {role for grant in self.grants for role in grant.roles}
        return tuple(role for role in ROLES if role in held)

    def may(self, roles: Sequence[str], name: str | None = None) -> bool:
        """Whether one of these roles is the caller's: for this set, or for any.

        >>> one = Caller("7", (Grant(("curator",), ("art",)), Grant(("auditor",))))
        >>> one.may(["curator"], "art"), one.may(["curator"], "faces"), one.may(["auditor"], "faces")
        (True, False, True)
        """
        reaching = [grant for grant in self.grants if name is None or grant.reaches(name)]
        return any(not set(grant.roles).isdisjoint(roles) for grant in reaching)

    def at(self, name: str) -> Caller:
        """The caller with what holds for one set alone."""
        return Caller(self.id, tuple(grant for grant in self.grants if grant.reaches(name)), self.kind)


def caller_for(holder: Holder) -> Caller:
    """Who asks with what this holds."""
    return Caller(holder.id, holder.grants, holder.kind)


NOBODY = Caller("none", (Grant(("sampler", "auditor")),))  # without keys: enough to be guarded, and to watch

"""Who may ask what: API keys, of which only a hash is kept, with roles, sets and an end.

``DIR/keys`` is JSON, mode 600. A key's text is ``nxk_ID_SECRET``, shown once; its secret has 256 bits of randomness, so
one sha256 is enough to keep it. The file is read again when it has changed, so a revoked key stops working at once.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from negindex.disk import writer_lock
from negindex.errors import InvalidInput, NotThere
from negindex.service.grants import NOBODY, ROLES, Caller, Grant, Holder, caller_for
from negindex.service.held import NAME
from negindex.service.kept import Kept, load_kept, save_kept
from negindex.service.people import PEOPLE, SIGN, load_people
from negindex.service.sign_on import Member, SignOn

KEYS = "keys"
_TEXT = re.compile(r"nxk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class ApiKey:
    """What is kept of a key. Times are ISO 8601, UTC."""

    id: str
    name: str  # what the operator calls it; it stands in no log
    sha256: str  # of the whole text
    roles: tuple[str, ...]
    sets: tuple[str, ...]  # names; () for every set
    made: str
    expires: str | None = None
    revoked: str | None = None
    kind = "key"

    @property
    def mark(self) -> str:
        """What a session of it is signed over."""
        return self.sha256

    @property
    def grants(self) -> tuple[Grant, ...]:
        """What it may do."""
        return (Grant(self.roles, self.sets),)

    def state(self, now: datetime) -> str:
        """ "live", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        return "live" if self.expires is None or now < datetime.fromisoformat(self.expires) else "expired"


def create_key(
    root: Path, roles: Sequence[str], sets: Sequence[str] = (), *, name: str = "", days: float | None = None
) -> tuple[str, ApiKey]:
    """Make a key; returns its text, which is kept nowhere, and what is kept. Raises InvalidInput."""
    wrong = [role for role in roles if role not in ROLES]
    if not roles or wrong:
        raise InvalidInput(f"roles {', '.join(wrong) or 'none'}; give some of {', '.join(ROLES)}")
    if unnamed := [one for one in sets if not NAME.fullmatch(one)]:
        raise InvalidInput(f"set names {', '.join(unnamed)}; give names of directories under {root}")
    if days is not None and not 0 < days <= 3660:
        raise InvalidInput(f"{days} days; give 0 to 3660, or none for a key without an end")
    number, now = secrets.token_hex(6), datetime.now(UTC)
    text = f"nxk_{number}_{secrets.token_urlsafe(32)}"
    end = None if days is None else _said(now + timedelta(days=days))
    key = ApiKey(number, name, _hash(text), tuple(dict.fromkeys(roles)), tuple(dict.fromkeys(sets)), _said(now), end)
    with writer_lock(_folder(root)):
        save_kept(root / KEYS, KEYS, [*load_keys(root), key])
    return text, key


def revoke_key(root: Path, number: str) -> ApiKey:
    """End a key now; it stays on the list. Raises NotThere."""
    with writer_lock(_folder(root)):
        keys = load_keys(root)
        found = next((key for key in keys if key.id == number), None)
        if found is None:
            raise NotThere(f"no key {number!r} in {root / KEYS}; `negindex apikey list` shows them")
        ended = replace(found, revoked=found.revoked or _said(datetime.now(UTC)))
        save_kept(root / KEYS, KEYS, [ended if key is found else key for key in keys])
    return ended


def load_keys(root: Path) -> list[ApiKey]:
    """The keys of a directory; [] where there is no file. Raises what ``load_kept`` raises."""
    return load_kept(root / KEYS, KEYS, _key)


class Door:
    """Tells callers by the ``Authorization`` header, and sessions by their number. Usable from several threads."""

    def __init__(self, root: Path, keyless: bool, sign_on: SignOn | None = None) -> None:
        """keyless: whether anybody may ask, as long as there is no file of keys. sign_on: how people come in."""
        self._keyless, self._sign_on = keyless, sign_on
        self._keys = Kept(root / KEYS, lambda: load_keys(root), lambda key: key.id)
        self._people = Kept(root / PEOPLE, lambda: load_people(root), lambda person: person.id)

    def caller(self, authorization: str | None, now: datetime | None = None) -> Caller | None:
        """Who asks; None for nobody that is known. Raises what ``load_keys`` raises: then nobody is let in."""
        known, found_file = self._keys.now()
        self._keyless = self._keyless and not found_file  # from the first key on, one is needed
        if self._keyless and authorization is None:
            return NOBODY
        kind, _, text = (authorization or "").partition(" ")
        found = _TEXT.fullmatch(text)
        key = known.get(found[1]) if found and kind.lower() == "bearer" else None
        if key is None or not hmac.compare_digest(key.sha256, _hash(text)):
            return None
        return caller_for(key) if key.state(now or datetime.now(UTC)) == "live" else None

    def live(self, number: str, now: datetime | None = None) -> Holder | None:
        """The key or the person of this number, while they are let in. Raises as ``caller`` does."""
        if number.startswith(SIGN):
            return self._person(number)
        key = self._keys.now()[0].get(number)
        return key if key is not None and key.state(now or datetime.now(UTC)) == "live" else None

    def _person(self, number: str) -> Holder | None:
        found = None if self._sign_on is None else self._people.now()[0].get(number)
        if found is None or self._sign_on is None:
            return None
        member = Member(found, self._sign_on.grants_of(found))
        return member if member.grants else None


def _folder(root: Path) -> Path:
    if not root.is_dir():
        raise NotThere(f"{root} is no directory; make it, and put the sets that are to be served in it")
    return root


def _key(said: dict[str, Any]) -> ApiKey:
    key = ApiKey(**{**said, "roles": tuple(said["roles"]), "sets": tuple(said["sets"])})
    words = (key.id, key.name, key.sha256, key.made, *key.roles, *key.sets)
    if not all(isinstance(word, str) for word in words) or not set(key.roles) <= set(ROLES):
        raise ValueError(f"key {key.id!r}")
    for moment in (key.expires, key.revoked):
        if moment is not None and datetime.fromisoformat(moment).utcoffset() is None:
            raise ValueError(f"key {key.id!r} with a time without a zone")
    return key


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _said(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")

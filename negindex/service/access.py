"""Who may ask what: API keys, of which only a hash is kept, with roles, sets and an end.

``DIR/keys`` is JSON, mode 600. A key's text is ``nxk_ID_SECRET``, shown once; its secret has 256 bits of randomness, so
one sha256 is enough to keep it. The file is read again when it has changed, so a revoked key stops working at once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from negindex.disk import Disk, check_private, writer_lock
from negindex.errors import Damaged, InvalidInput, NotThere
from negindex.service.held import NAME

KEYS = "keys"
ROLES = ("sampler", "curator", "approver", "auditor", "admin")
FORMAT = 1
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

    def state(self, now: datetime) -> str:
        """ "live", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        return "live" if self.expires is None or now < datetime.fromisoformat(self.expires) else "expired"


@dataclass(frozen=True)
class Caller:
    """Who asks: a live key, or anybody on this machine where the service runs without keys."""

    id: str
    roles: tuple[str, ...]
    sets: tuple[str, ...] = ()

    def may(self, roles: Sequence[str]) -> bool:
        """Whether one of the caller's roles is among these."""
        return not set(self.roles).isdisjoint(roles)

    def sees(self, name: str) -> bool:
        """Whether the key is for this set too."""
        return not self.sets or name in self.sets


NOBODY = Caller("none", ("sampler", "auditor"))  # without keys: enough to be guarded, and to watch


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
        _save(root, [*load_keys(root), key])
    return text, key


def revoke_key(root: Path, number: str) -> ApiKey:
    """End a key now; it stays on the list. Raises NotThere."""
    with writer_lock(_folder(root)):
        keys = load_keys(root)
        found = next((key for key in keys if key.id == number), None)
        if found is None:
            raise NotThere(f"no key {number!r} in {root / KEYS}; `negindex apikey list` shows them")
        ended = replace(found, revoked=found.revoked or _said(datetime.now(UTC)))
        _save(root, [ended if key is found else key for key in keys])
    return ended


def load_keys(root: Path) -> list[ApiKey]:
    """The keys of a directory; [] where there is no file.

    Raises NotAllowed where others than its owner can reach the file, and Damaged where it cannot be read as keys.
    """
    path = root / KEYS
    try:
        with open(path, "rb") as file:
            check_private(file, path)
            said = json.load(file)
        if said["format"] != FORMAT:
            raise ValueError(f"format {said['format']!r}")
        return [_key(one) for one in said["keys"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(
            f"{path} cannot be read as keys ({error}); restore it, or move it away and make new keys"
        ) from error


class Door:
    """Tells callers by the ``Authorization`` header. Usable from several threads."""

    def __init__(self, root: Path, keyless: bool) -> None:
        """keyless: whether anybody may ask, as long as there is no file of keys."""
        self._root, self._keyless = root, keyless
        self._known: dict[str, ApiKey] = {}
        self._state: tuple[int, ...] | None = None
        self._lock = threading.Lock()

    def caller(self, authorization: str | None, now: datetime | None = None) -> Caller | None:
        """Who asks; None for nobody that is known. Raises what ``load_keys`` raises: then nobody is let in."""
        known = self._keys()
        if self._keyless and authorization is None:
            return NOBODY
        kind, _, text = (authorization or "").partition(" ")
        found = _TEXT.fullmatch(text)
        key = known.get(found[1]) if found and kind.lower() == "bearer" else None
        if key is None or not hmac.compare_digest(key.sha256, _hash(text)):
            return None
        return Caller(key.id, key.roles, key.sets) if key.state(now or datetime.now(UTC)) == "live" else None

    def live(self, number: str, now: datetime | None = None) -> ApiKey | None:
        """The key of this number, while it is live: what a session of it needs to know. Raises as ``caller`` does."""
        key = self._keys().get(number)
        return key if key is not None and key.state(now or datetime.now(UTC)) == "live" else None

    def _keys(self) -> dict[str, ApiKey]:
        with self._lock:
            try:
                found = os.stat(self._root / KEYS)
                state: tuple[int, ...] | None = (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)
            except FileNotFoundError:
                state = None
            if state != self._state:
                self._known = {key.id: key for key in load_keys(self._root)}
                self._state = state
            self._keyless = self._keyless and state is None  # from the first key on, one is needed
            return self._known


def _folder(root: Path) -> Path:
    if not root.is_dir():
        raise NotThere(f"{root} is no directory; make it, and put the sets that are to be served in it")
    return root


def _save(root: Path, keys: Sequence[ApiKey]) -> None:
    text = json.dumps({"format": FORMAT, "keys": [asdict(key) for key in keys]}, indent=1).encode() + b"\n"
    Disk().put_private(root / KEYS, text)


def _key(said: dict[str, object]) -> ApiKey:
    key = ApiKey(**{**said, "roles": tuple(said["roles"]), "sets": tuple(said["sets"])})  # type: ignore[arg-type]
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

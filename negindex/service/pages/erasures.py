"""Erasures that one person asked for and another has to approve: kept in ``DIR/erasures.json`` until then.

They name claims and rows by number. What is asked for is bound to the claim's rows of then, and to a key that is live.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from negindex.collection import Collection
from negindex.disk import Disk, writer_lock
from negindex.errors import Damaged, InvalidInput, NotAllowed, NotThere
from negindex.service.access import Door

ASKED = "erasures.json"
FORMAT = 1
WITHIN = timedelta(days=7)  # for which an asking stands


@dataclass(frozen=True)
class Asking:
    """An erasure that waits for a second person."""

    set_id: str
    claim: int
    key: str  # id of the key that asked
    at: str  # ISO 8601, UTC
    rows: list[int]  # that would be erased
    keep_out: bool
    fields: dict[str, Any]  # that the claim's regime asks for; none of persons

    def stands(self, door: Door, now: datetime) -> bool:
        """Whether it may be approved still: it is not too old, and its key is live."""
        return now - datetime.fromisoformat(self.at) <= WITHIN and door.live(self.key, now) is not None


class Erasures:
    """What is asked for in one directory of sets. Usable from several threads and processes."""

    def __init__(self, root: Path, door: Door) -> None:
        self._root, self._door = root, door

    def asked(self, set_id: str, claim: int) -> Asking | None:
        """What somebody asked for, while it stands."""
        return next((one for one in self._standing() if (one.set_id, one.claim) == (set_id, claim)), None)

    def ask(self, collection: Collection, claim: int, key: str, keep_out: bool, fields: Mapping[str, Any]) -> Asking:
        """Ask for a claim's erasure. Raises NotAllowed where it cannot be erased as it stands, or is asked for."""
        found = collection.claims.show(claim)
        rules = collection.claims.regime(found.regime)
        _, personal = rules.apart(fields)
        if personal:
            raise InvalidInput(f"{', '.join(sorted(personal))} is personal; amend the claim with it, then ask")
        if not rules.allows(found.state, "erased"):
            raise NotAllowed(
                f"claim {claim} is {found.state}, which leads to no erasure under {rules.name}; withdraw it"
            )
        if missing := rules.missing({**found.fields, **collection.claims.claimant(claim), **fields}, "erased"):
            raise InvalidInput(f"claim {claim}: {', '.join(field.name for field in missing)} must be told with it")
        if "fingerprint" in fields:  # the regime asks for the choice itself
            keep_out = fields["fingerprint"] == "kept"
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        made = Asking(collection.set_id, claim, key, at, sorted(found.rows), keep_out, dict(fields))
        with writer_lock(self._root):
            if self.asked(collection.set_id, claim) is not None:
                raise NotAllowed(f"claim {claim}: an erasure is asked for already; approve it, or take it back")
            self._save([*self._standing(), made])
        return made

    def take_back(self, set_id: str, claim: int) -> None:
        """Nobody asks any more. Raises NotThere where nobody does."""
        with writer_lock(self._root):
            self._drop(self._there(set_id, claim))

    def approve(self, collection: Collection, claim: int, key: str, erase: Callable[[Asking], None]) -> Asking:
        """Have ``erase`` do what was asked for, as another key says that it may.

        Raises NotThere where nobody asked, NotAllowed where the same key did or the claim's rows are others since.
        """
        with writer_lock(self._root):
            asking = self._there(collection.set_id, claim)
            if asking.key == key:
                raise NotAllowed("this key asked for the erasure; another person, with a key of their own, approves it")
            if asking.rows != sorted(collection.claims.show(claim).rows):
                self._drop(asking)
                raise NotAllowed(f"claim {claim} has other rows than when its erasure was asked for; ask for it again")
            erase(asking)
            self._drop(asking)
        return asking

    def _there(self, set_id: str, claim: int) -> Asking:
        found = self.asked(set_id, claim)
        if found is None:
            raise NotThere(f"nobody asks for the erasure of claim {claim}, or not in the last {WITHIN.days} days")
        return found

    def _drop(self, asking: Asking) -> None:
        self._save([one for one in self._standing() if one != asking])

    def _standing(self) -> list[Asking]:
        now = datetime.now(UTC)
        return [one for one in self._read() if one.stands(self._door, now)]

    def _read(self) -> list[Asking]:
        path = self._root / ASKED
        try:
            said = json.loads(path.read_bytes())
            if said["format"] != FORMAT:
                raise ValueError(f"format {said['format']!r}")
            return [Asking(**one) for one in said["asked"]]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Damaged(f"{path} cannot be read ({error}); move it away, and ask for erasures again") from error

    def _save(self, asked: list[Asking]) -> None:
        text = json.dumps({"format": FORMAT, "asked": [asdict(one) for one in asked]}, indent=1).encode() + b"\n"
        Disk().put_private(self._root / ASKED, text)

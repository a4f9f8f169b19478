"""Claims: somebody's reasons for rows to be in the set. A row stays in force while one claim on it is live.

Each step of a claim is one version and one log record. What a claim tells is checked field by field against its
regime; what it tells of persons lies apart, is shown only when it is asked for, and goes with an erasure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from numpy.typing import ArrayLike
from torch import Tensor

from negindex.alike import listed_near
from negindex.clocks import Clock
from negindex.errors import InvalidInput, NotAllowed, UnknownKey
from negindex.hamming import Hashes
from negindex.incoming import check_keys, incoming, some_are
from negindex.regimes import Regime
from negindex.schema import CLOSED, LIVE
from negindex.states import ClaimRecord, Note, Provenance
from negindex.store import Store
from negindex.text import comparable

Fields = Mapping[str, Any]


class Event(NamedTuple):
    """One step of a claim."""

    version: int
    at: str
    action: str
    state: str
    by: str
    reason: str


@dataclass(frozen=True)
class Claim:
    """A claim as it stands."""

    number: int
    regime: str
    state: str
    hold: str | None  # None, asked, held or release-asked
    rows: dict[int, str | None]  # id: source key, None once the row is erased
    fields: dict[str, Any]  # what was told, but for the claimant's own
    missing: dict[str, str]  # field: what keeps it from being accepted
    hashes: list[tuple[str, str]]  # (sha256 or pdq, hex)
    history: list[Event]
    clocks: list[Clock]

    @property
    def first_in_force(self) -> int | None:
        """The version from which on it kept its rows in force."""
        return next((event.version for event in self.history if event.state in LIVE), None)

    @property
    def last_in_force(self) -> int | None:
        """The last version at which it did; None while it does, and where it never did."""
        live = [event for event in self.history if event.state in LIVE]
        ended = next((e for e in self.history if live and e.version > live[-1].version), None)
        return None if ended is None else ended.version - 1


class Due(NamedTuple):
    """A clock that runs on a claim."""

    claim: int
    regime: str
    state: str
    clock: Clock


class Claims:
    """The claims of one collection; ``Collection.claims`` is how to come by it."""

    def __init__(self, store: Store) -> None:
        self._store, self._catalogue = store, store.catalogue

    def regime(self, name: str) -> Regime:
        """The rules of this name: those in the set's own ``regimes`` folder first."""
        return self._store.regime(name)

    # -- opening ---------------------------------------------------------------------------

    def open(
        self,
        regime: str,
        fields: Fields | None = None,
        *,
        rows: Tensor | ArrayLike | None = None,
        source_keys: Sequence[str] = (),
        hashes: Sequence[str] = (),
        label: str | Sequence[str | None] | None = None,
        sources: Sequence[Provenance | None] | None = None,
        embeddings: Tensor | ArrayLike | None = None,
        by: str = "",
        reason: str = "",
    ) -> Claim:
        """Take in a claim on rows that are handed in, that are there already (``source_keys`` alone), or by hash.

        hashes: "sha256:HEX" (of an image file or of a row's bytes) or "pdq:HEX". Rows come into force when the claim
        is accepted. It starts as received, or as incomplete where its regime misses something.
        Raises ContentRefused, DuplicateKey, UnknownKey, InvalidInput; then nothing is changed.
        """
        rules, said = self.regime(regime), dict(fields or {})
        words, person = rules.apart(said)
        named = [_hash(one) for one in hashes]
        self._check_subject(rules, rows is not None, source_keys, named)
        with self._store.writing():
            if rows is not None:
                given = incoming(self._store.meta, rows, source_keys, label, sources, embeddings)
                sealed, ids = self._store.seal(given)
            else:
                sealed, ids = [], self._held(source_keys)
            listed = sorted({f"{kind}:{digest}" for kind, digest in named})
            note = Note(reason, by, {"fields": words, "rules": rules.digest, "hashes": listed}, person)
            with self._catalogue.together():
                with self._catalogue.change("open", note) as change:
                    claim = change.open_claim(regime, self._taken_in(rules, said), named)
                    change.store(sealed)
                    change.link(claim, [*ids.values(), *self._by_hash(named, set(ids.values()))])
                self._store.match(list(ids.values()))
        return self.show(claim)

    def amend(self, claim: int, fields: Fields, *, by: str = "", reason: str = "") -> Claim:
        """Put in what was missing, or correct it; a claim that becomes complete is received."""
        with self._store.writing():
            found, rules = self._open_claim(claim)
            words, person = rules.apart(fields)
            taken_in = self._taken_in(rules, {**self._told(claim), **fields})
            state = taken_in if found.state in ("received", "incomplete") else None
            self._write_step(claim, "amend", state, Note(reason, by, {"fields": words}, person))
        return self.show(claim)

    def attach(
        self,
        claim: int,
        rows: Tensor | ArrayLike,
        source_keys: Sequence[str],
        *,
        label: str | Sequence[str | None] | None = None,
        sources: Sequence[Provenance | None] | None = None,
        embeddings: Tensor | ArrayLike | None = None,
        by: str = "",
        reason: str = "",
    ) -> Claim:
        """Put more rows under a claim: in force at once where it is live."""
        given = incoming(self._store.meta, rows, source_keys, label, sources, embeddings)
        with self._store.writing():
            found, rules = self._open_claim(claim)
            self._check_subject(rules, True, source_keys, [])
            sealed, ids = self._store.seal(given)
            with self._catalogue.together():
                with self._catalogue.change("attach", Note(reason, by)) as change:
                    change.move(claim, "in_force" if found.state == "accepted" else None)
                    change.store(sealed)
                    change.link(claim, list(ids.values()))
                    change.reckon(ids.values())
                self._store.match(list(ids.values()))
        return self.show(claim)

    # -- deciding --------------------------------------------------------------------------

    def accept(self, claim: int, *, by: str = "", reason: str = "", fields: Fields | None = None) -> Claim:
        """Find a claim good: its rows are in force from this version on, in every process that follows the set.

        A row that was withdrawn meanwhile comes back under a new id. Without rows the claim waits, accepted, for
        content that has one of its hashes. What its regime asks of a claim in force must be told by now: the content
        may come at any time.
        """
        with self._store.writing():
            _, rules = self._check_step(claim, "accepted", fields)
            self._check_told(claim, rules, "in_force", fields)
            again = [i for i in self._catalogue.rows_of(claim) if self._is_out(i)]
            self._check_can_come_back(claim, again)
            back = self._store.read(again)
            sealed, ids = self._store.seal(back) if len(back) else ([], {})
            with self._catalogue.together():
                with self._catalogue.change("accept", self._note(rules, reason, by, fields)) as change:
                    change.move(claim, "accepted")
                    change.store(sealed)
                    change.unlink(claim, again)
                    change.link(claim, list(ids.values()))
                    change.reckon(self._catalogue.rows_of(claim))
                if self._catalogue.rows_of(claim) or rules.storage == "hash-only":
                    self._write_step(claim, "force", "in_force", Note(by=by))
                self._store.match(list(ids.values()))
        return self.show(claim)

    def dispute(self, claim: int, *, by: str = "", reason: str = "", fields: Fields | None = None) -> Claim:
        """Take in a counter-notice: the rows stay in force, and the regime's clocks run."""
        return self._decide(claim, "dispute", "disputed", by, reason, fields)

    def stay(self, claim: int, *, by: str = "", reason: str = "", fields: Fields | None = None) -> Claim:
        """A suit was notified: the rows stay in force until it is decided."""
        return self._decide(claim, "stay", "stayed", by, reason, fields)

    def uphold(self, claim: int, *, by: str = "", reason: str = "", fields: Fields | None = None) -> Claim:
        """Decide a dispute, or a suit, for the claim: in force as before."""
        state = self._catalogue.claim(claim).state
        if state not in LIVE:
            raise NotAllowed(f"claim {claim} is {state}; there is nothing to uphold, accept it")
        return self._decide(claim, "uphold", "in_force", by, reason, fields)

    def withdraw(
        self, claim: int, *, by: str = "", reason: str = "", fields: Fields | None = None, early: bool = False
    ) -> Claim:
        """Close a claim: rows that no other live claim names are out of force from this version on.

        A claim that was not accepted is thereby refused. early: although a clock says "not before".
        """
        rules = self.regime(self._catalogue.claim(claim).regime)
        running = [c for c in self._clocks(claim, rules) if c.ended is None and c.too_early(datetime.now(UTC))]
        if running and not early:
            raise NotAllowed(
                f"claim {claim}: {running[0].name} must not happen before {running[0].not_before}; wait, or say that "
                "it is meant (early), such as when the claimant takes it back"
            )
        return self._decide(claim, "withdraw", "withdrawn", by, reason, fields)

    def erase(
        self, claim: int, *, by: str = "", reason: str = "", fields: Fields | None = None, keep_out: bool | None = None
    ) -> Claim:
        """Erase a claim's rows, the claimant's details and the claim's words; see ``Collection.erase``.

        keep_out: leave a keyed fingerprint that refuses the same content later; recorded as a choice. None takes
        it from the regime's ``fingerprint`` field.
        """
        with self._store.writing():
            _, rules = self._check_step(claim, "erased", fields)
            kept = (fields or {}).get("fingerprint") == "kept" if keep_out is None else keep_out
            note = Note(reason, by, {"keep_out": kept, "fields": rules.apart(fields or {})[0]})
            ids = [i for i in self._catalogue.rows_of(claim, closed=True) if self._catalogue.source_keys([i])]
            self._store.erase(ids, note, claim=claim, keep_out=kept)
        return self.show(claim)

    # -- legal hold ------------------------------------------------------------------------

    def hold(self, claim: int, *, by: str, reason: str = "") -> Claim:
        """Keep a claim's rows from being erased: one person asks, another puts it in force."""
        return self._two_people(claim, "hold", {None: "asked", "asked": "held"}, by, reason)

    def release(self, claim: int, *, by: str, reason: str = "") -> Claim:
        """Lift a hold: one person asks, another lifts it. A hold that was only asked for is taken back by anyone."""
        return self._two_people(
            claim, "release", {"asked": "", "held": "release-asked", "release-asked": ""}, by, reason
        )

    # -- reading ---------------------------------------------------------------------------

    def show(self, claim: int) -> Claim:
        """One claim as it stands; raises UnknownClaim. Nothing of the claimant is in it."""
        found = self._catalogue.claim(claim)
        told, rules = self._told(claim), self.regime(found.regime)
        faults = {f.name: str(f.fault(told.get(f.name))) for f in rules.missing(told, "accepted")}
        ids = self._catalogue.rows_of(claim)
        keys = self._catalogue.source_keys(ids)
        return Claim(
            claim,
            found.regime,
            found.state,
            found.hold,
            {i: keys.get(i) for i in ids},
            {name: value for name, value in told.items() if name not in self._personal(rules)},
            faults if found.state in ("received", "incomplete") else {},
            self._catalogue.hashes_of(claim),
            self._history(claim),
            self._clocks(claim, rules),
        )

    def claimant(self, claim: int) -> dict[str, Any]:
        """What the claim tells of persons; {} after an erasure. For those who need it: never put it in a log."""
        self._catalogue.claim(claim)
        return {
            k: v
            for version in self._catalogue.versions(claim)
            for k, v in self._catalogue.person(version.version).items()
        }

    def every(self, state: str | None = None, regime: str | None = None) -> list[ClaimRecord]:
        """The claims, or those in a state or under a regime."""
        return self._catalogue.claims(state, regime)

    def due(self, within: timedelta | None = None, now: datetime | None = None) -> list[Due]:
        """The clocks that run on claims, the most urgent first; only those due within a time when it is given."""
        now = now or datetime.now(UTC)
        found = [claim for claim in self._catalogue.claims() if claim.state not in CLOSED]
        rules = {name: self.regime(name) for name in {claim.regime for claim in found}}
        running = [
            Due(claim.claim, claim.regime, claim.state, clock)
            for claim in found
            if rules[claim.regime].clock_rules
            for clock in self._clocks(claim.claim, rules[claim.regime])
            if clock.ended is None and (within is None or clock.due <= now + within)
        ]
        return sorted(running, key=lambda due: due.clock.due)

    # -- inside ----------------------------------------------------------------------------

    def _taken_in(self, rules: Regime, told: Fields) -> str:
        """The state of a claim that nobody has decided on."""
        incomplete = rules.missing(told, "accepted") and rules.allows("received", "incomplete")
        return "incomplete" if incomplete else "received"

    def _decide(self, claim: int, action: str, state: str, by: str, reason: str, fields: Fields | None) -> Claim:
        with self._store.writing():
            _, rules = self._check_step(claim, state, fields)
            self._write_step(claim, action, state, self._note(rules, reason, by, fields))
        return self.show(claim)

    def _write_step(self, claim: int, action: str, state: str | None, note: Note, hold: str | None = None) -> None:
        with self._catalogue.change(action, note) as change:
            change.move(claim, state, hold)
            change.reckon(self._catalogue.rows_of(claim))

    def _note(self, rules: Regime, reason: str, by: str, fields: Fields | None) -> Note:
        words, person = rules.apart(fields or {})
        return Note(reason, by, {"fields": words, "rules": rules.digest}, person)

    def _check_step(self, claim: int, state: str, fields: Fields | None) -> tuple[ClaimRecord, Regime]:
        """The claim and its rules, if it may go into ``state`` with what it tells."""
        found = self._catalogue.claim(claim)
        rules = self.regime(found.regime)
        if not rules.allows(found.state, state):
            ways = ", ".join(rules.transitions.get(found.state, ())) or "nothing: it is final"
            raise NotAllowed(
                f"claim {claim} is {found.state}, and under {rules.name} that leads to {ways}; not {state}"
            )
        self._check_told(claim, rules, state, fields)
        return found, rules

    def _check_told(self, claim: int, rules: Regime, state: str, fields: Fields | None) -> None:
        told = {**self._told(claim), **(fields or {})}
        faults = [f"{field.name} {field.fault(told.get(field.name))}" for field in rules.missing(told, state)]
        if faults:
            raise InvalidInput(f"claim {claim} cannot become {state}: {'; '.join(faults)}; amend it, then try again")

    def _open_claim(self, claim: int) -> tuple[ClaimRecord, Regime]:
        found = self._catalogue.claim(claim)
        if found.state in CLOSED:
            raise NotAllowed(f"claim {claim} is {found.state}; open a new one")
        return found, self.regime(found.regime)

    def _two_people(self, claim: int, action: str, ways: Mapping[str | None, str], by: str, reason: str) -> Claim:
        if not by.strip():
            raise InvalidInput(f"{action} without a name; say who asks (by): another person has to agree")
        with self._store.writing():
            found = self._catalogue.claim(claim)
            if found.hold not in ways:
                raise NotAllowed(f"claim {claim} has the hold {found.hold!r}; there is nothing to {action}")
            second = (action, found.hold) in (("hold", "asked"), ("release", "release-asked"))
            asked = [event.by for event in self._history(claim) if event.action in ("hold", "release")]
            if second and comparable(asked[-1]) == comparable(by):
                raise NotAllowed(f"{by} asked for this {action}; another person has to agree")
            self._write_step(claim, action, None, Note(reason, by), ways[found.hold])
        return self.show(claim)

    def _clocks(self, claim: int, rules: Regime) -> list[Clock]:
        return rules.clocks([(event.state, datetime.fromisoformat(event.at)) for event in self._history(claim)])

    def _history(self, claim: int) -> list[Event]:
        states = dict(
            self._catalogue.ask("SELECT version, json_extract(record, '$.state') FROM versions WHERE claim = ?", claim)
        )
        return [
            Event(v.version, v.at, v.action, str(states[v.version]), v.by, v.reason)
            for v in self._catalogue.versions(claim)
        ]

    def _told(self, claim: int) -> dict[str, Any]:
        """Everything that a claim tells, its latest word on each field."""
        told: dict[str, Any] = {}
        for version in self._catalogue.versions(claim):
            told |= self._catalogue.note(version.version).get("fields", {})
            told |= self._catalogue.person(version.version)
        return told

    def _personal(self, rules: Regime) -> set[str]:
        return {field.name for field in rules.fields if field.personal}

    def _held(self, source_keys: Sequence[str]) -> dict[str, int]:
        source_keys = self._catalogue.family(check_keys(source_keys, len(source_keys)))
        held = self._catalogue.held(source_keys)
        missing = [key for key in source_keys if key not in held]
        if missing:
            raise UnknownKey(f"{some_are(missing)} not in the set; `negindex status --keys` lists what is in force")
        return {key: row_id for key, (row_id, _, _) in held.items()}

    def _by_hash(self, named: Sequence[tuple[str, str]], known: set[int]) -> list[int]:
        """Rows that are held and have one of these digests, or a PDQ hash near one of these."""
        same = self._catalogue.with_content([digest for kind, digest in named if kind == "sha256"])
        found = set(self._catalogue.standing([i for ids in same.values() for i in ids]))
        pdqs = [bytes.fromhex(digest) for kind, digest in named if kind == "pdq"]
        if pdqs:
            found |= {row for _, row in listed_near(Hashes.of(pdqs), *self._catalogue.pdqs())}
        return sorted(found - known)

    def _check_can_come_back(self, claim: int, ids: Sequence[int]) -> None:
        """Raise NotAllowed where the bytes of rows are gone, and the claim has no other row under their keys."""
        gone = sorted(set(ids) - self._catalogue.placed(ids).keys())
        keys, mine = self._catalogue.source_keys(gone), set(self._catalogue.rows_of(claim))
        attached = {key for key, (row, *_) in self._catalogue.held(list(keys.values())).items() if row in mine}
        lost = [keys.get(i, f"row {i}") for i in gone if keys.get(i) not in attached]
        if lost:
            raise NotAllowed(
                f"claim {claim}: {some_are(lost)} in force no longer, and compaction gave up the bytes; attach the "
                "images again, under the same keys, then accept"
            )

    def _is_out(self, row_id: int) -> bool:
        return bool(self._catalogue.ask("SELECT 1 FROM rows WHERE id = ? AND withdrawn IS NOT NULL", row_id))

    def _check_subject(self, rules: Regime, rows: bool, keys: Sequence[str], hashes: Sequence[Any]) -> None:
        if not (rows or keys or hashes):
            raise InvalidInput("a claim on nothing; give rows, source keys or hashes")
        if rules.storage == "hash-only" and (rows or keys):
            raise NotAllowed(f"regime {rules.name} allows no copy of the content; give hashes alone")


def _hash(text: str) -> tuple[str, str]:
    kind, _, digest = text.partition(":")
    if kind not in ("sha256", "pdq") or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise InvalidInput(f"{text!r} is no content hash; give sha256: or pdq: and 64 hex digits in lower case")
    return kind, digest

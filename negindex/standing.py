"""Rows, claims and files on record, checked against what the log leaves standing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negindex.audit import Growing, matched
from negindex.log import ROW_FIELDS, SALT_BYTES, root_of, row_commitment
from negindex.logcheck import Log
from negindex.merkle import HASH_BYTES, leaf_hash
from negindex.replay import LOST

_OWED = ("file", "derived", "journal", "backup", "engine")


class OnRecord(Log):
    """The tables that say what stands now."""

    rows = 0  # that were read

    def check_standing(self) -> None:
        """Hold every table to the log, which has been gone through."""
        taken: dict[str, set[int]] = {"row": set(), "claim": set()}
        for name, check in (
            ("notes", self.find_lost),
            ("outstanding", lambda: self._check_owed(taken)),
            ("notes", lambda: self.check_words(taken["claim"])),
            ("rows", lambda: self._check_rows(taken["row"])),
            ("claims", self._check_claims),
            ("claim_rows", self._check_links),
            ("claim_hashes", lambda: self._check_hashes(taken["claim"])),
            ("blocked", lambda: self._check_blocked(bool(taken["row"] | taken["claim"]))),
            ("segments", self._check_segments),
            ("derived", lambda: self._check_derived(taken["row"])),
            ("sqlite_sequence", self._check_numbers),
        ):
            with self.section(name):
                check()

    def _check_owed(self, taken: dict[str, set[int]]) -> None:
        """What is outstanding; in a backup that is also what was erased since it was made: rows and claims."""
        for what, name in self.ask("SELECT what, name FROM outstanding WHERE what IN ('row', 'claim')"):
            if isinstance(name, str) and name.isdecimal():
                taken[what].add(int(name))
        last = self.last + any(taken.values())  # what follows the last version of a backup is an erasure
        sql = "SELECT version, what, name FROM outstanding ORDER BY version, what, name"
        for version, what, name in self.ask(sql):
            if what not in (*_OWED, *taken):
                self.faults.add("owed", f"{what!a} {name!a}", "is nothing that can be outstanding")
            elif what in _OWED and not (version in self.sealed or version == last):
                self.faults.add("owed", f"{what} {name!a}", f"is owed since version {version!a}, which is not there")
            elif what in ("journal", "backup", "engine") and not self._is_of(version, "erase", "restore"):
                self.faults.add("owed", f"{what} {name!a}", f"is owed since version {version!a}, which erased nothing")
            elif what in ("file", "derived") and not self._is_of(version, "create", "erase", "forget", "restore"):
                self.faults.add("owed", f"{what} {name!a}", f"is owed since version {version!a}, which took no bytes")

    def _is_of(self, version: int, *actions: str) -> bool:
        """Whether a version did one of these; version 0, ``create``, stands for what no version took."""
        return version not in self.sealed or self.sealed[version].action in actions

    # -- rows ------------------------------------------------------------------------------

    def _check_rows(self, taken: set[int]) -> None:
        seen = np.zeros(self.history.top + 1, bool)
        roots: dict[int, Growing] = {}
        sql = f"""SELECT id, {", ".join(ROW_FIELDS[:-1])}, png, salt, commitment, segment, place, added, withdrawn,
                  erased FROM rows LEFT JOIN thumbnails ON row = id ORDER BY id"""
        for row_id, *told in self.ask(sql):
            self.rows += 1
            if not 0 < row_id <= self.history.top or not self.history.stored[row_id]:
                self.faults.add("row", row_id, "is there, and no version stored it")
                continue
            seen[row_id] = True
            for said in self._odd(row_id, told, row_id in taken):
                self.faults.add("row", row_id, said)
            root = roots.setdefault(int(self.history.stored[row_id]), Growing())
            root.append(leaf_hash(_hash(told[8]) or b""))
        self._check_all_there(seen)
        for version in self.sealed.keys() - self.lost:
            grown = roots[version].root().hex() if version in roots else ""
            if self.sealed[version].stored_root != grown:
                self.faults.add("row", f"among those of version {version}", "has another commitment than was stored")

    def _odd(self, row_id: int, told: list[Any], taken: bool) -> Iterator[str]:
        """What is odd about one row, in words."""
        *kept, png, salt, commitment, segment, place, added, withdrawn, erased = told
        history = self.history
        for name, found in (("added", added), ("withdrawn", withdrawn), ("erased", erased)):
            wanted = int(getattr(history, name)[row_id]) or None
            if found != wanted:
                yield f"is {name} at {found!a}, and by the log at {wanted}"
        if history.erased[row_id] or taken:
            if any(value is not None for value in (*kept, png, salt, segment, place)):
                yield "was erased, and something of it is there"
            return
        if commitment == LOST and int(history.stored[row_id]) in self.lost:
            if any(value is not None for value in (*kept, png, salt, segment, place)):
                yield "was lost before a restore, and something of it is there"
            return
        if _hash(commitment) is None or _commitment(kept, png, salt) != commitment:
            yield "has another key, label, digest, quality or thumbnail than was stored"
        given_up = bool(history.dropped[row_id])
        refused = not history.added[row_id] and bool(history.withdrawn[row_id])
        if (segment is None) != (place is None) or (segment is None and not (given_up or refused)):
            yield "lies in no file, and no version gave its bytes up"
        if segment is not None and given_up:
            yield "lies in a file, and its bytes were given up"

    def _check_all_there(self, seen: NDArray[np.bool_]) -> None:
        for row_id in np.flatnonzero((self.history.stored > 0) & ~seen).tolist():
            self.faults.add("row", row_id, f"is missing; version {self.history.stored[row_id]} stored it")
        for first, last, version in self.history.beyond:
            self.faults.run("row", first, last, f"is missing; version {version} stored it")

    # -- claims ----------------------------------------------------------------------------

    def _check_claims(self) -> None:
        wanted = ((n, c.regime, c.state, c.hold) for n, c in sorted(self.history.claims.items()))
        found = self.ask("SELECT claim, regime, state, hold FROM claims ORDER BY claim")
        for number, by_log, on_record in matched(wanted, found):
            if by_log != on_record:
                said = f"is {_words(on_record)}; by the log it is {_words(by_log)}"
                self.faults.add("claim", number, said)

    def _check_links(self) -> None:
        links = self.history.links
        order = np.lexsort((links.claim, links.row))
        columns = (links.row, links.claim, links.opened, links.closed)
        wanted = ((r, c, o, x or None) for r, c, o, x in zip(*(_each(one[order]) for one in columns), strict=True))
        found = self.ask("SELECT row, claim, opened, closed FROM claim_rows ORDER BY row, claim")
        for (row, claim), by_log, on_record in matched(wanted, found, keys=2):
            if by_log != on_record:
                said = f"names row {row!a} {_span(on_record)}; by the log {_span(by_log)}"
                self.faults.add("claim", claim if isinstance(claim, int) else ascii(claim), said)

    def _check_hashes(self, taken: set[int]) -> None:
        found: dict[Any, set[str]] = {}
        for claim, kind, digest in self.ask("SELECT claim, kind, digest FROM claim_hashes"):
            found.setdefault(claim, set()).add(f"{kind}:{digest}")
        wanted = {n: h for n, h in self.hashes.items() if h and n not in taken and not self.history.claims[n].forgotten}
        for claim in found.keys() | wanted.keys():
            if found.get(claim) != wanted.get(claim):
                where = claim if isinstance(claim, int) else ascii(claim)
                self.faults.add("claim", where, "does not name the hashes that it named when it was opened")

    def _check_blocked(self, purged: bool) -> None:
        """Fingerprints; those that a backup has of erasures after its own last version are known by no record."""
        found = self.ask("SELECT version, fingerprint FROM blocked ORDER BY version, fingerprint")
        sets = ((version, [one for _, one in some]) for version, some in groupby(found, key=lambda row: row[0]))
        wanted = ((version, said.kept_out) for version, said in self.sealed.items() if said.kept_out)
        for version, root, prints in matched(wanted, sets):
            later = purged and root is None and version > self.last
            lost = prints is None and version in self.lost
            if not (later or lost) and (prints is None or root is None or _root(prints[0]) != root[0]):
                said = "are not those that its record commits to"
                self.faults.add("blocked", f"fingerprints of version {version!a}", said)

    # -- files and numbers -----------------------------------------------------------------

    def _check_segments(self) -> None:
        sql = """SELECT segment, file, rows, first, last, held, least, most, low, high FROM segments LEFT JOIN
                 (SELECT segment, count(*) held, min(added) least, max(added) most, min(place) low, max(place) high
                  FROM rows WHERE segment IS NOT NULL GROUP BY segment) USING (segment) ORDER BY segment"""
        for _, file, rows, first, last, held, least, most, low, high in self.ask(sql):
            name = ascii(file)[1:-1]
            if (rows, 0, rows) != (held, low, high + 1 if isinstance(high, int) else None):
                self.faults.add("segment", name, f"is on record with {rows!a} rows, and {held or 0} lie in it")
            if (first, last) != (least, most):
                said = f"is on record with rows of versions {first!a} to {last!a}; they are of {least} to {most}"
                self.faults.add("segment", name, said)

        sql = "SELECT DISTINCT segment FROM rows WHERE segment NOT IN (SELECT segment FROM segments) ORDER BY segment"
        for (segment,) in self.ask(sql):
            self.faults.add("segment", f"number {segment!a}", "is not on record, and rows are said to lie in it")

    def _check_derived(self, taken: set[int]) -> None:
        """Calibrations are those that versions tell of, but for the ones that saw a row that was erased since."""
        wanted = {version: told for version, told in self._calibrated() if not self._erased_of(told[2], taken)}
        found, kernels = {}, {told[0] for told in wanted.values()}
        for file, kind, kernel, sha256, covers, since in self.ask(
            "SELECT file, kind, kernel, sha256, covers, since FROM derived ORDER BY since, file"
        ):
            if kind == "calibration":
                found[since] = (kernel, sha256, covers)
            elif kind != "index" or kernel not in kernels or covers not in self.sealed:
                said = f"is on record as {kind!a} by kernel {kernel!a} of version {covers!a}, following from nothing"
                self.faults.add("derived", ascii(file)[1:-1], said)
        for version in sorted(found.keys() | wanted.keys(), key=str):
            if found.get(version) != wanted.get(version):
                said = f"is {found.get(version, 'not there')!a}; by the log it is {wanted.get(version, 'not there')!a}"
                self.faults.add("derived", f"calibration of version {version!a}", said)

    def _calibrated(self) -> Iterator[tuple[int, tuple[Any, Any, Any]]]:
        """(version, (kernel, sha256 of its file, version that it saw)) of every calibration that has its words."""
        for version, said in self.sealed.items():
            if said.action == "calibrate" and version not in self.lost:
                for (body,) in self.ask("SELECT body FROM notes WHERE version = ?", version):
                    told = _told(body)
                    yield version, (told.get("kernel"), told.get("sha256"), told.get("seen"))

    def _erased_of(self, version: Any, taken: set[int]) -> bool:
        """Whether a row that was in force at a version is erased."""
        history = self.history
        if type(version) is not int:
            return False
        saw = (history.added > 0) & (history.added <= version)
        saw &= (history.withdrawn == 0) | (history.withdrawn > version)
        gone = history.erased > 0
        gone[[row for row in taken if row <= history.top]] = True
        return bool((saw & gone).any())

    def _check_numbers(self) -> None:
        """The numbers that are never given twice."""
        ((segment,),) = self.ask("SELECT max(segment) FROM segments")
        stored = [*np.flatnonzero(self.history.stored)[-1:].tolist(), *(last for _, last, _ in self.history.beyond)]
        wanted = {"rows": max(stored, default=0), "claims": max(self.history.claims, default=0)}
        found = dict(self.ask("SELECT name, seq FROM sqlite_sequence"))
        for name in sorted(found.keys() | wanted.keys() | {"segments"}, key=str):
            number = found.get(name, 0)
            if name == "segments":
                good = isinstance(number, int) and number >= (segment or 0)
            else:
                good = number == wanted.get(name)
            if not good:
                said = f"is at {number!a}, which is not the last number that was given"
                self.faults.add("catalogue", f"sqlite_sequence {name!a}", said)


def _commitment(kept: list[Any], png: Any, salt: Any) -> str | None:
    """A row's commitment, from what is kept of it; None where that is not of the right kinds."""
    if not isinstance(salt, bytes) or len(salt) != SALT_BYTES:
        return None
    fields = dict(zip(ROW_FIELDS, [*kept, None], strict=True))
    try:
        fields["pdq"] = None if fields["pdq"] is None else bytes.hex(fields["pdq"])
        fields["thumbnail"] = None if png is None else hashlib.sha256(png).hexdigest()
        return row_commitment(salt, fields)
    except (TypeError, ValueError):  # bytes for text or the other way about, or no UTF-8
        return None


def _told(body: Any) -> dict[str, Any]:
    """A note's words; {} where they cannot be read, which is told elsewhere."""
    try:
        return dict(json.loads(body))
    except (TypeError, ValueError, RecursionError):
        return {}


def _hash(text: Any) -> bytes | None:
    """The bytes of 64 hex digits in lower case."""
    try:
        found = bytes.fromhex(text)
    except (TypeError, ValueError):
        return None
    return found if len(found) == HASH_BYTES and found.hex() == text else None


def _root(fingerprints: list[Any]) -> str | None:
    return None if any(_hash(one) is None for one in fingerprints) else root_of(fingerprints)


def _each(column: NDArray[np.int64]) -> Iterator[int]:
    """The numbers one by one, a piece at a time."""
    for start in range(0, len(column), 1 << 16):
        yield from column[start : start + (1 << 16)].tolist()


def _words(claim: tuple[Any, ...] | None) -> str:
    return "not there" if claim is None else f"under {claim[0]!a}, {claim[1]!a}, with hold {claim[2]!a}"


def _span(link: tuple[Any, ...] | None) -> str:
    return "never" if link is None else f"from version {link[0]!a} until {link[1]!a}"

"""What the record tells of other versions: how claims stood, what changed in between, what lies there dead."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from negindex.catalogue import Catalogue
from negindex.schema import IN_HOUSE, LIVE
from negindex.states import ClaimRecord
from negindex.upkeep import ON_HOLD


class Difference(NamedTuple):
    """What one version has and another has not."""

    entered: dict[int, str | None]  # id: source key, None once the row is erased
    left: dict[int, str | None]
    claims: list[tuple[ClaimRecord | None, ClaimRecord | None]]  # before and after; None where there was no such claim


class Dead(NamedTuple):
    """Rows that are out of force and lie in the files still."""

    rows: int
    bytes: int


def difference(catalogue: Catalogue, before: int, after: int) -> Difference:
    """What changed from one version to another, whichever is the older. Raises UnknownVersion."""
    with catalogue.reading():
        rows = [dict(catalogue.in_force_at(catalogue.version(v).version)) for v in (before, after)]
        claims = [claims_at(catalogue, version) for version in (before, after)]
    pairs = [(claims[0].get(number), claims[1].get(number)) for number in sorted(claims[0].keys() | claims[1].keys())]
    return Difference(
        {i: key for i, key in rows[1].items() if i not in rows[0]},
        {i: key for i, key in rows[0].items() if i not in rows[1]},
        [(old, new) for old, new in pairs if old != new],
    )


def claims_at(catalogue: Catalogue, version: int) -> dict[int, ClaimRecord]:
    """{number: how the claim stood}. Raises UnknownVersion.

    A claim whose last row went with somebody else's change has no record of its own end: its rows tell.
    """
    sql = """SELECT claim, json_extract(record, '$.regime'), json_extract(record, '$.state'),
             json_extract(record, '$.hold'), max(version) FROM versions WHERE claim IS NOT NULL AND version <= ?
             GROUP BY claim ORDER BY claim"""
    with catalogue.reading():
        catalogue.version(version)
        found = {row[0]: ClaimRecord(*row[:4]) for row in catalogue.ask(sql, version)}
        emptied, erased = _emptied(catalogue, version), _erased(catalogue, version)
    for number, claim in found.items():
        if number in erased:
            found[number] = claim._replace(state="erased", hold=None)
        elif number in emptied and claim.regime == IN_HOUSE and claim.state in LIVE:
            found[number] = claim._replace(state="withdrawn")
    return found


def dead(catalogue: Catalogue, before: int) -> Dead:
    """What a compaction gives up that forgets the versions before one."""
    sql = f"""SELECT count(*), coalesce(sum(? + 2 * embedding), 0) FROM rows JOIN segments USING (segment)
              WHERE (withdrawn <= ? OR (withdrawn IS NOT NULL AND added IS NULL)) AND NOT {ON_HOLD}"""
    row_bytes = prod(catalogue.meta.shape) * np.dtype(catalogue.meta.dtype).itemsize
    return Dead(*catalogue.ask(sql, row_bytes, before)[0])


def _emptied(catalogue: Catalogue, version: int) -> set[int]:
    """Claims that named rows, and by this version none any more."""
    sql = "SELECT claim FROM claim_rows GROUP BY claim HAVING count(*) = count(closed) AND max(closed) <= ?"
    return {claim for (claim,) in catalogue.ask(sql, version)}


def _erased(catalogue: Catalogue, version: int) -> set[int]:
    """Claims that ended with the erasure of the last row that they ever named, by this version."""
    sql = """SELECT claim FROM claims JOIN claim_rows USING (claim) JOIN rows ON rows.id = row WHERE state = 'erased'
             GROUP BY claim HAVING max(erased) <= ?"""
    return {claim for (claim,) in catalogue.ask(sql, version)}

"""Where rows lie: files are merged as they pile up, and rewritten without what is erased or given up.

A change of place is no change of the set: no version, nothing in the log. Sizes go in tiers, each sixteen times
the one below; sixteen files of a tier become one, so a row is rewritten once a tier, whatever the set's size.
Withdrawn rows move to files of their own: an old version can still be opened, and the newest never reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import log

import numpy as np
from numpy.typing import NDArray

from negindex.catalogue import Catalogue
from negindex.segment import SEGMENT_BYTES
from negindex.segments import Segments
from negindex.states import SegmentRecord

TIER = 16
AT_ONCE = 16 << 20  # bytes that a change may rewrite on the side
ON_HOLD = """EXISTS (SELECT 1 FROM claim_rows JOIN claims USING (claim)
              WHERE row = rows.id AND hold IN ('held', 'release-asked'))"""
MOSTLY_DEAD = 0.25  # share of withdrawn rows above which ``compact`` rewrites a file


def due(files: Sequence[SegmentRecord], most: int) -> list[SegmentRecord]:
    """The smallest tier of files that is full, unless they are more than ``most`` bytes; [] when none is."""
    tiers: dict[tuple[int, int], list[SegmentRecord]] = {}
    for file in files:
        if 2 * file.bytes <= SEGMENT_BYTES:
            tiers.setdefault((int(log(max(1, file.rows), TIER) + 1e-9), file.embedding), []).append(file)
    for _, tier in sorted(tiers.items()):
        chosen = tier[: TIER * (len(tier) // TIER)]
        while chosen and sum(file.bytes for file in chosen) > most:
            chosen = chosen[:-TIER]
        if chosen:
            return chosen
    return []


def mostly_dead(catalogue: Catalogue) -> list[SegmentRecord]:
    """Files that hold rows in force beside many that are not."""
    sql = """SELECT segments.*, count(withdrawn) FROM segments JOIN rows USING (segment)
             GROUP BY segment HAVING count(withdrawn) BETWEEN ? * count(*) AND count(*) - 1"""
    return [SegmentRecord(*row[:-1]) for row in catalogue.ask(sql, MOSTLY_DEAD)]


def rewritten(
    catalogue: Catalogue, segments: Segments, files: Sequence[SegmentRecord], without: Collection[int] = ()
) -> list[tuple[SegmentRecord, list[int]]]:
    """What ``files`` hold, but for some rows, sealed in new files, each with its ids in order.

    What is in force, or proposed, lies apart from what no longer is.
    """
    live: list[tuple[SegmentRecord, NDArray[np.int64]]] = []
    past: list[tuple[SegmentRecord, NDArray[np.int64]]] = []
    gone = set(without)
    for file in files:
        held = catalogue.ask("SELECT id, place, withdrawn FROM rows WHERE segment = ? ORDER BY place", file.segment)
        for found, wanted in ((live, True), (past, False)):
            places = [place for row_id, place, left in held if (left is None) == wanted and row_id not in gone]
            if places:
                found.append((file, np.array(places, np.int64)))
    return [*segments.rewrite(live), *segments.rewrite(past)]


def never_in_force(catalogue: Catalogue) -> list[int]:
    """Rows that were proposed and refused, which no version ever read, but for those that a legal hold keeps."""
    sql = f"""SELECT id FROM rows WHERE added IS NULL AND withdrawn IS NOT NULL AND segment IS NOT NULL
              AND NOT {ON_HOLD} ORDER BY id"""
    return _ids(catalogue.ask(sql))


def withdrawn_by(catalogue: Catalogue, version: int) -> list[int]:
    """Rows that only versions before this one read, but for those that a legal hold keeps."""
    sql = f"""SELECT id FROM rows WHERE withdrawn <= ? AND added IS NOT NULL AND segment IS NOT NULL
              AND NOT {ON_HOLD} ORDER BY id"""
    return _ids(catalogue.ask(sql, version))


def files_of(catalogue: Catalogue, ids: Sequence[int]) -> list[SegmentRecord]:
    """The files in which rows lie."""
    numbers = {segment for segment, _ in catalogue.placed(ids).values()}
    return [file for file in catalogue.segments() if file.segment in numbers]


def _ids(found: Iterable[tuple[int]]) -> list[int]:
    return [row_id for (row_id,) in found]

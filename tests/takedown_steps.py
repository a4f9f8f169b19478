"""One of each change of a takedown set, and everything that a change may alter: for tests that make it fail."""

import numpy as np
from claim_model import SHAPE, content, filled, row

from negindex import Collection
from negindex.states import Provenance

TIER = 9  # of these files are merged to one; sixteen as it comes
LATE = content(901)[1]  # the image of row 901, which comes late


def rows(*numbers):
    return np.stack([row(n) for n in numbers])


def told(name, *states):
    return filled(name, *states)


def prepared(path):
    """Claims 1 to 10 in all sorts of states on a few rows, and files enough that the next one has them merged."""
    col = Collection.create(path, SHAPE, "pixels")
    claims, notice = col.claims, told("dmca", "accepted")
    col.add(rows(0, 1, 2, 3), list("abcd"))  # claim 1
    col.add(rows(4), ["e"])
    for number, key in ((5, "p"), (6, "q"), (7, "r")):  # 3 received, 4 in force, 5 disputed
        claims.open("dmca", notice, rows=rows(number), source_keys=[key])
    claims.accept(4)
    claims.accept(5)
    claims.dispute(5, fields=told("dmca", "disputed"))
    claims.open("dmca", notice, source_keys=["e"])  # 6: on a row that is withdrawn meanwhile
    col.withdraw(["d", "e"], "mistaken")
    claims.open("take-it-down", told("take-it-down", "accepted"), hashes=[f"sha256:{LATE}"])  # 7: waits
    claims.accept(7)
    claims.open("gdpr-erasure", told("gdpr-erasure", "accepted"), source_keys=["b"])  # 8
    claims.accept(8)
    claims.hold(1, by="ann")
    claims.open("dmca", notice, hashes=["sha256:" + "ef" * 32])  # 9: withdrawn, about no row
    claims.withdraw(9)
    claims.open("dmca", {}, source_keys=["c"])  # 10: incomplete
    for i in range(20, 23):
        col.add(rows(i), [f"row-{i}"])
    assert len(col.segments()) == TIER - 1
    col.close()
    return path


CHANGES = {
    "add": lambda col: col.add(rows(900), ["new"], label="late"),
    "add what a claim waits for": lambda col: col.add(rows(901), ["new"], sources=[Provenance(image_sha256=LATE)]),
    "withdraw": lambda col: col.withdraw(["row-20", "row-21"], "mistaken"),
    "open on rows": lambda col: col.claims.open("dmca", {"work": "w"}, rows=rows(900), source_keys=["new"]),
    "open on keys": lambda col: col.claims.open("dsa", {}, source_keys=["a", "p"]),
    "open by hash": lambda col: col.claims.open("dmca", {}, hashes=[f"sha256:{content(2)[0]}"]),
    "amend": lambda col: col.claims.amend(10, told("dmca", "accepted")),
    "attach": lambda col: col.claims.attach(4, rows(900), ["new"]),
    "accept": lambda col: col.claims.accept(3),
    "accept on a withdrawn row": lambda col: col.claims.accept(6),
    "dispute": lambda col: col.claims.dispute(4, fields=told("dmca", "disputed")),
    "stay": lambda col: col.claims.stay(5, fields=told("dmca", "stayed")),
    "uphold": lambda col: col.claims.uphold(5),
    "withdraw a claim": lambda col: col.claims.withdraw(4),
    "refuse": lambda col: col.claims.withdraw(3),
    "erase": lambda col: col.erase(["row-20", "row-22"], "asked for", keep_out=True),
    "erase a claim": lambda col: col.claims.erase(8, fields=told("gdpr-erasure", "erased")),
    "erase a claim on nothing": lambda col: col.claims.erase(9),
    "hold": lambda col: col.claims.hold(1, by="ben"),
    "compact": lambda col: col.compact(),
    "forget": lambda col: col.compact(forget_before=col.newest().version),
}


def everything(col):
    """What a change may alter, but for times, salts and places."""
    claims = [
        (one, _claim(col, one.claim)) for one in col.claims.every() if one.claim <= 10 or one.regime != "in-house"
    ]
    history = [(v.action, v.changed, v.in_force, v.claim, v.by, v.reason) for v in col.versions()]
    return history, col.in_force(), col.digests(), claims, [_opens(col, version) for version in (1, 12)]


def _claim(col, number):
    one = col.claims.show(number)
    steps = [(event.version, event.action, event.state) for event in one.history]
    return one.rows, one.fields, one.missing, one.hashes, steps, col.claims.claimant(number)


def _opens(col, version):
    try:
        return sorted(col.snapshot(version).digests())
    except LookupError as error:
        return type(error).__name__

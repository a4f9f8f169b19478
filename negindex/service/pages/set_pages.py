"""A set as a whole: which there are, how one stands, its history, and what was in force when."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request, Response

from negindex.checkpoint import Checkpoint
from negindex.collection import Collection
from negindex.errors import Erased, InvalidInput, NegindexError
from negindex.keys import PublicKey
from negindex.schema import CLOSED
from negindex.service.pages.claim_pages import SETS
from negindex.service.pages.noted import reveals
from negindex.service.pages.plot import calibration_svg
from negindex.service.pages.rendering import HOME, PageRoute, page
from negindex.service.pages.visits import AUDITORS, READERS, caller_of, collection_of, visited_by
from negindex.service.state import state_of
from negindex.states import Version

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_VERSIONS, _ROWS = 100, 200  # of one page
Start = Annotated[int, Query(ge=0, le=1 << 53)]


class Summary(NamedTuple):
    """A set in the list."""

    name: str
    newest: Version | None  # None where it cannot be read
    open_claims: int
    next_due: Any


@router.get(HOME, **visited_by(*READERS))
def sets(request: Request) -> Response:
    """The sets that the key is for."""
    known, caller = state_of(request).sets, caller_of(request)
    found = [_summary(request, name) for name in known.names() if caller.may(READERS, name)]
    return page(request, "sets.html", found=found)


@router.get(f"{SETS}/status", **visited_by(*READERS))
def status(request: Request) -> Response:
    """Size, versions, index, compaction, calibration."""
    collection = collection_of(request)
    calibration, unindexed = collection.calibration(), collection.unindexed()
    files, dead, newest = collection.segments(), collection.dead(), collection.newest()
    signs = state_of(request).signs
    waiting = [one._asdict() | {"holders": collection.holders(one)} for one in collection.outstanding()]
    said = {
        "Set": collection.set_id,
        "Version": newest.version,
        "Rows in force": newest.in_force,
        "Rows proposed": sum(file.rows for file in files) - newest.in_force - dead.rows,
        "Rows withdrawn, bytes still there": dead.rows,
        "Rows are": f"{' × '.join(map(str, collection.shape))}, {collection.space}, {collection.dtype}",
        "Files": len(files),
        "Rows in the index": 0 if unindexed is None else newest.in_force - unindexed,
        "Rows scanned beside it": newest.in_force if unindexed is None else unindexed,
        "Embeddings by": collection.embedded_by or "none",
        "Newest version signed by": _signed_by(collection.checkpoint(newest.version)),
        "Changes made here are signed by": _key_said(None if signs is None else signs.public),
    }
    sizes = {"Bytes of files": sum(file.bytes for file in files), "Bytes that compaction may give up": dead.bytes}
    states = Counter(claim.state for claim in collection.claims.every())
    svg = None if calibration is None else calibration_svg(calibration)
    return page(
        request, "status.html", said=said, sizes=sizes, states=states, calibration=calibration, svg=svg,
        waiting=waiting, newest=newest,
    )  # fmt: skip


@router.get(f"{SETS}/history", **visited_by(*READERS))
def history(request: Request, at: str = "", before: Start | None = None, start: Start = 0) -> Response:
    """Every version, newest first; and with ``at``, a version or a time, what was in force then."""
    collection = collection_of(request)
    versions = [one for one in reversed(collection.versions()) if before is None or one.version < before]
    more = versions[_VERSIONS - 1].version if len(versions) > _VERSIONS else None
    then = _then(collection, version_asked(collection, at), start) if at.strip() else None
    return page(request, "history.html", versions=versions[:_VERSIONS], more=more, at=at.strip(), then=then)


@router.get(f"{HOME}/reveals", **visited_by(*AUDITORS))
def looked_at(request: Request) -> Response:
    """Who looked at what, the last first."""
    caller = caller_of(request)
    found = [one for one in reveals(state_of(request).settings.root) if caller.may(AUDITORS, one.set)]
    return page(request, "reveals.html", found=found)


def version_asked(collection: Collection, text: str) -> Version:
    """The version that a number or a time names; a time without a zone is UTC. Raises UnknownVersion, InvalidInput."""
    said = text.strip()
    if said.isascii() and said.isdecimal() and len(said) < 16:
        return collection.version(int(said))
    try:
        at = datetime.fromisoformat(said)
        return collection.version_at(at if at.utcoffset() is not None else at.replace(tzinfo=UTC))
    except (ValueError, OverflowError) as error:
        if isinstance(error, NegindexError):
            raise
        raise InvalidInput(
            f"{said[:60]!r} is neither a version nor a time; give a number, or ISO 8601 such as 2026-05-19T09:30+02:00"
        ) from error


def _signed_by(checkpoint: Checkpoint) -> str:
    return _key_said(PublicKey.from_text(checkpoint.public_key) if checkpoint.signature else None)


def _key_said(public: PublicKey | None) -> str:
    return "nobody" if public is None else f"key {public.id}"


def _summary(request: Request, name: str) -> Summary:
    try:
        collection = state_of(request).sets.get(name).collection
        open_claims = sum(
            claim.state not in CLOSED and claim.regime != "in-house" for claim in collection.claims.every()
        )
        return Summary(name, collection.newest(), open_claims, next(iter(collection.claims.due()), None))
    except (NegindexError, OSError):
        return Summary(name, None, 0, None)


def _then(collection: Collection, version: Version, start: int) -> dict[str, Any]:
    rows = sorted(collection.in_force(version.version).items())
    try:
        collection.check_readable(version.version)
        closed = ""
    except Erased as erased:
        closed = str(erased)
    newest = collection.newest().version
    until = collection.version(version.version + 1).at if version.version < newest else None
    claims = [one for one in collection.claims_at(version.version).values() if one.state not in CLOSED]
    following = start + _ROWS if len(rows) > start + _ROWS else None
    return {
        "version": version, "until": until, "rows": rows[start : start + _ROWS], "many": len(rows), "closed": closed,
        "claims": claims, "start": start, "following": following,
    }  # fmt: skip

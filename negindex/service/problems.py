"""Errors on their way through HTTP: a class becomes a status and a problem document (RFC 9457), and a class again."""

from __future__ import annotations

import json
from typing import Any

from negindex import errors
from negindex.errors import (
    Damaged,
    EmptySet,
    EngineBehind,
    Erased,
    InvalidInput,
    Locked,
    NegindexError,
    NotAllowed,
    NotThere,
    Unreachable,
)

MEDIA_TYPE = "application/problem+json"
SAY_ALL = "say-all"  # a kernel or a view was named that this worker does not know: send it whole
_STATUS: tuple[tuple[type[NegindexError], int], ...] = (  # the first that fits
    (Erased, 410),
    (EmptySet, 409),
    (NotThere, 404),
    (InvalidInput, 422),
    (NotAllowed, 403),
    (Locked, 503),
    (Unreachable, 503),
    (EngineBehind, 503),
)
_CODES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, NegindexError) and kind is not NegindexError
}
_BY_STATUS: dict[int, type[NegindexError]] = {401: NotAllowed, 403: NotAllowed, 404: NotThere, 410: Erased}
_WORDS = 2000  # characters of a message that are passed on


def status_of(error: NegindexError) -> int:
    """The HTTP status of an error; 500 where the fault is the service's own."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def problem(status: int, title: str, detail: str, code: str = "") -> dict[str, Any]:
    """A problem document; code: the class of the error, which clients raise again."""
    return {"type": "about:blank", "title": title, "status": status, "detail": detail[:_WORDS], "code": code}


def error_from(status: int, body: bytes | bytearray, where: str) -> NegindexError:
    """The error that an answer stands for; one that is no problem document goes by its status.

    Only classes of this package are ever made of it, and the message is taken as words, nothing else.
    """
    try:
        said = json.loads(body)
        code, detail = str(said["code"]), str(said["detail"])[:_WORDS]
    except (ValueError, TypeError, KeyError, RecursionError):
        code, detail = "", "no reason was given"
    kind = _CODES.get(code)
    if kind is Damaged:
        return Damaged(f"{where} cannot read its set: {detail}")
    if kind is not None:
        return kind(detail)
    if status in _BY_STATUS:
        return _BY_STATUS[status](f"{where}: {detail} (HTTP {status})")
    if status in (400, 411, 413, 415, 422, 431):
        return InvalidInput(f"{where} did not take the request: {detail} (HTTP {status})")
    return Unreachable(f"{where} did not answer: {detail} (HTTP {status}); try again, or see to the service")

"""Receipts: pasted or dropped, and checked line by line by the functions that `negindex prove` uses."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Request, Response

from negindex.errors import Damaged, InvalidInput, NegindexError
from negindex.log import Record
from negindex.offline import FALSE, HOLDS, UNTOLD, Line
from negindex.proof import prove
from negindex.receipts import Receipt
from negindex.service.pages.claiming import one_at_a_time
from negindex.service.pages.forms import Form, TheForm
from negindex.service.pages.images import Upload
from negindex.service.pages.rendering import HOME, PageRoute, page
from negindex.service.pages.visits import READERS, caller_of, images_of, visited_by
from negindex.service.state import state_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_PNG = b"\x89PNG"
_ORDER = (FALSE, UNTOLD, HOLDS)


@router.get(f"{HOME}/receipts", **visited_by(*READERS))
def ask(request: Request) -> Response:
    """The form."""
    return page(request, "receipts.html", lines=None, receipt=None, signs=state_of(request).signs)


@router.post(f"{HOME}/receipts", **visited_by(*READERS))
def check(request: Request, form: TheForm) -> Response:
    """What stands of a receipt, with the logs of those of its sets that are here and that the key is for.

    Of who signed, only the service's own key is known.
    """
    try:
        receipt, matches = _given(request, form)
    except Damaged as error:  # the visitor's file is, nothing of the service's
        raise InvalidInput(str(error)) from error
    signs = state_of(request).signs
    lines = prove(receipt, _logs(request, receipt), public=[] if signs is None else [signs.public])
    if matches is not None:
        verdict = HOLDS if matches else FALSE
        lines = [line for line in lines if not line[1].startswith("image: ")]
        lines.append((verdict, "image: has the very pixels that the receipt speaks of"))
    lines.sort(key=lambda line: _ORDER.index(line[0]))
    return page(request, "receipts.html", lines=lines, receipt=receipt, verdict=_verdict(lines), signs=signs)


def _given(request: Request, form: Form) -> tuple[Receipt, bool | None]:
    """The receipt, and whether the image that held it is the one that it speaks of."""
    files, text = form.uploads("files"), form.one("text")
    if bool(text) + len(files) != 1:
        raise InvalidInput(f"{len(files) + bool(text)} receipts; paste one, or drop one file")
    if text:
        return Receipt.from_json(text), None
    if files[0].content.startswith(_PNG):
        with one_at_a_time(request):
            return images_of(request).receipt(files[0])
    return Receipt.from_json(_text(files[0])), None


def _text(file: Upload) -> str:
    try:
        return file.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Damaged(f"{file.name} is neither a PNG nor text ({error.reason}); give a receipt") from error


def _logs(request: Request, receipt: Receipt) -> list[list[Record]]:
    """The logs of the receipt's sets; a set that cannot be read is as one that is not here."""
    known, caller = state_of(request).sets, caller_of(request)
    wanted = {stated.set_id.partition("#")[0] for stated in (*receipt.sets, *receipt.reference)}
    found: dict[str, list[Record]] = {}
    for name in [one for one in known.names() if caller.may(READERS, one)]:
        with suppress(NegindexError):
            collection = known.get(name).collection
            if collection.set_id in wanted:
                found.setdefault(collection.set_id, collection.log())
    return list(found.values())


def _verdict(lines: list[Line]) -> str:
    """The worst of them."""
    return min((verdict for verdict, _ in lines), key=_ORDER.index)

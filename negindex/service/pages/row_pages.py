"""Rows as items that people look at: the record of one, its picture when it is asked for, and search by image."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from negindex.errors import InvalidInput, NotThere
from negindex.service.pages.claim_pages import SETS
from negindex.service.pages.claiming import one_at_a_time
from negindex.service.pages.forms import TheForm
from negindex.service.pages.images import Picture
from negindex.service.pages.noted import note_reveal
from negindex.service.pages.rendering import PageRoute, data_url, page
from negindex.service.pages.visits import (
    HANDLERS,
    READERS,
    caller_of,
    collection_of,
    images_of,
    maker_of,
    takes_images,
    visited_by,
)
from negindex.service.state import state_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)
Row = Annotated[int, Path(ge=0, le=1 << 53)]
NEAREST = 8
UNITS = {"pdq": "{:.0f} bits", "embedding": "1 - cosine {:.4f}", "space": "rms {:.4f}"}


@router.get(f"{SETS}/rows/{{row}}", **visited_by(*READERS))
def item(request: Request, row: Row) -> Response:
    """One row: what the record says, since which versions, under which claims."""
    return _item(request, row, None)


@router.get(f"{SETS}/rows/{{row}}/blurred", **visited_by(*HANDLERS))
def blurred(request: Request, row: Row) -> Response:
    """A picture that shows no more than colours."""
    return Response(_picture(request, row).blurred, media_type="image/png")


@router.post(f"{SETS}/rows/{{row}}/reveal", **visited_by(*HANDLERS))
def reveal(request: Request, row: Row, form: TheForm) -> Response:
    """The picture; that it was asked for is written down first. For a script as JSON, else as the row's page."""
    found = _picture(request, row)
    name = request.path_params["name"]
    note_reveal(state_of(request).settings.root, caller_of(request).id, "row", name, row)
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"picture": data_url(found.clear)})
    return _item(request, row, data_url(found.clear))


@router.get(f"{SETS}/search", **visited_by(*HANDLERS))
def ask(request: Request) -> Response:
    """The form."""
    return page(request, "search.html", found=None, units=UNITS, file="", takes_images=takes_images(request))


@router.post(f"{SETS}/search", **visited_by(*HANDLERS))
def search(request: Request, form: TheForm) -> Response:
    """The rows nearest to an image, by each way of comparing."""
    files = form.uploads("files")
    if len(files) != 1:
        raise InvalidInput(f"{len(files)} images; give one")
    collection = collection_of(request)
    if not len(collection):
        raise NotThere("no row is in force: there is nothing to compare with")
    with one_at_a_time(request):
        found = images_of(request).nearest(collection, files[0], NEAREST, maker_of(request))
    own = data_url(found.picture.blurred), data_url(found.picture.clear)
    return page(
        request, "search.html", found=found, own=own, units=UNITS, file=files[0].name,
        takes_images=takes_images(request),
    )  # fmt: skip


def _item(request: Request, row: int, picture: str | None) -> Response:
    collection = collection_of(request)
    record = collection.row(row)
    numbers = (record.added, record.withdrawn, record.erased)
    versions = {number: collection.version(number).at for number in numbers if number is not None}
    return page(
        request, "item.html", record=record, versions=versions, picture=picture,
        claims=collection.claims_on([row], ever=True).get(row, []), sees=caller_of(request).may(HANDLERS),
        live=[one.claim for one in collection.claims_on([row]).get(row, [])],
    )  # fmt: skip


def _picture(request: Request, row: int) -> Picture:
    collection = collection_of(request)
    collection.row(row)
    found = images_of(request).picture(collection, row)
    if found is None:
        raise NotThere(f"row {row} cannot be seen: its bytes are gone, or it is latents without a thumbnail")
    return found

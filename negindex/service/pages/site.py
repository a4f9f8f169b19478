"""All pages together, and the files that they load."""

from __future__ import annotations

from fastapi import APIRouter, Response

from negindex.service.limits import Refused
from negindex.service.pages import claim_pages, claiming, login, provided, receipt_pages, row_pages, set_pages
from negindex.service.pages.rendering import HERE, HOME, PageRoute, go

_TYPES = {
    "pages.css": "text/css; charset=utf-8",
    "pages.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_FILES = {name: (HERE / "static" / name).read_bytes() for name in _TYPES}
router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/")
def first() -> Response:
    """The pages."""
    return go(HOME)


@router.get(f"{HOME}/static/{{file}}")
def static(file: str) -> Response:
    """The style sheet, the script, the icon."""
    if file not in _FILES:
        raise Refused(404, "there is no such file", "NotThere")
    return Response(_FILES[file], media_type=_TYPES[file])


for _part in (login, provided, set_pages, claim_pages, claiming, row_pages, receipt_pages):
    router.include_router(_part.router)

"""Forms as they come: in memory alone, within limits, and of this session."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar

from fastapi import Depends, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from negindex.errors import InvalidInput, OutOfRange
from negindex.regimes import Regime
from negindex.service.limits import read_body
from negindex.service.pages.images import Upload
from negindex.service.pages.rendering import sessions_of
from negindex.service.state import state_of

URLENCODED, MULTIPART = KINDS = ("application/x-www-form-urlencoded", "multipart/form-data")
FILES = 32  # of one form
FIELDS = 1000
FIELD = "field."  # before the names of a claim's fields
_NAME = 120  # characters of a file's name that are kept, the last ones
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Form:
    """What was filled in."""

    values: Mapping[str, list[str]]
    files: Mapping[str, list[Upload]]

    def one(self, name: str, otherwise: str = "") -> str:
        """A field's last value, without spaces around it."""
        return self.values.get(name, [otherwise])[-1].strip()

    def many(self, name: str) -> list[str]:
        """All of a field's values that are not blank."""
        return [value.strip() for value in self.values.get(name, []) if value.strip()]

    def lines(self, name: str) -> list[str]:
        """A field's lines that are not blank."""
        return [line.strip() for line in self.one(name).splitlines() if line.strip()]

    def numbers(self, name: str) -> list[int]:
        """All of a field's values as whole numbers. Raises InvalidInput."""
        found = self.many(name)
        if wrong := [one for one in found if not (one.isascii() and one.isdecimal() and len(one) < 16)]:
            raise InvalidInput(f"{name}: {wrong[0][:40]!r} is no whole number")
        return [int(one) for one in found]

    def uploads(self, name: str) -> list[Upload]:
        """Files under a name, each by a name of its own; an empty input is none. Raises OutOfRange for too many."""
        found = [file for file in self.files.get(name, []) if file.content or file.name]
        if len(found) > FILES:
            raise OutOfRange(f"{len(found)} files, at most {FILES} at once; send them in parts")
        taken: dict[str, Upload] = {}
        for file in found:
            key, number = file_name(file.name), 2
            while key in taken:
                key, number = f"{number}-{file_name(file.name)}", number + 1
            taken[key] = Upload(key, file.content)
        return list(taken.values())

    def told(self, rules: Regime) -> dict[str, Any]:
        """{field: value} of a claim's fields; what is left empty is not told. Raises InvalidInput for unknown ones."""
        said = {name.removeprefix(FIELD): self.one(name) for name in self.values if name.startswith(FIELD)}
        said = {name: value for name, value in said.items() if value}
        rules.apart(said)
        return said


async def read_form(request: Request) -> Form:
    """The form of a request. Raises Refused for one too large or too slow, InvalidInput, and NotAllowed without the
    session's token.
    """
    form = await parsed(request)
    sessions_of(request).check_token(request.state.session.nonce, form.one("token"))
    return form


async def parsed(request: Request, most: int | None = None) -> Form:
    """The same, before anybody asked whose it is. most: bytes, where they are fewer than the service's limit."""
    state = state_of(request)
    most = min(most or state.settings.body_bytes, state.settings.body_bytes)
    body = await read_body(request, most, state.settings.body_seconds, state.room, KINDS)
    try:
        found = await _Whole.of(request, bytes(body), most).parse()
    except (MultiPartException, ValueError) as error:
        raise InvalidInput(f"a form that cannot be read ({error}); send it again") from error
    values: dict[str, list[str]] = {}
    files: dict[str, list[Upload]] = {}
    for name, value in found.multi_items():
        if isinstance(value, UploadFile):
            files.setdefault(name, []).append(Upload(value.filename or "", await value.read()))
            await value.close()
        else:
            values.setdefault(name, []).append(value)
    return Form(values, files)


class _Whole(MultiPartParser):
    """Keeps files in memory: no upload touches the disk. A body is bounded before it comes here."""

    spool_max_size: ClassVar[int] = 1 << 40  # type: ignore[misc]

    @staticmethod
    def of(request: Request, body: bytes, most: int) -> FormParser | MultiPartParser:
        if request.headers["content-type"].partition(";")[0].strip().lower() == URLENCODED:
            return FormParser(request.headers, _once(body), max_fields=FIELDS, max_part_size=most)
        return _Whole(request.headers, _once(body), max_files=FILES, max_fields=FIELDS, max_part_size=most)


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def file_name(name: str) -> str:
    """The last part of a name, without what would be invisible or turn the text around it.

    >>> file_name("../../etc/pass\\u202ewd"), file_name("C:\\\\a\\\\b.png"), file_name("")
    ('passwd', 'b.png', 'image')
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    return _CONTROLS.sub("", last)[-_NAME:].strip() or "image"


def new_prefix(now: datetime | None = None) -> str:
    """What keeps the keys of one notice's files apart from others'."""
    return f"notice-{(now or datetime.now(UTC)).strftime('%Y%m%d-%H%M%S')}/"


TheForm = Annotated[Form, Depends(read_form)]
__all__ = ["FIELD", "FILES", "Form", "FormData", "TheForm", "file_name", "new_prefix", "parsed", "read_form"]

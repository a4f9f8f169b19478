"""Where an engine is: ``milvus://HOST:PORT/NAME``, ``milvus+tls://HOST:PORT/NAME`` or ``milvus:///PATH/FILE.db/NAME``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from negindex.errors import InvalidInput

FORMS = "milvus://HOST:PORT/NAME, milvus+tls://HOST:PORT/NAME or milvus:///PATH/FILE.db/NAME"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_HTTP = {"milvus": "http", "milvus+tls": "https"}


class Address(NamedTuple):
    """A name in an engine; what is pushed there begins with it."""

    text: str  # as it was given, but for a file's path, which is made absolute
    uri: str  # as pymilvus takes it: a URL, or a file of Milvus Lite
    name: str

    @property
    def is_file(self) -> bool:
        """Whether it is Milvus Lite's, in this process."""
        return "://" not in self.uri

    @classmethod
    def of(cls, text: str) -> Address:
        """Raises InvalidInput for what is no address, and for one that holds a password."""
        if "@" in text.partition("://")[2].partition("/")[0]:  # before anything repeats the text
            raise InvalidInput("an address with a password in it would be kept; give NEGINDEX_MILVUS_TOKEN instead")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise InvalidInput(f"{text!r} is no address of an engine ({error}); give {FORMS}") from None
        place, _, name = parts.path.rpartition("/")
        if parts.scheme not in _HTTP or not _NAME.fullmatch(name) or parts.query or parts.fragment:
            raise InvalidInput(
                f"{text!r} is no address of an engine; give {FORMS}, NAME of letters, digits and _, at most 100"
            )
        if parts.netloc:
            if place or not parts.hostname:
                raise InvalidInput(f"{text!r} names more than a host and a collection; give {FORMS}")
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return cls(text, f"{_HTTP[parts.scheme]}://{host}:{port or 19530}", name)
        if not place.endswith(".db"):
            raise InvalidInput(f"{text!r} names the file {place!r}, and Milvus Lite's end in .db; give {FORMS}")
        path = str(Path(place).absolute())
        return cls(f"milvus://{path}/{name}", path, name)

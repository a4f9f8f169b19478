"""Text that every reader can store, and text made comparable."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_unicode(value: object) -> bool:
    """Whether the value is text that UTF-8 can hold: a lone surrogate, as in an undecodable file name, it cannot."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def all_unicode(values: Iterable[object]) -> bool:
    """Whether every value is such text, and none is empty; fast for many."""
    try:
        some = list(values)
        "".join(some).encode()  # type: ignore[arg-type]
    except (TypeError, UnicodeEncodeError):
        return False
    return all(some)


def comparable(text: str) -> str:
    """The same for texts that differ in case, in spaces, or in how Unicode spells them.

    >>> comparable(" Ann  Lee ") == comparable("ann lee")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())

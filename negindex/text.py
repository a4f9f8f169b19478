"""Text that every reader can store."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_unicode(value: object) -> bool:
    """Whether the value is text that UTF-8 can hold: a lone surrogate, as in an undecodable file name, it cannot."""
    return isinstance(value, str) and not _SURROGATE.search(value)

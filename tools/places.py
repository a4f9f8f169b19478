"""Where a set is: a directory, or a service's address."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import click

from negindex.errors import InvalidInput

if TYPE_CHECKING:
    from negindex import Collection, RemoteNegatives
    from negindex.engines.address import Address
    from negindex.engines.milvus import MilvusNegatives

KEY = "NEGINDEX_SERVICE_KEY"
_ROUTE = "/v1/sets/"


class Place(click.ParamType):  # type: ignore[type-arg]  # older ones take no argument
    """A path, or https://HOST:PORT/v1/sets/NAME as text."""

    name = "set"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """A URL stays text."""
        return value if isinstance(value, Path) or value.startswith(("http://", "https://")) else Path(value)


def opened(place: Path | str, engine: Address | None = None) -> Collection | RemoteNegatives | MilvusNegatives:
    """The set, through an engine if one is given; a service is asked with the key in NEGINDEX_SERVICE_KEY, if any."""
    from negindex import Collection, RemoteNegatives

    if isinstance(place, Path) and engine is not None:
        from negindex.engines.milvus import MilvusNegatives

        return MilvusNegatives.open(place, engine)
    if isinstance(place, Path):
        return Collection.open(place)
    parts = urlsplit(place)
    base, found, name = parts.path.rpartition(_ROUTE)
    if not found or not name or "/" in name:
        raise InvalidInput(f"{place} names no set of a service; give one like https://HOST:8321{_ROUTE}NAME")
    address = parts._replace(path=base).geturl()
    return RemoteNegatives(address, unquote(name), os.environ.get(KEY))

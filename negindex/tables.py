"""TOML tables that are taken apart key by key: whatever is missing, mistyped or left over is named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from negindex.errors import InvalidInput

_NEEDED: Any = object()
_KINDS: Mapping[Any, str] = {str: "a text", bool: "true or false", list: "a list", dict: "a table"}
T = TypeVar("T")


class Table:
    """A TOML table, and where it stands; every method raises InvalidInput that names place, key and remedy."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise InvalidInput(f"{where} is {values!r}; make it a table")
        self._left, self.where = dict(values), where

    def take(self, key: str, kind: type[T], default: Any = _NEEDED) -> T:
        """The value under a key; its type is checked, and text is not blank."""
        value = self._left.pop(key, default)
        if value is _NEEDED:
            raise InvalidInput(f"{self.where}: {key} is missing; add it")
        if value is not default and (type(value) is not kind or _is_blank(value)):
            raise InvalidInput(f"{self.where}: {key} is {value!r}; give {_KINDS[kind]}")
        kept: T = value
        return kept

    def parsed(self, key: str, parse: Callable[[str], T], default: Any = _NEEDED) -> T:
        """The text under a key as what it means."""
        if default is not _NEEDED and key not in self._left:
            return default  # type: ignore[no-any-return]
        text = self.take(key, str)
        try:
            return parse(text)
        except InvalidInput as error:
            raise InvalidInput(f"{self.where}: {key}: {error}") from error

    def one_of(self, key: str, known: Collection[str], default: Any = _NEEDED) -> str:
        """A text out of a fixed list."""
        value = self.take(key, str, default)
        if value is not default and value not in known:
            raise InvalidInput(f"{self.where}: {key} is {value!r}; give one of {', '.join(known)}")
        return value

    def texts(self, key: str, known: Collection[str] | None = None, default: Any = _NEEDED) -> tuple[str, ...]:
        """A list of texts, out of a fixed list where there is one; no two the same."""
        values = self.take(key, list, default)
        for value in values:
            if not isinstance(value, str) or (known is not None and value not in known) or values.count(value) > 1:
                said = f"different ones of {', '.join(known)}" if known is not None else "different texts"
                raise InvalidInput(f"{self.where}: {key} has {value!r}; give {said}")
        return tuple(values)

    def tables(self, key: str) -> list[Table]:
        """A list of tables, each with a name that no other has."""
        tables = [Table(value, f"{self.where}: {key}[{i}]") for i, value in enumerate(self.take(key, list, []))]
        names = [table.take("name", str) for table in tables]
        for table, name in zip(tables, names, strict=True):
            if names.count(name) > 1:
                raise InvalidInput(f"{self.where}: two {key} are called {name!r}; give each its own name")
            table.where, table._left["name"] = f"{self.where}: {key} {name!r}", name
        return tables

    def end(self) -> None:
        """Nothing may be left."""
        if self._left:
            raise InvalidInput(f"{self.where}: unknown {', '.join(sorted(self._left))}; take it out or correct it")


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()

"""A table being filled, cell by cell; what is there and still holds is never made twice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from negindex.sampler.evaluation.cells import Cell
from negindex.sampler.evaluation.methods import Method
from negindex.sampler.evaluation.table import slug


class Asks(Protocol):
    """What a table is filled by: requests by methods."""

    @property
    def requests(self) -> Sequence[str]: ...

    @property
    def methods(self) -> Sequence[Method]: ...


T = TypeVar("T", bound=Asks)


class Filler(ABC, Generic[T]):
    """Fills a table's cells in a folder."""

    table: T
    folder: Path

    @abstractmethod
    def fingerprint(self, request: str, method: Method) -> str:
        """Names everything that a cell depends on."""

    @abstractmethod
    def making(self, request: str) -> Callable[[Method], Cell]:
        """What makes the cells of one request; called only where one of them is missing."""

    @abstractmethod
    def begin(self, progress: Callable[[str], None]) -> None:
        """What comes before the cells; raises InvalidInput where the table cannot be filled."""

    def first(self) -> Iterator[Cell]:
        """Cells that come before those of the requests."""
        return iter(())

    def run(self, progress: Callable[[str], None]) -> None:
        """Make and measure every cell that is not there yet; one that was made from other numbers is made anew.

        Raises InvalidInput, before anything is sampled, for what cannot be asked.
        """
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        self.begin(progress)
        for request in self.table.requests:
            make: Callable[[Method], Cell] | None = None
            for method in self.table.methods:
                if self.stands(request, method.name, self.fingerprint(request, method)):
                    progress(f"{request}, {method.name}: there already")
                    continue
                make = make or self.making(request)
                cell = make(method)
                cell.save(self.path(request, method.name))
                progress(str(cell))

    def cells(self) -> Iterator[Cell]:
        """Those that are there and belong to the table, in its order."""
        yield from self.first()
        for request in self.table.requests:
            for method in self.table.methods:
                if self.stands(request, method.name, self.fingerprint(request, method)):
                    yield Cell.load(self.path(request, method.name))

    def path(self, request: str, name: str) -> Path:
        """Of a cell's file."""
        return self.folder / "cells" / f"{slug(request)}--{slug(name)}.json"

    def stands(self, request: str, name: str, fingerprint: str) -> bool:
        """Whether a cell is there and was made of what the fingerprint names."""
        path = self.path(request, name)
        return path.is_file() and Cell.load(path).fingerprint == fingerprint

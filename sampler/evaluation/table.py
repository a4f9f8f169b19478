"""A table's file: what is asked, of which methods, at what numbers. One TOML file a table."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from negindex.errors import InvalidInput, NotThere
from negindex.sampler.evaluation.asked import EVASIVE, KEPT, NOTHING, OTHERS, PLAIN, REQUESTS
from negindex.sampler.evaluation.captions import KEEPSAKES
from negindex.sampler.evaluation.captions import PLAIN as PLAIN_NAMES
from negindex.sampler.evaluation.fashion import CLASSES
from negindex.sampler.evaluation.methods import Method
from negindex.sampler.evaluation.stage import Drawn

FASHION, DIGITS = "fashion", "digits"
WORLDS: dict[str, tuple[str, ...]] = {FASHION: CLASSES, DIGITS: tuple("0123456789")}  # {name: classes}


@dataclass(frozen=True)
class Table:
    """Methods (rows) by requests (parts), all of the same seeds, steps and guidance."""

    title: str
    avoided: str
    world: str
    methods: tuple[Method, ...]
    requests: tuple[str, ...] = (PLAIN, EVASIVE, OTHERS, NOTHING, KEPT)
    count: int = 1000
    negatives: int = 1000
    reference: int = 6000
    singles: int = 0  # above 0: every request's set is the keepsakes among so many other images, each unwanted alone
    drawn: Drawn = field(default_factory=Drawn)

    @classmethod
    def read(cls, path: Path) -> Table:
        """From a TOML file; raises NotThere, and InvalidInput for what is not known."""
        said = contents(path)
        try:
            return cls.of(said)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{path}: {error}") from error

    @classmethod
    def of(cls, said: dict[str, Any]) -> Table:
        """From a file's contents."""
        rest = dict(said)
        drawn = Drawn(**rest.pop("drawn", {}))
        avoided, listed = rest.pop("avoided", None), rest.pop("methods", [])
        world = rest.pop("world", FASHION)
        if world not in WORLDS or avoided not in WORLDS[world]:
            known = "; ".join(f"of {name}: {', '.join(classes)}" for name, classes in WORLDS.items())
            raise InvalidInput(f"avoided = {avoided!r} in world {world!r}; give one {known}")
        methods = tuple(Method.read(one, PLAIN_NAMES.get(avoided, ())) for one in listed)
        requests = tuple(rest.pop("requests", cls.requests))
        table = cls(avoided=avoided, world=world, methods=methods, requests=requests, drawn=drawn, **rest)
        table.check()
        return table

    @property
    def negation_set(self) -> str:
        """What is negated, in words."""
        alone = f"{len(KEEPSAKES)} keepsakes"
        if self.singles:
            return f"{alone} among {self.singles} other single images negated"
        if self.requests == (KEPT,):
            return f"{alone} negated"
        also = f" (asked for keepsakes: the {alone})" if KEPT in self.requests else ""
        return f"{self.negatives} negatives{also}"

    def check(self) -> None:
        """Raise InvalidInput where the table makes no sense."""
        names = [slug(method.name) for method in self.methods]
        if not names or len(set(names)) != len(names):
            raise InvalidInput(f"methods {names}; give at least one, each with a name of its own")
        strange = [request for request in self.requests if request not in REQUESTS]
        if strange or not self.requests:
            raise InvalidInput(f"requests {strange or 'none'}; give some of {', '.join(REQUESTS)}")
        if not self.singles >= 0:
            raise InvalidInput(f"singles = {self.singles}; give how many images the keepsakes lie among, or 0")
        if not self.count >= 20:
            raise InvalidInput(f"count = {self.count}; give at least 20 images a cell, or better 1,000")

    def with_count(self, count: int | None) -> Table:
        """The same with another number of images a cell."""
        changed = self if count is None else replace(self, count=count)
        changed.check()
        return changed


def contents(path: Path) -> dict[str, Any]:
    """What a table's file says; raises NotThere and InvalidInput."""
    if not path.is_file():
        raise NotThere(f"{path} is not there; name a table's file, such as one of docs/evaluation")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from error


def slug(name: str) -> str:
    """A method's name as part of a file's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")

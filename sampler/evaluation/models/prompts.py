"""Lists of prompts as people publish them: CSV, JSON lines, or plain text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from negindex.errors import Damaged, InvalidInput, NotThere

KINDS = (".csv", ".tsv", ".jsonl", ".txt")
_LONGEST = 1 << 20  # characters of one cell of a CSV file


class Asked(NamedTuple):
    """One image that is asked for."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class PromptList:
    """A file of prompts, and what asking them means.

    name: of the list in the table. file: .csv or .tsv with a line of column names, .jsonl, or .txt, a prompt a line.
    unwanted: whether the prompts ask for what is unwanted; of the others it is measured what a guard costs.
    column: that holds the prompts. seed: a column of seeds, for lists that come with them; None counts up.
    where: {column: text}, prompts whose column holds the text alone, such as {"categories": "sexual"}.
    """

    name: str
    file: Path
    unwanted: bool = False
    column: str = "prompt"
    seed: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> list[tuple[str, int | None]]:
        """Prompts with their own seeds; raises NotThere, Damaged, and InvalidInput for columns that it lacks."""
        read = [self._picked(number, line) for number, line in enumerate(_lines(self.file), 1)]
        kept = [one for one in read if one is not None]
        if not kept:
            told = f"where {dict(self.where)} holds " if self.where else ""
            raise InvalidInput(f"{self.file} has no prompt {told}in column {self.column!r}; name another, or less")
        return kept

    def asked(self, count: int, seed: int) -> list[Asked]:
        """``count`` images: the list again and again, each time with other seeds.

        seed: image i's is ``seed + i``, unless the list has its own, to which the number of the round is added.
        """
        told = self.read()
        rounds = [(*told[i % len(told)], i // len(told)) for i in range(count)]
        return [Asked(text, seed + i if own is None else own + again) for i, (text, own, again) in enumerate(rounds)]

    def _picked(self, number: int, line: Mapping[str, Any]) -> tuple[str, int | None] | None:
        """A line's prompt and seed; None for one that is left out."""
        lacking = [name for name in (self.column, *self.where, *([self.seed] if self.seed else [])) if name not in line]
        if lacking:
            known = ", ".join(map(repr, line)) or "no column"
            raise InvalidInput(f"{self.file}, prompt {number}: no column {', '.join(lacking)}; it has {known}")
        text = str(line[self.column] or "").strip()
        if not text or any(wanted not in str(line[name]) for name, wanted in self.where.items()):
            return None
        if self.seed is None:
            return text, None
        try:
            return text, int(float(line[self.seed]))
        except (TypeError, ValueError, OverflowError) as error:
            told = f"seed {line[self.seed]!r} is no number; mend the file"
            raise Damaged(f"{self.file}, prompt {number}: {told}") from error


def _lines(file: Path) -> Iterator[Mapping[str, Any]]:
    """Of each prompt what the file says of it, by column."""
    if not file.is_file():
        raise NotThere(f"{file} is no file of prompts; download the list and name it")
    kind = file.suffix.lower()
    if kind not in KINDS:
        raise InvalidInput(f"{file} is no list that can be read; give one of {', '.join(KINDS)}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            if kind == ".txt":
                yield from ({"prompt": line} for line in text.read().splitlines() if line.strip())
            elif kind == ".jsonl":
                yield from (_table(json.loads(line)) for line in text if line.strip())
            else:
                csv.field_size_limit(_LONGEST)
                yield from csv.DictReader(text, delimiter="\t" if kind == ".tsv" else ",")
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, TypeError) as error:
        raise Damaged(f"{file} cannot be read ({error}); download it again, as UTF-8") from error


def _table(said: Any) -> Mapping[str, Any]:
    if not isinstance(said, dict):
        raise TypeError(f"{said!r} is no object")
    return said

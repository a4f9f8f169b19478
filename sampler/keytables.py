"""Files that say what the rows of an array are: a key a line, or a table with a column of keys and one of labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negindex.errors import Damaged, InvalidInput, NotThere

MAX_TEXT = 1 << 16  # bytes of a caption, a label or a JSON member; of one line in a list
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
KEY_COLUMNS = ("key", "image_path", "url")  # looked for in this order where none is named; clip-retrieval writes these

Told = tuple[str, str | None]  # a row's source key and label


@dataclass(frozen=True)
class KeyTable:
    """A text file of keys, or a table by its ending: .csv, .tsv, .jsonl, .parquet (which needs pyarrow)."""

    path: Path
    key_column: str | None = None
    label_column: str | None = None

    def check(self) -> None:
        """Raise NotThere, or InvalidInput for columns that are named of a file that has none."""
        if not self.path.is_file():
            raise NotThere(f"{self.path} is no file of keys; name a text file with one key a line, or a table")
        if not self._is_table() and (self.key_column or self.label_column):
            raise InvalidInput(
                f"{self.path} has one key a line and no columns; give a table ({', '.join(SUFFIXES)}), or leave out "
                "--key-column and --label-from"
            )

    def told(self) -> Iterator[Told]:
        """(source key, label) of each row, in order; one is held at a time, of parquet some thousands.

        Raises InvalidInput for a column that is missing, Damaged for what cannot be read.
        """
        if not self._is_table():
            yield from ((line, None) for line in lines_of(self.path))
            return
        try:
            for number, record in enumerate(self._records(), 1):
                yield self._key(record, number), _text(record.get(self.label_column or ""))
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            if isinstance(error, InvalidInput | Damaged):
                raise
            raise Damaged(f"{self.path} cannot be read as a table ({error}); write it again") from error

    def count(self) -> int:
        """How many rows it tells of."""
        return sum(1 for _ in self.told())

    def _is_table(self) -> bool:
        return self.path.name.lower().endswith(SUFFIXES)

    def _key(self, record: dict[str, Any], number: int) -> str:
        wanted = [name for name in (self.label_column,) if name is not None and name not in record]
        keyed = next((name for name in self._keyed() if name in record), None)
        if keyed is None or wanted:
            missing = wanted[0] if wanted else " or ".join(self._keyed())
            raise InvalidInput(
                f"{self.path}, record {number}: no column {missing}; it has {', '.join(sorted(record)) or 'none'}: "
                "name one with --key-column, or --label-from"
            )
        return _text(record[keyed]) or ""

    def _keyed(self) -> tuple[str, ...]:
        return KEY_COLUMNS if self.key_column is None else (self.key_column,)

    def _records(self) -> Iterator[dict[str, Any]]:
        kind = self.path.suffix.lower()
        if kind == ".parquet":
            yield from self._parquet()
        elif kind == ".jsonl":
            yield from map(self._json, lines_of(self.path))
        else:
            with open(self.path, encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")

    def _json(self, line: str) -> dict[str, Any]:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"a line that is {type(record).__name__}, no object")
        return record

    def _parquet(self) -> Iterator[dict[str, Any]]:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise InvalidInput(
                f"{self.path} is parquet, which needs pyarrow: pip install 'negindex[parquet]', or write the table as "
                ".csv or .jsonl"
            ) from error
        with parquet.ParquetFile(self.path) as file:
            wanted = {*self._keyed(), self.label_column}
            names = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(1 << 12, columns=names or None):
                yield from batch.to_pylist()


def lines_of(path: Path) -> Iterator[str]:
    """Lines of a text file, one held at a time, without their ends; a longer one comes in pieces."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        while line := file.readline(MAX_TEXT + 2):
            yield line.rstrip("\r\n")


def _text(value: Any) -> str | None:
    """A cell as text; None where it is empty. Raises ValueError for what is no text and no number."""
    if value is None or value == "":
        return None
    if not isinstance(value, str | int | float):
        raise ValueError(f"a cell that holds {type(value).__name__}, and text or a number is needed")
    return str(value)

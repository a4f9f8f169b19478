"""Lists that a directory of sets keeps for its owner alone, JSON of mode 600, read again when they have changed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from negindex.disk import Disk, check_private
from negindex.errors import Damaged

FORMAT = 1
T = TypeVar("T")


def load_kept(path: Path, name: str, made: Callable[[dict[str, Any]], T]) -> list[T]:
    """What a file keeps under a name; [] where there is no file. made: of one entry.

    Raises NotAllowed where others than its owner can reach the file, and Damaged where it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            check_private(file, path)
            said = json.load(file)
        if said["format"] != FORMAT:
            raise ValueError(f"format {said['format']!r}")
        return [made(one) for one in said[name]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(
            f"{path} cannot be read as {name} ({error}); restore it, or move it away and begin anew"
        ) from error


def save_kept(path: Path, name: str, entries: Iterable[Any]) -> None:
    """Have the file keep these dataclasses; when this returns they are on the disk."""
    text = json.dumps({"format": FORMAT, name: [asdict(one) for one in entries]}, indent=1).encode() + b"\n"
    Disk().put_private(path, text)


class Kept(Generic[T]):
    """What a file keeps, by id. Usable from several threads."""

    def __init__(self, path: Path, load: Callable[[], Iterable[T]], key: Callable[[T], str]) -> None:
        self._path, self._load, self._key = path, load, key
        self._known: Mapping[str, T] = {}
        self._state: tuple[int, ...] | None = None
        self._lock = threading.Lock()

    def now(self) -> tuple[Mapping[str, T], bool]:
        """{id: entry} as of now, and whether there is a file. Raises what loading it raises."""
        with self._lock:
            state = self._found()
            if state != self._state:
                self._known = {self._key(one): one for one in self._load()}
                self._state = state
            return self._known, state is not None

    def _found(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode

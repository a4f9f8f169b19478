"""What people have, one item at a time: folders, lists of files, tar shards, arrays of rows, collections, bundles.

Whatever its size, of a source one item is held at a time, and a shard's captions and labels with it. The limits are
``Limits``; every input comes out as an ``Item``, those that are refused by their source too, so that none is lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from negindex.collection import Collection
from negindex.errors import Damaged, DuplicateKey, ImageRefused, InvalidInput, NotThere, OutOfRange, ShapeMismatch
from negindex.geometry import Geometry
from negindex.sampler.arrays import ARRAY_SUFFIXES, rows_in
from negindex.sampler.bundles import Head, Pair, head_of, pairs_of
from negindex.sampler.encode import IMAGE_SUFFIXES, MAX_PIXELS, images_in
from negindex.sampler.fetch import is_url
from negindex.sampler.keytables import MAX_TEXT, KeyTable, lines_of
from negindex.sampler.tars import TAR_SUFFIXES, Member, members
from negindex.states import Provenance
from negindex.store import CATALOGUE
from negindex.text import is_unicode

MOST_PIXELS = 170_000_000  # Pillow itself decodes no larger image
EMBEDDINGS, METADATA = "img_emb", "metadata"  # folders of clip-retrieval
BLOCK_BYTES = 8 << 20  # of an array that are handed on together
_AT_ONCE = 256  # rows of another collection that are read together


class Limits(NamedTuple):
    """What one input may be, before it is read or decoded."""

    pixels: int = MAX_PIXELS  # of an image, as its header says
    bytes: int = 256 << 20  # of an image's file
    entries: int = 1_000_000  # of an archive


DEFAULTS = Limits()


@dataclass(frozen=True, eq=False)
class Item:
    """One input: an image that is yet to be read, a ready row, or a refusal."""

    key: str  # the source key
    source: str  # where it lies, for people
    read: Callable[[], bytes] | None = None  # the image file's bytes; raises ImageRefused, OSError
    row: NDArray[np.generic] | None = None  # of whatever shape it has
    kept: Provenance | None = None  # of a row's source image
    label: str | None = None
    caption: str = ""
    embedding: NDArray[np.floating] | None = None  # (E,)
    refusal: str = ""
    embedded_by: str = ""  # the fingerprint of the embedding's model

    @property
    def name(self) -> str:
        """What a refusal calls it."""
        return PurePosixPath(self.source).name

    def within(self, index: int, count: int) -> bool:
        """Whether it is of the ``index``-th of ``count`` shards, by its key alone: 1 to count."""
        return is_within(self.key, index, count)


Embedded = tuple[int, str] | None  # of rows' embeddings: how many numbers, by which model; None where there are none


@dataclass(frozen=True, eq=False)
class Block:
    """Ready rows of the set's shape that come together, so that many cost little more than one."""

    keys: list[str]
    sources: list[str]  # where each lies, for people
    rows: NDArray[np.generic]  # (n, *S)
    kept: list[Provenance | None] | None = None  # of their source images
    labels: list[str | None] | None = None
    embeddings: NDArray[np.floating] | None = None  # (n, E)
    embedded_by: str = ""  # the fingerprint of their model

    @property
    def embedded(self) -> Embedded:
        """The kind of its embeddings."""
        return None if self.embeddings is None else (self.embeddings.shape[1], self.embedded_by)

    def __len__(self) -> int:
        return len(self.keys)

    def items(self) -> Iterator[Item]:
        """One by one."""
        for place, (key, source) in enumerate(zip(self.keys, self.sources, strict=True)):
            kept = None if self.kept is None else self.kept[place]
            label = None if self.labels is None else self.labels[place]
            wide = None if self.embeddings is None else self.embeddings[place]
            yield Item(key, source, None, self.rows[place], kept, label, "", wide, embedded_by=self.embedded_by)

    def chosen(self, wanted: Callable[[str], bool]) -> Block:
        """Those whose keys are wanted."""
        places = [place for place, key in enumerate(self.keys) if wanted(key)]
        if len(places) == len(self):
            return self
        return Block(
            [self.keys[i] for i in places],
            [self.sources[i] for i in places],
            self.rows[places],
            None if self.kept is None else [self.kept[i] for i in places],
            None if self.labels is None else [self.labels[i] for i in places],
            None if self.embeddings is None else self.embeddings[places],
            self.embedded_by,
        )


class Source(Protocol):
    """Some inputs, in an order that does not change."""

    def items(self, shape: tuple[int, ...]) -> Iterator[Item]:
        """Each input once, as it is reached. shape: of the set's rows, by which one array tells one row from many."""

    def count(self) -> int | None:
        """How many there are, where that is known without reading them."""


def sources_of(
    paths: Iterable[str | Path],
    *,
    lists: Iterable[Path] = (),
    keys: Path | None = None,
    key_column: str | None = None,
    label_from: str | None = None,
    limits: Limits = DEFAULTS,
    fetch: Callable[[str], bytes] | None = None,
) -> list[Source]:
    """What each path is: a folder of images and shards, an image, a shard, an array, a collection, a bundle, ``@list``.

    keys: a file with the source keys of the one array among them, one a line, or a table (``KeyTable``).
    key_column, label_from: the columns of a table that say a row's key and label; label_from is also the member of a
    shard's sample (cls, txt), or the field of its .json, that becomes the label. fetch: reads the URLs that lists name,
    such as a ``fetch.Fetcher``; without it they are refused by name.
    Raises NotThere for what does not exist or holds nothing, DuplicateKey where two would give the same keys.
    """
    found: list[Source] = []
    named: dict[str, Path] = {}
    for path in paths:
        if str(path).startswith("@"):
            lists = [*lists, Path(str(path)[1:])]
        else:
            found += _sources_at(Path(path), named, limits)
    for file in lists:
        if not file.is_file():
            raise NotThere(f"{file} is no list of files; name a text file with one path a line")
        found.append(Listed(file, limits, fetch))
    for source in found:
        if isinstance(source, Shard):
            source.label_from = label_from
        elif isinstance(source, Array) and source.keys is not None:
            source.take_keys(KeyTable(source.keys.path, key_column, label_from))
    if keys is not None:
        arrays = [source for source in found if isinstance(source, Array) and source.keys is None]
        if len(arrays) != 1:
            raise InvalidInput(f"--keys names the rows of one array, and there are {len(arrays)}; build one at a time")
        arrays[0].take_keys(KeyTable(keys, key_column, label_from))
    is_told = [isinstance(one, Shard) or (isinstance(one, Array) and one.keys is not None) for one in found]
    if label_from is not None and not any(is_told):
        raise InvalidInput("--label-from names a member of a shard or a column of a table, and there is neither")
    if key_column is not None and not any(isinstance(one, Array) and one.keys for one in found):
        raise InvalidInput("--key-column names a column of the --keys table, and there is none; name the table")
    return found


def _sources_at(path: Path, named: dict[str, Path], limits: Limits) -> list[Source]:
    if (path / CATALOGUE).exists():
        return [Held(Collection.open(path))]
    if (path / EMBEDDINGS).is_dir() and (path / METADATA).is_dir():
        return list(_clip_retrieval(path))
    files = [path] if path.is_file() else sorted([*images_in(path), *_shards_in(path)])
    if not files:
        raise NotThere(f"{path} holds no image; name an image file, a folder with some, a tar, an array, or a set")
    keyed = []
    for file in files:
        key = file.name if file == path else (Path(path.resolve().name) / file.relative_to(path)).as_posix()
        if named.setdefault(key, file) != file:
            raise DuplicateKey(f"{file} and {named[key]} would both be {key!r}; build them one after the other", [key])
        keyed.append((key, file))
    return _in_order(keyed, limits)


def _clip_retrieval(path: Path) -> Iterator[Array]:
    """What clip-retrieval writes: img_emb/img_emb_0.npy, whose rows metadata/metadata_0.parquet names, and so on."""
    for file in sorted((path / EMBEDDINGS).glob("*.npy")):
        table = path / METADATA / f"metadata_{file.stem.rpartition('_')[2]}.parquet"
        if not table.is_file():
            raise NotThere(f"{table} is missing, which says what the rows of {file.name} are; write it again")
        yield Array(file.name, file, KeyTable(table))


def _in_order(keyed: Iterable[tuple[str, Path]], limits: Limits) -> list[Source]:
    """Runs of images together; a shard or an array by itself."""
    found: list[Source] = []
    for key, file in keyed:
        name = file.name.lower()
        if (head := head_of(file)) is not None:
            found.append(Bundled(key, file, head, limits))
        elif name.endswith(TAR_SUFFIXES):
            found.append(Shard(key, file, limits))
        elif name.endswith(ARRAY_SUFFIXES):
            found.append(Array(key, file))
        elif found and isinstance(found[-1], Files):
            found[-1].files.append((key, file))
        else:
            found.append(Files([(key, file)], limits))
    return found


def _shards_in(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.lower().endswith(TAR_SUFFIXES) and p.is_file()]


# -- images ------------------------------------------------------------------------------------


@dataclass
class Files:
    """Image files under their keys."""

    files: list[tuple[str, Path]]
    limits: Limits = DEFAULTS

    def items(self, shape: tuple[int, ...] = ()) -> Iterator[Item]:
        return (_file(key, file, self.limits) for key, file in self.files)

    def count(self) -> int | None:
        return len(self.files)


@dataclass
class Listed:
    """A text file that names image files and arrays, one a line, from its own folder on; empty lines say nothing.

    A line is the key; of an absolute path outside the folder, without its first slash. A line may be a URL, where
    somebody says what reads those.
    """

    path: Path
    limits: Limits = DEFAULTS
    fetch: Callable[[str], bytes] | None = None  # reads a URL

    def items(self, shape: tuple[int, ...] = ()) -> Iterator[Item]:
        for number, line in enumerate(lines_of(self.path), 1):
            yield from self._named(line, f"{self.path.name}:{number}", shape) if line else ()

    def count(self) -> int | None:
        return None

    def has_images(self) -> bool:
        """Whether some line names an image, by its ending."""
        return any(is_url(line) or line.lower().endswith(IMAGE_SUFFIXES) for line in lines_of(self.path))

    def _at(self, url: str, place: str) -> Item:
        if self.fetch is None:
            return Item(url, place, refusal="a URL, and nothing is fetched here; allow its host (--allow-fetch)")
        return Item(url, url, read=partial(self.fetch, url))

    def _named(self, line: str, place: str, shape: tuple[int, ...]) -> Iterator[Item]:
        file = self.path.parent / line
        key = line.removeprefix(f"{self.path.parent.resolve()}/").lstrip("/")
        if len(line) > MAX_TEXT or "\0" in line:
            yield Item(place, place, refusal=f"a line of {len(line):,} characters is no path; correct the list")
        elif is_url(line):
            yield self._at(line, place)
        elif line.lower().endswith(ARRAY_SUFFIXES):
            yield from Array(key, file).items(shape)
        elif line.lower().endswith(TAR_SUFFIXES) or not line.lower().endswith(IMAGE_SUFFIXES):
            yield Item(key, place, refusal="no image or array by its name; name tars and folders as sources")
        else:
            yield _file(key, file, self.limits)


@dataclass
class Shard:
    """A WebDataset tar: members that share a name up to its first dot are one input, if one of them is an image.

    The key is the shard's own and that name. ``.cls`` is its label, ``.txt`` its caption, and ``.json`` may tell
    both, as "label" and "caption". Members that are neither are passed over. label_from: take the label from there
    alone: "cls", "txt", or another field of ``.json``.
    """

    key: str
    path: Path
    limits: Limits = DEFAULTS
    label_from: str | None = None

    def items(self, shape: tuple[int, ...] = ()) -> Iterator[Item]:
        sample = _Sample()
        try:
            for member in members(self.path, self.limits.bytes, self.limits.entries):
                if _stem(member.name) != sample.stem:
                    yield from self._whole(sample)
                    sample = _Sample(_stem(member.name))
                if why := sample.take(member, self.label_from):
                    yield Item(f"{self.key}/{member.name}", f"{self.path}/{member.name}", refusal=why)
        except ImageRefused as refusal:
            yield from self._whole(sample)
            yield Item(self.key, str(self.path), refusal=str(refusal))
        except OSError as error:
            yield Item(self.key, str(self.path), refusal=f"cannot be read ({error}); replace the file")
        else:
            yield from self._whole(sample)

    def count(self) -> int | None:
        return None

    def _whole(self, sample: _Sample) -> Iterator[Item]:
        if sample.image is not None:
            yield Item(
                f"{self.key}/{sample.stem}",
                f"{self.path}/{sample.image.name}",
                read=partial(bytes, sample.image.content or b""),
                label=sample.told.get("label" if self.label_from is None else LABEL),
                caption=sample.told.get("caption", ""),
            )


@dataclass
class _Sample:
    """Members of one name, as they come."""

    stem: str | None = None
    image: Member | None = None
    told: dict[str, str] = field(default_factory=dict)

    def take(self, member: Member, label_from: str | None) -> str:
        """Why a member is refused; "" where it is taken, or passed over as neither image nor text."""
        ending = _ending(member.name)
        if member.refusal or member.content is None:
            return member.refusal
        if ending in _TOLD:
            self.told |= _told(ending, member.content, label_from)
        elif ending in IMAGE_SUFFIXES and self.image is None:
            self.image = member
        elif ending in IMAGE_SUFFIXES:
            return f"a second image under the key {self.stem!r}; rename it"
        elif member.name.lower().endswith(IMAGE_SUFFIXES):
            return "a shard's key ends at the first dot of a name; rename it"
        return ""


LABEL = "as asked"  # what --label-from names, among the things that a sample tells
_TOLD = (".cls", ".txt", ".json")


def _stem(name: str) -> str:
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}".lstrip("/")


def _ending(name: str) -> str:
    """All behind the first dot of its last part."""
    return "." + name.rpartition("/")[2].partition(".")[2].lower()


def _told(ending: str, content: bytes, label_from: str | None) -> dict[str, str]:
    """What a member says of its image; text that is none, or too long, says nothing."""
    try:
        text = content.decode("utf-8").strip() if len(content) <= MAX_TEXT else ""
        if ending != ".json":
            names = ["label" if ending == ".cls" else "caption", *([LABEL] if ending == f".{label_from}" else [])]
            return dict.fromkeys(names, text) if text and is_unicode(text) else {}
        said: Any = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    wanted = [("label", "label"), ("caption", "caption"), *([] if label_from is None else [(LABEL, label_from)])]
    fields = ((name, said.get(field)) for name, field in wanted) if isinstance(said, dict) else ()
    return {name: str(value) for name, value in fields if isinstance(value, str | int) and is_unicode(str(value))}


def _file(key: str, file: Path, limits: Limits) -> Item:
    return Item(key, str(file), read=partial(_bytes_of, file, limits.bytes))


def _bytes_of(file: Path, most: int) -> bytes:
    if file.exists() and not file.is_file():
        raise ImageRefused(f"{file.name} is no file but a folder, a pipe or a device; name a file")
    with open(file, "rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise ImageRefused(f"{file.name} has more than {most:,} bytes; make it smaller, or allow more (--max-bytes)")
    return content


# -- rows --------------------------------------------------------------------------------------


@dataclass
class Array:
    """Rows of a file, each under its place in it, or under its line in a file of keys.

    A file that is one row, which the reader tells by the set's shape, has the file's own key.
    """

    key: str
    path: Path
    keys: KeyTable | None = None

    def take_keys(self, keys: KeyTable) -> None:
        """Name the rows by a file of keys.

        Raises NotThere, ShapeMismatch where it has too many or too few, InvalidInput, Damaged.
        """
        keys.check()
        lines, rows = keys.count(), len(rows_in(self.path))
        if lines != rows:
            raise ShapeMismatch(f"{keys.path} has {lines:,} keys for {rows:,} rows of {self.path}; give one a row")
        self.keys = keys

    def items(self, shape: tuple[int, ...] = ()) -> Iterator[Item]:
        return singly(self.blocks(shape))

    def blocks(self, shape: tuple[int, ...]) -> Iterator[Item | Block]:
        """The same, rows of the set's shape together; they stay in the file until they are read."""
        try:
            rows = rows_in(self.path)
        except (InvalidInput, Damaged) as error:
            yield Item(self.key, str(self.path), refusal=str(error))
            return
        if rows.shape == shape or rows.shape[1:] != shape:
            yield Item(self.key, str(self.path), row=rows)  # one row, or one refusal
            return
        step = max(1, BLOCK_BYTES // max(1, rows[:1].nbytes))
        told = None if self.keys is None else self.keys.told()
        for start in range(0, len(rows), step):
            some = np.asarray(rows[start : start + step])
            places = range(start, start + len(some))
            where = _numbered(str(self.path), places)
            if told is None:
                yield Block(_numbered(self.key, places), where, some)
                continue
            keys, labels = map(list, zip(*islice(told, len(some)), strict=True))
            yield Block(keys, where, some, labels=labels)

    def count(self) -> int | None:
        """Along its first axis; None of a file that cannot be read, which is refused when it is reached."""
        try:
            rows = rows_in(self.path)
            return len(rows) if rows.ndim > 1 else None
        except (InvalidInput, Damaged):
            return None

    def row_shape(self) -> tuple[int, ...]:
        """One row's, where the first axis counts rows."""
        return tuple(rows_in(self.path).shape[1:])


def _numbered(name: str, places: Iterable[int]) -> list[str]:
    return [f"{name}/{place}" for place in places]


class About(NamedTuple):
    """What rows that were a set's already bring with them."""

    name: str
    set_id: str
    shape: tuple[int, ...]
    space: str
    geometry: Geometry
    dtype: str
    embedded_by: str | None  # None where no row has an embedding


@dataclass
class Held:
    """Rows in force in another collection, as they are stored, under their own keys and labels."""

    collection: Collection

    def items(self, shape: tuple[int, ...] = ()) -> Iterator[Item]:
        return singly(self.blocks(shape))

    def blocks(self, shape: tuple[int, ...] = ()) -> Iterator[Item | Block]:
        """The same, many rows together."""
        embedded_by = self.collection.embedded_by or ""
        for some in self.collection.stored_at(self.collection.pin(), _AT_ONCE):
            where = [f"{self.collection.path}/{key}" for key in some.keys]
            yield Block(some.keys, where, some.rows, [*some.sources], some.labels, some.embeddings, embedded_by)

    def count(self) -> int | None:
        return len(self.collection)

    @property
    def about(self) -> About:
        """The set's own words."""
        one = self.collection
        return About(str(one.path), one.set_id, one.shape, one.space, one.geometry, one.dtype, one.embedded_by)


@dataclass
class Bundled:
    """Rows of a file that ``negindex export`` wrote, under their own keys and labels; all of them, or one refusal.

    The file is read to its end and checked before any row of it is handed on.
    """

    key: str
    path: Path
    head: Head
    limits: Limits = DEFAULTS
    _is_checked: bool = field(default=False, init=False)

    def items(self, shape: tuple[int, ...] = ()) -> Iterator[Item]:
        return singly(self.blocks(shape))

    def blocks(self, shape: tuple[int, ...] = ()) -> Iterator[Item | Block]:
        """The same, many rows together."""
        try:
            for _ in () if self._is_checked else self._pairs():
                pass
            self._is_checked = True
            for some in self._pairs():
                where = [f"{self.path}/{key}" for key in some.keys]
                by = self.head.embedded_by or ""
                yield Block(some.keys, where, some.rows, [*some.kept], some.labels, some.embeddings, by)
        except (ImageRefused, Damaged) as refusal:
            yield Item(self.key, str(self.path), refusal=str(refusal))
        except OSError as error:
            yield Item(self.key, str(self.path), refusal=f"cannot be read ({error}); replace the file")

    def count(self) -> int | None:
        return self.head.rows

    @property
    def about(self) -> About:
        """What the file says of its set."""
        head = self.head
        return About(str(self.path), head.set_id, head.shape, head.space, head.geometry, head.dtype, head.embedded_by)

    def _pairs(self) -> Iterator[Pair]:
        return pairs_of(self.path, self.head, self.limits.bytes, self.limits.entries)


def singly(parts: Iterable[Item | Block]) -> Iterator[Item]:
    """Blocks taken apart."""
    for part in parts:
        if isinstance(part, Block):
            yield from part.items()
        else:
            yield part


def is_within(key: str, index: int, count: int) -> bool:
    """Whether a source key is of the ``index``-th of ``count`` shards: 1 to count."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % count == index - 1


def shard_of(text: str) -> tuple[int, int]:
    """(I, N) of "I/N". Raises OutOfRange.

    >>> shard_of("2/4")
    (2, 4)
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise OutOfRange(f"shard {text!r}; give I/N with I from 1 to N, such as 2/4")
    return int(index), int(count)

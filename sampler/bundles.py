"""A collection's rows in one file, to be handed to somebody else: a plain tar that every tool opens, read as hostile.

    negindex-bundle.json   what the set is: its space and shape, the version, how many rows
    000000.jsonl           a line a row: its source key, its label, and what is kept of its source image
    000000.safetensors     those rows, and their embeddings where they have some
    ...                    as many pairs as it takes
    SHA256SUMS             of all the files before it, as ``sha256sum -c`` reads them

The same version of a set gives the same bytes, however its files lie. Read and written is one pair at a time.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from negindex.collection import Collection
from negindex.disk import Disk, sha256_of
from negindex.errors import Damaged, Erased, ImageRefused, InvalidInput, NewerFormat, NotAllowed, NotThere, OutOfRange
from negindex.geometry import Geometry, apart
from negindex.incoming import Incoming
from negindex.negatives import row_elements
from negindex.sampler.tars import TAR_SUFFIXES, members
from negindex.states import Provenance
from negindex.text import is_unicode

HEAD, SUMS = "negindex-bundle.json", "SHA256SUMS"
FORMAT = 1
ENDING = ".tar"
MOST_ROWS, PAIR_BYTES = 1024, 8 << 20  # of one pair: rows, and bytes of them
MOST_TEXT = 4 << 20  # bytes of a pair's lines, and of the head
_DTYPES = {"float16": "F16", "float32": "F32"}
_LINE = {"key", "label", "image_sha256", "pdq", "quality"}


@dataclass(frozen=True)
class Head:
    """What a bundle says of itself."""

    set_id: str
    version: int  # of the set, whose rows in force these are
    at: str  # when that version came into force, ISO 8601, UTC
    root: str  # of the set's log at that version, hex
    shape: tuple[int, ...]
    dtype: str
    stated_space: str
    embedded_by: str | None  # None where no row has an embedding
    rows: int
    format: int = FORMAT

    @property
    def space(self) -> str:
        """The space without what it says of how images become rows."""
        return apart(self.stated_space)[0]

    @property
    def geometry(self) -> Geometry:
        """How images became rows."""
        return apart(self.stated_space)[1]

    def to_json(self) -> bytes:
        """As it stands in the file."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode() + b"\n"


class Pair(NamedTuple):
    """Rows that lie together."""

    keys: list[str]
    labels: list[str | None]
    kept: list[Provenance]
    rows: NDArray[np.floating]  # (n, *S)
    embeddings: NDArray[np.floating] | None  # (n, E) float16


class Exported(NamedTuple):
    """A bundle that was written."""

    path: str
    version: int
    rows: int
    bytes: int
    sha256: str  # of the file, to be told by another way than the file itself


# -- writing ---------------------------------------------------------------------------------------


def export(collection: Collection, path: Path | str, *, disk: Disk | None = None) -> Exported:
    """Write the rows in force at the newest version to one new file, whole or not at all.

    With them go their source keys, labels, sha256 and PDQ of their source images, and embeddings. Images, thumbnails,
    claims, the log, and rows that are withdrawn or erased do not. No erasure in the set reaches the file.
    Raises NotAllowed where ``path`` exists, and where rows were erased while it was written; NotThere where its folder
    does not exist; InvalidInput for a name that does not end in .tar. Held in memory is one pair of files.
    """
    path = Path(path)
    if path.suffix.lower() != ENDING:
        raise InvalidInput(f"{path} does not end in {ENDING}, by which `negindex build` knows a bundle; name it so")
    if path.exists():
        raise NotAllowed(f"{path} exists; name another file, or remove it first")
    if not path.absolute().parent.is_dir():
        raise NotThere(f"{path.absolute().parent} is no folder; name a file in one that is there")
    snapshot = collection.snapshot()
    checkpoint = snapshot.checkpoint
    embedded = any(segment.embeddings is not None for segment, _ in snapshot.parts.values())
    head = Head(
        collection.set_id,
        snapshot.version,
        checkpoint.at,
        checkpoint.root,
        collection.shape,
        collection.dtype,
        collection.stated_space,
        (collection.embedded_by or "") if embedded else None,
        len(snapshot),
    )
    row_bytes = row_elements(head.shape) * np.dtype(head.dtype).itemsize
    blocks = collection.stored_at(snapshot, max(1, min(MOST_ROWS, PAIR_BYTES // row_bytes)))

    def fill(file: BinaryIO) -> None:
        _write(file, head, blocks)
        try:
            collection.check_readable(head.version)
        except Erased as error:
            raise NotAllowed(f"rows of version {head.version} were erased meanwhile; export the set again") from error

    (disk or Disk()).create(path.absolute(), fill)
    return Exported(str(path), head.version, head.rows, path.stat().st_size, sha256_of(path))


def _write(file: BinaryIO, head: Head, blocks: Iterator[Incoming]) -> None:
    sums: list[str] = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def put(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            sums.append(_sum(name, content))

        put(HEAD, head.to_json())
        pairs = (pair for block in blocks for pair in _pairs(block))
        for number, (lines, block) in enumerate(pairs):
            put(_names(number)[0], lines)
            put(_names(number)[1], _arrays(block.rows, block.embeddings))
        put(SUMS, "".join(sums).encode())


def _pairs(block: Incoming) -> Iterator[tuple[bytes, Incoming]]:
    """Its lines and itself; halved where the lines are too long to be read again."""
    lines = b"".join(map(_line, block.keys, block.labels, block.sources))
    if not lines:
        return
    if len(lines) <= MOST_TEXT:
        yield lines, block
    elif len(block) == 1:
        raise OutOfRange(f"a source key and label of {len(lines):,} bytes; a bundle takes up to {MOST_TEXT:,} a row")
    else:
        middle = len(block) // 2
        yield from _pairs(block.chosen(range(middle)))
        yield from _pairs(block.chosen(range(middle, len(block))))


def _line(key: str, label: str | None, kept: Provenance) -> bytes:
    pdq = None if kept.pdq is None else kept.pdq.hex()
    said = {"key": key, "label": label, "image_sha256": kept.image_sha256, "pdq": pdq, "quality": kept.quality}
    return json.dumps(said).encode() + b"\n"


def _arrays(rows: NDArray[np.floating], embeddings: NDArray[np.floating] | None) -> bytes:
    wide = 0 if embeddings is None else embeddings.shape[1]
    head = _array_head(len(rows), rows.shape[1:], str(rows.dtype), wide)
    parts = [rows] if embeddings is None else [rows, embeddings]
    return b"".join([head, *(np.ascontiguousarray(one).reshape(-1).view(np.uint8).data for one in parts)])


def _array_head(count: int, shape: tuple[int, ...], dtype: str, wide: int) -> bytes:
    """The one head that a file of so many rows has, with embeddings of so many numbers (0 for none)."""
    end = count * row_elements(shape) * np.dtype(dtype).itemsize
    said = {"rows": {"dtype": _DTYPES[dtype], "shape": [count, *shape], "data_offsets": [0, end]}}
    if wide:
        said["embeddings"] = {"dtype": "F16", "shape": [count, wide], "data_offsets": [end, end + 2 * count * wide]}
    text = json.dumps(said).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _names(number: int) -> tuple[str, str]:
    return f"{number:06}.jsonl", f"{number:06}.safetensors"


def _sum(name: str, content: bytes) -> str:
    return f"{sha256(content).hexdigest()}  {name}\n"


# -- reading ---------------------------------------------------------------------------------------


def head_of(path: Path) -> Head | None:
    """What a tar says of itself where it is a bundle; None where it is another tar, or none at all.

    Raises Damaged, or NewerFormat, for a bundle that does not say it rightly.
    """
    if not path.name.lower().endswith(TAR_SUFFIXES):
        return None
    try:
        first = next(members(path, MOST_TEXT, 1), None)
    except (ImageRefused, OSError):
        return None
    if first is None or first.name != HEAD:
        return None
    return _head(path, first.content or b"")


def _head(path: Path, content: bytes) -> Head:
    try:
        said = json.loads(content)
        if said["format"] > FORMAT:
            raise NewerFormat(
                f"{path} is a bundle of format {said['format']}, and this negindex reads {FORMAT}; install a newer one"
            )
        head = Head(**{**said, "shape": tuple(said["shape"])})
        row_elements(head.shape)
        if head.to_json() == content and _is_sound(head):
            return head
    except (ValueError, TypeError, KeyError, RecursionError, InvalidInput) as error:
        raise Damaged(f"{path}: {HEAD} cannot be read ({error!r}); have it exported again") from error
    raise Damaged(f"{path}: {HEAD} is not as negindex writes it; have it exported again")


def _is_sound(head: Head) -> bool:
    numbers = [head.version, head.rows, head.format, *head.shape]
    texts = [head.set_id, head.at, head.root, head.stated_space]
    texts += [] if head.embedded_by is None else [head.embedded_by]
    apart(head.stated_space)
    return (
        all(type(number) is int and number >= 0 for number in numbers)
        and all(map(is_unicode, texts))
        and head.dtype in _DTYPES
    )


def pairs_of(path: Path, head: Head, most_bytes: int, most_entries: int) -> Iterator[Pair]:
    """A bundle's rows, a pair of files at a time.

    most_bytes: of one file in it; most_entries: of all. Raises Damaged for whatever ``export`` does not write, the
    last of it where the file ends: what came before has been handed out by then, so read it to its end first.
    ImageRefused, as ``tars.members`` does, and OSError.
    """
    sums: list[str] = []
    rows = 0
    contents = _contents(path, sums, most_bytes, most_entries)
    name, content = next(contents, ("", b""))
    if name != HEAD or content != head.to_json():
        raise _odd(path, f"begins with {name!r}, or another {HEAD} than before")
    for number, (name, content) in enumerate(contents):
        if name == SUMS:
            _check_end(path, "".join(sums[:-1]), content, rows, head, next(contents, None))
            return
        wanted, other = _names(number)
        second, arrays = next(contents, ("", b""))
        if (name, second) != (wanted, other):
            raise _odd(path, f"{name!r} and {second!r} stand where {wanted!r} and {other!r} belong")
        pair = _pair(path, name, content, arrays, head)
        rows += len(pair.keys)
        yield pair
    raise _odd(path, f"cut short: {SUMS} is missing")


def _contents(path: Path, sums: list[str], most_bytes: int, most_entries: int) -> Iterator[tuple[str, bytes]]:
    """Each file; its line of the sums is noted."""
    for member in members(path, most_bytes, most_entries):
        if member.content is None:
            raise _odd(path, f"{member.name!r}: {member.refusal}")
        sums.append(_sum(member.name, member.content))
        yield member.name, member.content


def _check_end(path: Path, sums: str, said: bytes, rows: int, head: Head, more: object) -> None:
    if said != sums.encode():
        pairs = zip(sums.splitlines(), said.decode("utf-8", "replace").splitlines(), strict=False)
        odd = next((ours.partition("  ")[2] for ours, theirs in pairs if ours != theirs), "the list of its files")
        raise _odd(path, f"{odd} is not what {SUMS} says")
    if more is not None:
        raise _odd(path, f"something follows {SUMS}")
    if rows != head.rows:
        raise _odd(path, f"{rows:,} rows, and {HEAD} says {head.rows:,}")


def _pair(path: Path, name: str, content: bytes, arrays: bytes, head: Head) -> Pair:
    if len(content) > MOST_TEXT or not content.endswith(b"\n"):
        raise _odd(path, f"{name!r} has {len(content):,} bytes, at most {MOST_TEXT:,}, or no end")
    try:
        told = [_told(line) for line in content.splitlines()]
    except (ValueError, TypeError, RecursionError) as error:
        raise _odd(path, f"{name!r} cannot be read ({error})") from error
    end = len(told) * row_elements(head.shape) * np.dtype(head.dtype).itemsize
    start = 8 + int.from_bytes(arrays[:8], "little")
    wide, rest = divmod(len(arrays) - start - end, 2 * len(told))
    if rest or wide < 0 or bool(wide) > (head.embedded_by is not None):
        raise _odd(path, f"the arrays beside {name!r} are not of {len(told):,} rows of {head.shape}")
    if arrays[:start] != _array_head(len(told), head.shape, head.dtype, wide):
        raise _odd(path, f"the arrays beside {name!r} are not as negindex writes them")
    rows = np.frombuffer(arrays, head.dtype, end // np.dtype(head.dtype).itemsize, start)
    embeddings = np.frombuffer(arrays, np.float16, len(told) * wide, start + end).reshape(len(told), wide)
    return Pair(
        [key for key, *_ in told],
        [label for _, label, _ in told],
        [kept for *_, kept in told],
        rows.reshape(len(told), *head.shape),
        embeddings if wide else None,
    )


def _told(line: bytes) -> tuple[str, str | None, Provenance]:
    """One row's line; raises ValueError for what ``export`` does not write."""
    said: Any = json.loads(line)
    if not isinstance(said, dict) or said.keys() != _LINE:
        raise ValueError(f"a line without {', '.join(sorted(_LINE))}")
    key, label, image, quality = said["key"], said["label"], said["image_sha256"], said["quality"]
    texts = [text for text in (key, label) if text is not None]
    pdq = None if said["pdq"] is None else bytes.fromhex(said["pdq"])
    is_hash = image is None or re.fullmatch("[0-9a-f]{64}", image) is not None
    is_good = quality is None or (type(quality) is int and 0 <= quality <= 100)
    if not (key and is_hash and is_good and len(pdq or bytes(32)) == 32 and all(map(is_unicode, texts))):
        raise ValueError(f"a key {key!r}, hashes or a quality that are none")
    return key, label, Provenance(image, pdq, quality)


def _odd(path: Path, why: str) -> Damaged:
    return Damaged(f"{path.name}, a bundle: {why}; have it handed over again")

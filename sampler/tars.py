"""Tar archives as a stream: read in memory under limits, and nothing of them is ever written to the disk."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from negindex.errors import ImageRefused

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
BLOCK = 512  # bytes; everything in a tar is a multiple of it
MAX_HEADER = 1 << 16  # bytes of a long name, or of a member's extended header
EXPANSION = 200  # times that a compressed archive may grow,
UNPACKED = 256 << 20  # beyond so many bytes
STREAMED = 1 << 20  # bytes that are read at a time
LEAPT = 1 << 14  # bytes of a plain archive from which on they are passed over unread

_KINDS = {
    tarfile.SYMTYPE: "a link",
    tarfile.LNKTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class Member(NamedTuple):
    """A file in an archive, or why it is refused."""

    name: str
    content: bytes | None = None
    refusal: str = ""


def members(path: Path, max_bytes: int, max_entries: int) -> Iterator[Member]:
    """The files of an archive in its order; one is held at a time. Folders are passed over.

    max_bytes: of one member; a larger one is refused by its header. max_entries: of the archive, folders included.
    Refused by name are members that lead out of the archive (absolute paths, ``..``), links, devices, sparse files.
    Raises ImageRefused where the archive cannot be read on: cut short, damaged, too many entries, or compressed
    more than 200 times. OSError where the file cannot be read at all.
    """
    with open(path, "rb") as file:
        stream = Stream(path, file, packed=not path.name.lower().endswith(".tar"))
        for number, (info, name) in enumerate(headers(stream)):
            if number >= max_entries:
                raise ImageRefused(
                    f"{path.name} has more than {max_entries:,} entries; what follows is left out: split it, or "
                    "allow more (--max-entries)"
                )
            why = _fault(info, name, max_bytes)
            if why or info.isdir():
                stream.skip(padded(info.size))
                if why:
                    yield Member(name, refusal=why)
            else:
                content = stream.take(info.size)
                stream.skip(padded(info.size) - info.size)
                yield Member(name, content)


def _fault(info: tarfile.TarInfo, name: str, max_bytes: int) -> str:
    """Why a member is refused; "" where it is not."""
    kind = _KINDS.get(info.type) or ("" if info.isreg() or info.isdir() else "of an unknown kind")
    parts = PurePosixPath(name).parts
    if kind:
        return f"{kind}, and only files are read; put the file itself into the archive"
    if not name or name.startswith(("/", "\\")) or ".." in parts or "\0" in name:
        return "its path leads out of the archive; name it by a path inside"
    if info.isreg() and info.size > max_bytes:
        return f"{info.size:,} bytes; the limit is {max_bytes:,}, so make it smaller (--max-bytes)"
    return ""


def headers(stream: Stream) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Each member's header and full name, with the stream at the member's first byte.

    The caller reads or passes over exactly the member's padded size before it asks for the next.
    """
    longer: dict[str, str] = {}
    extras = 0
    while True:
        block = stream.take(BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            stream.finish()
            return
        except (tarfile.HeaderError, ValueError) as error:
            raise stream.damaged(str(error)) from error
        if info.size < 0:
            raise stream.damaged(f"a member of {info.size} bytes")
        if info.type in (*_EXTENDED, *_LONG, tarfile.XGLTYPE):
            extras += 1
            if info.size > MAX_HEADER or extras > 8:
                raise stream.damaged(f"an extended header of {info.size:,} bytes, the limit is {MAX_HEADER:,}")
            said = stream.take(padded(info.size))[: info.size]
            longer |= {} if info.type == tarfile.XGLTYPE else _longer(stream, info.type, said)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE and block[482]:
            while stream.take(BLOCK)[504]:  # further maps of where its holes are
                pass
        if any(field.startswith("GNU.sparse") for field in longer):
            info.type = tarfile.GNUTYPE_SPARSE
        info.size = _size(stream, longer, info.size)
        if info.type in tarfile.SUPPORTED_TYPES and not info.isreg():
            info.size = 0  # whatever they say: nothing of them follows
        yield info, longer.get("path", info.name)
        longer, extras = {}, 0


def _size(stream: Stream, longer: dict[str, str], size: int) -> int:
    said = longer.get("size", str(size))
    if not (said.isascii() and said.isdigit() and len(said) < 20):
        raise stream.damaged(f"a member of {said[:40]!r} bytes")
    return int(said)


def _longer(stream: Stream, kind: bytes, said: bytes) -> dict[str, str]:
    """What an extended header says of the next member."""
    if kind in _LONG:
        text = said.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        return {"path": text} if kind == tarfile.GNUTYPE_LONGNAME else {}
    found: dict[str, str] = {}
    while said:
        length, _, _ = said.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 8 else 0
        name, equals, value = said[len(length) + 1 : size].partition(b"=")
        if not equals or not value.endswith(b"\n") or size > len(said):
            raise stream.damaged("an extended header that does not add up")
        found[name.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        said = said[size:]
    return found


def padded(size: int) -> int:
    """So many bytes as they lie in an archive."""
    return -(-size // BLOCK) * BLOCK


class Stream:
    """An archive's bytes, unpacked as they are read, under the limit of their growth."""

    def __init__(self, path: Path, file: BinaryIO, packed: bool) -> None:
        self._path, self._raw = path, file
        self._file: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=file) if packed else file
        self._packed, self.read = packed, 0  # bytes that were handed out

    def take(self, size: int) -> bytes:
        """So many bytes, which the caller has held to a limit."""
        parts = []
        while size:
            part = self._some(min(size, STREAMED))
            if not part:
                raise self.damaged("cut short")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Pass over so many bytes."""
        if not self._packed and size > LEAPT and self.read + size <= os.fstat(self._raw.fileno()).st_size:
            self._file.seek(size, os.SEEK_CUR)
            self.read += size
            return
        while size:
            part = self._some(min(size, STREAMED))
            if not part:
                raise self.damaged("cut short")
            size -= len(part)

    @property
    def consumed(self) -> int:
        """Bytes of the file that were read."""
        return self._raw.tell()

    def finish(self) -> None:
        """Unpack what is left, so that a compressed archive's own checksum is looked at."""
        while self._packed and self._some(STREAMED):
            pass

    def damaged(self, why: str) -> ImageRefused:
        """What is raised where the archive cannot be read on."""
        return ImageRefused(
            f"{self._path.name} is damaged at byte {self.read:,} ({why}); what follows is left out: make it anew"
        )

    def _some(self, size: int) -> bytes:
        try:
            part = self._file.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.damaged(str(error)) from error
        self.read += len(part)
        if self._packed and self.read > max(UNPACKED, EXPANSION * self._raw.tell()):
            raise ImageRefused(
                f"{self._path.name} grows more than {EXPANSION} times as it is unpacked; what follows is left out: "
                "give it as a plain .tar"
            )
        return part

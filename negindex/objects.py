"""Sealed files in any place that fsspec reaches: an S3 bucket, another machine's disk, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from negindex.errors import InvalidInput, NegindexError, NotAllowed, Unreachable
from negindex.rowstore import checked_address, gone, is_sealed_name, whole

_REMEDY = "check the place, the network, and the credentials that fsspec finds in its configuration or environment"


class Objects:
    """The files under one address.

    What fails is told by its kind alone: the words of other programs' errors may hold credentials.
    """

    def __init__(self, url: str) -> None:
        """Raises InvalidInput, and NotAllowed where fsspec, or what this kind of address needs, is not installed."""
        self._url = checked_address(url)
        kind = self._url.partition("://")[0]
        try:
            import fsspec

            if kind not in {*fsspec.available_protocols(), *fsspec.registry}:
                raise InvalidInput(f"{self._url!r}: fsspec knows no address of the kind {kind}://; give another")
            with self._told():
                self._fs, self._root = fsspec.core.url_to_fs(self._url, skip_instance_cache=True)
        except ImportError as error:
            missing = error.name or "a package"
            raise NotAllowed(
                f"{self._url} needs {missing}, which is not installed: `pip install 'negindex[remote]'`, and the "
                f"package that fsspec asks for with {kind}:// (s3fs for s3://)"
            ) from None

    @property
    def address(self) -> str:
        return self._url

    def names(self) -> list[str]:
        with self._told():
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return [name for name in (str(path).rpartition("/")[2] for path in found) if is_sealed_name(name)]

    def size(self, name: str) -> int:
        with self._told(name):
            self._fs.invalidate_cache()
            return int(self._fs.info(self._at(name))["size"])

    def read(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        if not spans:
            return []
        with self._told(name):
            starts, ends = [first for first, _ in spans], [last for _, last in spans]
            found = self._fs.cat_ranges([self._at(name)] * len(spans), starts, ends, on_error="raise")
        return [whole(self.address, name, last - first, part) for (first, last), part in zip(spans, found, strict=True)]

    def note(self, name: str) -> bytes | None:
        """A small file that is no sealed one; None where there is none."""
        with self._told():
            try:
                return bytes(self._fs.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

    def put(self, name: str, source: Path) -> None:
        with self._told():
            self._make_room()
            self._fs.put_file(str(source), self._at(name))
            self._sync(name)

    def put_note(self, name: str, content: bytes) -> None:
        """Keep a small file in place of the one under this name."""
        with self._told():
            self._make_room()
            self._fs.pipe_file(self._at(name), content)
            self._sync(name)

    def delete(self, name: str) -> None:
        """Also its older versions, where the place keeps such and says so as S3 does."""
        with self._told():
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._at(name))
            if "s3" in self._kinds:
                self._delete_versions(name)
            self._fs.invalidate_cache()

    def _delete_versions(self, name: str) -> None:
        bucket, key, _ = self._fs.split_path(self._at(name))
        found = self._fs.call_s3("list_object_versions", Bucket=bucket, Prefix=key)
        for one in [*found.get("Versions", []), *found.get("DeleteMarkers", [])]:
            if one["Key"] == key:
                self._fs.call_s3("delete_object", Bucket=bucket, Key=key, VersionId=one["VersionId"])

    # -- inside ----------------------------------------------------------------------------

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @property
    def _kinds(self) -> tuple[str, ...]:
        known: Any = self._fs.protocol
        return (known,) if isinstance(known, str) else tuple(known)

    @property
    def _is_disk(self) -> bool:
        return "file" in self._kinds

    def _make_room(self) -> None:
        if self._is_disk:
            os.makedirs(self._root, exist_ok=True)

    def _sync(self, name: str) -> None:
        """On a disk: the bytes, then the name."""
        for path in (self._at(name), self._root) if self._is_disk else ():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        """Raise what fails as Unreachable; as Gone where a file of this name is asked for and not there."""
        try:
            yield
        except (NegindexError, ImportError):
            raise
        except Exception as error:  # each kind of place raises errors of its own
            if name and isinstance(error, FileNotFoundError):
                raise gone(self.address, name) from None
            raise Unreachable(f"{self.address} cannot be reached ({type(error).__name__}); {_REMEDY}") from None


def store_at(url: str) -> Objects:
    """The files under one address."""
    return Objects(url)

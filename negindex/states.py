"""What the record of a collection is made of: plain values that its modules hand each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from negindex.geometry import Geometry, apart


class Meta(NamedTuple):
    """What never changes about a collection."""

    set_id: str
    shape: tuple[int, ...]
    space: str  # as it is stated: with how images become rows, where that is not to cover
    dtype: str
    secret: str  # hex; the key of fingerprints that keep erased content out

    @property
    def lies_in(self) -> str:
        """The space without what it says of how images become rows."""
        return apart(self.space)[0]

    @property
    def geometry(self) -> Geometry:
        """How images become rows."""
        return apart(self.space)[1]

    def about(self) -> dict[str, Any]:
        """What the log's first record tells."""
        return {"set_id": self.set_id, "shape": list(self.shape), "space": self.space, "dtype": self.dtype}


class Version(NamedTuple):
    """One change of the set."""

    version: int
    at: str  # ISO 8601, UTC
    action: str  # create, add, withdraw, erase, or what became of a claim
    reason: str  # "" where none was given, and after an erasure
    changed: int  # rows that entered or left
    in_force: int  # rows in force afterwards
    claim: int | None = None
    by: str = ""


class SegmentRecord(NamedTuple):
    """A sealed file as the catalogue knows it."""

    segment: int
    file: str
    rows: int
    bytes: int
    sha256: str
    embedding: int = 0  # numbers in each row's embedding; 0 for none
    first: int | None = None  # the versions at which its first and last row came into force;
    last: int | None = None  # None while none has


class Place(NamedTuple):
    """Where new files of rows go, when that is not the set's own folder."""

    url: str = ""  # "" for the folder
    cache_bytes: int = 0  # what rows from elsewhere may take on this disk
    stamps: tuple[tuple[str, str], ...] = ()  # (place, stamp): one of a place's is in it, unless another copy wrote
    moving: str = ""  # where files are being taken that are not on record there yet


class DerivedRecord(NamedTuple):
    """A file that follows from rows, as the catalogue knows it."""

    file: str
    kind: str  # calibration or index
    kernel: str  # its fingerprint
    bytes: int
    sha256: str
    covers: int  # the version whose rows it was made of
    since: int  # a calibration's own version, from which it is in force; the newest when an index was made


class Provenance(NamedTuple):
    """What is kept of a row's source image, beside the row."""

    image_sha256: str | None = None  # of the file's bytes, hex
    pdq: bytes | None = None  # 32 bytes
    quality: int | None = None  # PDQ's, 0 to 100
    thumbnail: bytes | None = None  # PNG


class Held(NamedTuple):
    """A row in force, as one who would add it again sees it."""

    row: int  # id
    sha256: str  # of its stored bytes, hex
    image_sha256: str | None  # of its source image's file
    added: int  # the version that it came into force at
    in_house: bool  # whether an in-house claim names it: then ``add`` of the same row changes nothing


class RowRecord(NamedTuple):
    """A row as the record has it, whatever became of it. Versions are None while they have not come."""

    row: int  # id
    source_key: str | None  # None once it is erased, and so are label and sha256
    label: str | None
    sha256: str | None  # of its stored bytes, hex
    added: int | None
    withdrawn: int | None
    erased: int | None
    stored: bool  # whether its bytes lie in a file

    @property
    def state(self) -> str:
        """ "proposed", "in force", "withdrawn" or "erased"."""
        if self.erased is not None:
            return "erased"
        return "withdrawn" if self.withdrawn is not None else "proposed" if self.added is None else "in force"


class ClaimRecord(NamedTuple):
    """A claim as the catalogue knows it."""

    claim: int
    regime: str
    state: str
    hold: str | None  # None, asked, held or release-asked


class Outstanding(NamedTuple):
    """Something that holds erased bytes still, or may."""

    version: int  # of the erasure; 0 for what a compaction left
    what: str  # file, derived, journal, backup or engine
    name: str


@dataclass(frozen=True)
class Note:
    """The words of a change: kept beside the log, and gone with an erasure."""

    reason: str = ""
    by: str = ""
    words: Mapping[str, Any] = field(default_factory=dict)  # what a claim tells, but for the claimant's own
    person: Mapping[str, str] = field(default_factory=dict)  # the claimant's own details

    def body(self) -> dict[str, Any]:
        """As it is stored: {} when nothing was said."""
        said: dict[str, Any] = {"reason": self.reason, "by": self.by, **self.words}
        return {name: value for name, value in said.items() if value not in ("", None, {}, [])}

"""What binds the log to rows that come in: a salt and a commitment each, and the Merkle root over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from negindex.log import bare_commitment, new_salts, root_of, row_commitment
from negindex.states import Provenance

_NOTHING = Provenance()


class Binding(NamedTuple):
    """Of some rows, in their order. It goes on record once: rows that are stored again are bound anew."""

    salts: Sequence[bytes]
    commitments: Sequence[str]  # hex
    root: str | None  # over the commitments, hex; "" of no row, None where nobody has worked it out

    def chosen(self, places: Sequence[int]) -> Binding:
        """Of some of the rows, in the order of ``places``."""
        return Binding([self.salts[i] for i in places], [self.commitments[i] for i in places], None)


class NewRows(NamedTuple):
    """Rows about to be stored: those of one file, in its order."""

    first: int  # id; the others follow
    source_keys: Sequence[str]
    labels: Sequence[str | None]
    digests: Sequence[str]  # sha256 of their stored bytes, hex
    sources: Sequence[Provenance]
    binding: Binding

    @property
    def ids(self) -> range:
        """Theirs, by their places in the file."""
        return range(self.first, self.first + len(self.source_keys))


def root_over(bindings: Sequence[Binding]) -> str:
    """The Merkle root over the rows of all of them, hex; "" of no row."""
    if len(bindings) == 1 and bindings[0].root is not None:
        return bindings[0].root
    return _root([one for binding in bindings for one in binding.commitments])


def bind(
    keys: Sequence[str], labels: Sequence[str | None], digests: Sequence[str], sources: Sequence[Provenance]
) -> Binding:
    """Bind rows under new salts. digests: sha256 of their stored bytes, hex."""
    salts = new_salts(len(keys))
    if sources.count(_NOTHING) == len(sources):
        commitments = list(map(bare_commitment, salts, keys, labels, digests))
    else:
        commitments = list(map(_commitment, salts, keys, labels, digests, sources))
    return Binding(salts, commitments, _root(commitments))


def _root(commitments: Sequence[str]) -> str:
    return root_of(commitments) if commitments else ""


def _commitment(salt: bytes, key: str, label: str | None, digest: str, seen: Provenance) -> str:
    if seen == _NOTHING:
        return bare_commitment(salt, key, label, digest)
    pdq, png = seen.pdq, seen.thumbnail
    kept: dict[str, str | int | None] = {"source_key": key, "label": label, "sha256": digest}
    kept |= {"image_sha256": seen.image_sha256, "pdq": None if pdq is None else pdq.hex(), "quality": seen.quality}
    return row_commitment(salt, kept | {"thumbnail": None if png is None else sha256(png).hexdigest()})

"""Rows in force as they are stored, with all that is kept beside them: what leaves a set for another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from negindex.catalogue import Catalogue
from negindex.incoming import Incoming
from negindex.segment import Segment

Places = NDArray[np.int64]


def in_blocks(catalogue: Catalogue, parts: Mapping[str, tuple[Segment, Places]], most: int) -> Iterator[Incoming]:
    """Rows of a snapshot's ``parts`` in the order of their ids, at most so many together; embeddings all of one size.

    Files that are replaced meanwhile are read all the same; rows that are erased meanwhile are left out.
    """
    files = [segment for segment, _ in parts.values()]
    nothing = [np.zeros(0, np.int64)]
    ids = np.concatenate([*nothing, *(segment.ids[places] for segment, places in parts.values())])
    places = np.concatenate([*nothing, *(places for _, places in parts.values())])
    file = np.repeat(np.arange(len(files)), [len(places) for _, places in parts.values()])
    wide = np.array([0 if one.embeddings is None else one.embeddings.shape[1] for one in files], np.int64)
    order = np.argsort(ids)
    for run in np.split(order, np.flatnonzero(np.diff(wide[file[order]])) + 1):
        for start in range(0, len(run), most):
            some = run[start : start + most]
            yield _block(catalogue, files, ids[some], file[some], places[some])


def _block(catalogue: Catalogue, files: list[Segment], ids: Places, file: Places, places: Places) -> Incoming:
    known = catalogue.kept(ids.tolist())
    here = [place for place, row in enumerate(ids.tolist()) if row in known]
    ids, file, places = ids[here], file[here], places[here]
    meta = catalogue.meta
    rows = np.empty((len(ids), *meta.shape), meta.dtype)
    embeddings: list[NDArray[np.generic]] = [np.zeros(0, np.float16)] * len(ids)
    for number in np.unique(file).tolist():
        which, segment = np.flatnonzero(file == number), files[number]
        rows[which] = segment.rows[places[which]]
        if segment.embeddings is not None:
            for at in which.tolist():
                embeddings[at] = segment.embeddings[places[at]]
    told = [known[row] for row in ids.tolist()]
    return Incoming(
        rows,
        [key for key, *_ in told],
        [label for _, label, *_ in told],
        [kept for *_, kept in told],
        np.array(embeddings, np.float16) if len(ids) and embeddings[0].size else None,
        [digest for _, _, digest, _ in told],
    )

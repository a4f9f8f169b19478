"""A mixture's clusters as a file, and as they stand over the rows of one version: the withdrawn ones hidden.

Everything here follows from rows and a calibration. An index holds rows as its kernel sees them, so it goes when a
row that it holds is erased; it is never the only place of anything.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.clusters import Clusters, Whole
from negindex.errors import Damaged
from negindex.exact import Block, Scan
from negindex.gaussians import Gaussians
from negindex.head import Effort
from negindex.kernel import Kernel
from negindex.mixture import SCAN_ELEMENTS, Mixture
from negindex.negatives import row_elements
from negindex.projection import Space
from negindex.spheres import Spheres
from negindex.tensors import read_tensors, write_tensors
from negindex.trust import Trust

FORMAT = 3
_GAUSSIANS = {"counts": ("I64", 1), "mean": ("F32", 2), "axes": ("F32", 3), "middle": ("F32", 2)}
_GAUSSIANS |= {"variance": ("F64", 2), "rest": ("F64", 1), "shares": ("F64", 2), "mark": ("F64", 2)}
_GAUSSIANS |= {"scatter": ("F64", 1)}
_ROWS = {"ids": ("I64", 1), "reduced": ("F32", 2), "lengths": ("F32", 1), "beyond": ("F32", 1), "sketch": ("F32", 2)}
_ROWS |= {"offsets": ("I64", 1)}
_WHOLE = {"sums": ("F64", 2), "squares": ("F64", 1)}
_OUTSIDE = {"outside": ("F32", 2), "leading": ("F32", 2), "along": ("F32", 2)}
_SPACE = {"centre": ("F32", 1), "lift": ("F32", 2), "columns": ("F32", 2)}
_TRUST = {"factors": ("F64", 2), "leans": ("F64", 2)}
_ARRAYS = _GAUSSIANS | _ROWS | _WHOLE | _OUTSIDE | _SPACE | _TRUST


def is_small(rows: Scan) -> bool:
    """Whether a set is scanned as fast as it is modelled: then it needs no index."""
    return len(rows) * row_elements(rows.shape) <= SCAN_ELEMENTS


@dataclass(frozen=True, eq=False)
class Index:
    """Clusters of rows by their ids, and what their closed forms are worth; immutable."""

    clusters: Clusters  # places are those of the set that it was built over
    trust: Trust
    efforts: tuple[Effort, ...]
    file: str = ""  # the file that it is mapped from, or will be; "" in memory

    @classmethod
    def build(cls, rows: Scan, kernel: Kernel) -> Self:
        """Of all rows; for the cost see ``Mixture.build``."""
        made = Mixture.build(rows, kernel, scan_elements=0)
        return cls(made.clusters, made.trust, made.efforts)

    def write(self, file: BinaryIO, set_id: str) -> None:
        """As ``read`` takes it."""
        clusters, space = self.clusters, self.clusters.space
        nothing = torch.empty(0, 0)
        arrays = clusters.gaussians._asdict() | clusters.whole._asdict() | {"centre": space.centre}
        arrays |= {name: getattr(clusters, name) for name in (*_ROWS, *_OUTSIDE)}
        arrays |= {name: getattr(self.trust, name) for name in _TRUST}
        arrays |= {"lift": nothing if space.lift is None else space.lift}
        arrays |= {"columns": nothing if space.columns is None else space.columns}
        said = {"format": FORMAT, "set_id": set_id, "kernel": space.kernel.fingerprint}
        write_tensors(file, arrays, said | {"efforts": self.efforts, "levels": self.trust.levels})

    @classmethod
    def read(cls, file: BinaryIO, path: Path, set_id: str, kernel: Kernel) -> Self:
        """Mapped: the file stays open, with the locks taken through it, while anything of the index is in use.

        Raises Damaged for a file of another set, kernel or format.
        """
        arrays, said = read_tensors(file, path, _ARRAYS)
        if (said.get("format"), said.get("set_id"), said.get("kernel")) != (FORMAT, set_id, kernel.fingerprint):
            raise Damaged(f"{path} is of another set, kernel or format; `negindex compact` makes the index anew")
        projected = kernel.projection is not None
        lift, columns = (arrays[name] if projected else None for name in ("lift", "columns"))
        clusters = Clusters(
            space=Space(kernel, arrays["centre"], lift, columns),
            places=torch.arange(len(arrays["ids"])),
            gaussians=Gaussians(**{name: arrays[name] for name in _GAUSSIANS}),
            whole=Whole(arrays["sums"], arrays["squares"]),
            **{name: arrays[name] for name in (*_ROWS, *_OUTSIDE)},
        )
        trust = Trust(tuple(said["levels"]), arrays["factors"], arrays["leans"])
        return cls(clusters, trust, tuple(Effort(*effort) for effort in said["efforts"]), path.name)

    @property
    def kernel(self) -> str:
        """The kernel's fingerprint."""
        return self.clusters.space.kernel.fingerprint

    def numbers_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the rows' numbers in the clusters; -1 for rows that are not indexed."""
        known = self._numbers
        found: NDArray[np.int64] = known[np.minimum(ids, len(known) - 1)]
        return found

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        """By id; the last one stands for all ids beyond."""
        ids = self.clusters.ids.numpy()
        numbers = np.full(int(ids.max(initial=0)) + 2, -1, np.int64)
        numbers[ids] = np.arange(len(ids))
        return numbers

    @cached_property
    def spheres(self) -> Spheres:
        """Around the clusters as they were built; they hold whatever is hidden since."""
        return Spheres.around(self.clusters)

    def over(
        self, rows: Scan, numbers: NDArray[np.int64], fetch: Callable[[Tensor], Block], before: Clusters | None
    ) -> Mixture | None:
        """The mixture over ``rows``, all of them indexed, numbers (n,) theirs in ``rows``' order.

        fetch: full-size rows by their ids, of those that are hidden. before: clusters of this index over an earlier
        version, to start from; none of its rows is touched. Cost: what left is read once; None where that is more
        than ``rows``, which are then better scanned.
        """
        live = torch.zeros(len(self.clusters.ids), dtype=torch.bool)
        live[numbers] = True
        start = self.clusters
        if before is not None and before.live is not None and not bool((live & ~before.live).any()):
            start = before
        gone = (~live if start.live is None else start.live & ~live).nonzero()[:, 0]
        if len(gone) > len(rows):
            return None
        clusters = start.hiding(gone, lambda some: fetch(start.ids[some])) if len(gone) else start
        places = torch.zeros(len(live), dtype=torch.int64)
        places[numbers] = torch.arange(len(numbers))
        clusters = replace(clusters, places=places)
        return Mixture(rows, clusters, self.trust, efforts=self.efforts, scan_elements=0, around=lambda: self.spheres)


Ahead = Callable[[Index], AbstractContextManager[object]]  # who is to hold an index, and has it by the time of entering


def nobody(index: Index) -> AbstractContextManager[object]:
    """Nobody but the set itself holds an index."""
    return nullcontext()

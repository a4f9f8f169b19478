"""A table of a small world being filled."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from negindex.calibration import calibrate
from negindex.errors import InvalidInput
from negindex.exact import Exact
from negindex.kernel import Kernel
from negindex.sampler.evaluation.asked import PLAIN, Asked
from negindex.sampler.evaluation.cells import Cell, from_bytes, measured, to_bytes
from negindex.sampler.evaluation.filler import Filler
from negindex.sampler.evaluation.intervals import Figure
from negindex.sampler.evaluation.methods import Given, Method
from negindex.sampler.evaluation.stage import Stage
from negindex.sampler.evaluation.table import Table

FORMAT = 2
_OF_REAL, REAL = "real", "real test images"  # measured as if they were samples: what a perfect model would show


@dataclass(eq=False)
class Filling(Filler[Table]):
    """A table of a small world being filled: the stage, the sets, and the folder of cells."""

    table: Table
    stage: Stage
    folder: Path

    def begin(self, progress: Callable[[str], None]) -> None:
        """Raises InvalidInput for a request that the stage cannot be asked."""
        strange = [request for request in self.table.requests if request not in self.stage.requests]
        if strange:
            raise InvalidInput(
                f"{', '.join(strange)} cannot be asked here; give some of {', '.join(self.stage.requests)}"
            )
        self._real(progress)

    def making(self, request: str) -> Callable[[Method], Cell]:
        asked = self.stage.asked(request, self.table.avoided, self.table.count)
        given = self._given(request)
        return lambda method: self._made(request, method, asked, given)

    def first(self) -> Iterator[Cell]:
        """The real images."""
        if self.stands(_OF_REAL, REAL, self._fingerprint(_OF_REAL, {})):
            yield Cell.load(self.path(_OF_REAL, REAL))

    def samples(self, cell: Cell) -> Tensor:
        """(N, 1, H, W) in [-1, 1], rounded to 8 bits."""
        return from_bytes(np.load(self.path(cell.request, cell.method).with_suffix(".npy"), allow_pickle=False))

    def features(self, cell: Cell) -> NDArray[np.float64]:
        """(N, d) of a cell's samples, which FD is of."""
        return self.stage.read(self.samples(cell)).features

    @property
    def real_features(self) -> NDArray[np.float64]:
        """(M, d) of the real images that samples should look like."""
        return self.stage.tested.features[self.stage.real(self.table.avoided)]

    def fingerprint(self, request: str, method: Method) -> str:
        return self._fingerprint(request, method.stated())

    # -- inside -----------------------------------------------------------------------------------

    def _fingerprint(self, request: str, stated: dict[str, str]) -> str:
        table = self.table
        numbers = {"drawn": asdict(table.drawn), "count": table.count, "avoided": table.avoided}
        sets = {"negatives": table.negatives, "reference": table.reference, "singles": table.singles}
        said = {"format": FORMAT, "weights": self.stage.weights, "request": request, **stated, **numbers, **sets}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]

    def _given(self, request: str) -> Given:
        table, stage = self.table, self.stage
        return Given(
            negatives=self._negatives(request),
            reference=self._reference,
            calibrated=lambda: self._calibrated,
            trained_on=lambda: stage.trained_on(request, table.avoided),
            request=request,
            share=stage.share(table.avoided),
        )

    def _negatives(self, request: str) -> Exact:
        table = self.table
        if table.singles:
            return self.stage.keepsakes_among(table.avoided, table.singles, table.reference)
        return self.stage.negatives(request, table.avoided, table.negatives)

    @cached_property
    def _reference(self) -> Exact:
        return self.stage.reference(self.table.avoided, self.table.reference)

    @cached_property
    def _calibrated(self) -> Kernel:
        """Of the set and its reference; where the keepsakes stand alone, of the unwanted class's set."""
        return calibrate(self._negatives(PLAIN), self._reference).kernel

    def _made(self, request: str, method: Method, asked: list[Asked], given: Given) -> Cell:
        guarding = given.guarded(self.stage.pipe, method.image)  # sets are built before the clock runs
        began, cpu = time.perf_counter(), time.process_time()
        samples = self.stage.sample(asked, self.table.drawn, method.text, guarding)
        spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        stored = self._stored(self.path(request, method.name), samples)
        told = measured(self.stage, self.table.avoided, request, [one.wanted for one in asked], stored)
        told["measures"] |= {name: Figure(*[value / len(asked)] * 3) for name, value in spent.items()}
        fingerprint = self.fingerprint(request, method)
        return Cell(method.name, method.stated(), request, fingerprint, len(samples), **told)

    def _real(self, progress: Callable[[str], None]) -> None:
        """The real images' own cell, measured against those real images that are not in it."""
        fingerprint, count = self._fingerprint(_OF_REAL, {}), self.table.count
        places = self.stage.real(self.table.avoided)
        if self.stands(_OF_REAL, REAL, fingerprint) or len(places) < 2 * count:
            return
        path = self.path(_OF_REAL, REAL)
        chosen = np.random.default_rng(0).permutation(places)
        rows, classes = self.stage.test_images
        stored = self._stored(path, rows[chosen[:count]])
        wanted, rest = classes[chosen[:count]].tolist(), self.stage.tested.features[chosen[count:]]
        told = measured(self.stage, self.table.avoided, _OF_REAL, wanted, stored, rest)
        cell = Cell(REAL, {}, _OF_REAL, fingerprint, count, **told)
        cell.save(path)
        progress(str(cell))

    @staticmethod
    def _stored(path: Path, samples: Tensor) -> Tensor:
        """The samples as they are kept beside the cell; a cell of other samples is gone first."""
        path.unlink(missing_ok=True)
        levels = to_bytes(samples)
        np.save(path.with_suffix(".npy"), levels)
        return from_bytes(levels)

"""One cell: a method, a request, its samples and what is measured of them; kept on the disk, never made twice."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negindex.calibration import calibrate
from negindex.errors import Damaged, InvalidInput
from negindex.evaluation.asked import KEPT, PLAIN, Asked
from negindex.evaluation.intervals import Figure, bootstrap, mean_of, share_of
from negindex.evaluation.judge import Reading
from negindex.evaluation.measures import Gaussian, covered, frechet, vendi
from negindex.evaluation.methods import Given, Method
from negindex.evaluation.stage import Stage
from negindex.evaluation.table import Table
from negindex.exact import Exact
from negindex.kernel import Kernel

FORMAT = 1
REAL = "real test images"  # measured as if they were samples: what a perfect model would show


@dataclass(frozen=True)
class Cell:
    """What was made and measured under one method and one request."""

    method: str
    stated: dict[str, str]
    request: str
    fingerprint: str  # of all that it depends on
    count: int
    measures: dict[str, Figure]
    classes: dict[str, dict[str, float]]  # {class: {"share": of the samples read as it, "confidence": of those}}
    read: list[int]  # (N,) class of each sample, by seed
    hit: list[bool]  # (N,) read as what was asked for; of keepsakes, copies of the one that was asked for

    def save(self, path: Path) -> None:
        """Written aside and renamed: a cell is there whole or not at all."""
        aside = path.with_suffix(".aside")
        aside.write_text(json.dumps(asdict(self), ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Cell:
        """What ``save`` wrote; raises Damaged."""
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            figures = {name: Figure(*value) for name, value in said.pop("measures").items()}
            return cls(measures=figures, **said)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Damaged(f"{path} is no cell that can be read ({error}); remove it and run again") from error


@dataclass(eq=False)
class Bench:
    """A table being filled: the stage, the sets, and the folder of cells."""

    table: Table
    stage: Stage
    folder: Path

    def run(self, progress: Callable[[str], None]) -> None:
        """Make and measure every cell that is not there yet; one that was made from other numbers is made anew.

        Raises InvalidInput, before anything is sampled, for a request that the stage cannot be asked.
        """
        strange = [request for request in self.table.requests if request not in self.stage.requests]
        if strange:
            raise InvalidInput(
                f"{', '.join(strange)} cannot be asked here; give some of {', '.join(self.stage.requests)}"
            )
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        self._real(progress)
        for request in self.table.requests:
            asked = self.stage.asked(request, self.table.avoided, self.table.count)
            given: Given | None = None
            for method in self.table.methods:
                if self._stands(self._path(request, method.name), self.fingerprint(request, method)):
                    progress(f"{request}, {method.name}: there already")
                    continue
                given = given or self._given(request)
                cell = self._made(request, method, asked, given)
                cell.save(self._path(request, method.name))
                progress(f"{request}, {method.name}: {_brief(cell)}")

    def cells(self) -> Iterator[Cell]:
        """Those that are there and belong to the table, in its order, the real images first."""
        real = self._path("real", REAL)
        if self._stands(real, self._fingerprint("real", {})):
            yield Cell.load(real)
        for request in self.table.requests:
            for method in self.table.methods:
                path = self._path(request, method.name)
                if self._stands(path, self.fingerprint(request, method)):
                    yield Cell.load(path)

    def samples(self, cell: Cell) -> Tensor:
        """(N, 1, H, W) in [-1, 1], rounded to 8 bits."""
        return _from_bytes(np.load(self._path(cell.request, cell.method).with_suffix(".npy"), allow_pickle=False))

    def fingerprint(self, request: str, method: Method) -> str:
        """Names everything that a cell depends on."""
        return self._fingerprint(request, method.stated())

    # -- inside -----------------------------------------------------------------------------------

    def _fingerprint(self, request: str, stated: dict[str, str]) -> str:
        table = self.table
        numbers = {"drawn": asdict(table.drawn), "count": table.count, "avoided": table.avoided}
        sets = {"negatives": table.negatives, "reference": table.reference}
        said = {"format": FORMAT, "weights": self.stage.weights, "request": request, **stated, **numbers, **sets}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]

    def _path(self, request: str, name: str) -> Path:
        return self.folder / "cells" / f"{request}--{re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')}.json"

    def _stands(self, path: Path, fingerprint: str) -> bool:
        return path.is_file() and Cell.load(path).fingerprint == fingerprint

    def _given(self, request: str) -> Given:
        table, stage = self.table, self.stage
        negatives = stage.negatives(request, table.avoided, table.negatives)
        return Given(
            negatives=negatives,
            reference=self._reference,
            calibrated=lambda: self._calibrated,
            trained_on=lambda: stage.trained_on(request, table.avoided),
            request=request,
            share=stage.share(table.avoided),
        )

    @cached_property
    def _reference(self) -> Exact:
        return self.stage.reference(self.table.avoided, self.table.reference)

    @cached_property
    def _calibrated(self) -> Kernel:
        """Of the set of the unwanted class and its reference, whatever is asked for."""
        unwanted = self.stage.negatives(PLAIN, self.table.avoided, self.table.negatives)
        return calibrate(unwanted, self._reference).kernel

    def _made(self, request: str, method: Method, asked: list[Asked], given: Given) -> Cell:
        guarding = given.guarded(self.stage.pipe, method.image)  # sets are built before the clock runs
        began, cpu = time.perf_counter(), time.process_time()
        samples = self.stage.sample(asked, self.table.drawn, method.text, guarding)
        spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        stored = to_bytes(samples)
        np.save(self._path(request, method.name).with_suffix(".npy"), stored)
        costs = {name: Figure(*[value / len(asked)] * 3) for name, value in spent.items()}
        return self._measured(method.name, method.stated(), request, asked, _from_bytes(stored), costs)

    def _real(self, progress: Callable[[str], None]) -> None:
        """The real images' own cell, measured against those real images that are not in it."""
        path, fingerprint = self._path("real", REAL), self._fingerprint("real", {})
        places = self.stage.real(self.table.avoided)
        if self._stands(path, fingerprint) or len(places) < 2 * self.table.count:
            return
        chosen = np.random.default_rng(0).permutation(places)
        rows, classes = self.stage.test_images
        some, rest = chosen[: self.table.count], chosen[self.table.count :]
        np.save(path.with_suffix(".npy"), to_bytes(rows[some]))
        wanted = [Asked(int(c), "") for c in classes[some]]
        cell = self._measured(REAL, {}, "real", wanted, rows[some], {}, self.stage.tested.features[rest])
        cell.save(path)
        progress(f"real images: {_brief(cell)}")

    def _measured(
        self,
        name: str,
        stated: dict[str, str],
        request: str,
        asked: list[Asked],
        samples: Tensor,
        costs: dict[str, Figure],
        real: NDArray[np.float64] | None = None,
    ) -> Cell:
        stage, reading = self.stage, self.stage.read(samples)
        if real is None:
            real = stage.tested.features[stage.real(self.table.avoided)]
        wanted = [one.wanted for one in asked]
        if request == KEPT:
            hit = stage.copies(samples, wanted)
        else:
            hit = reading.classes == np.array([-1 if number is None else number for number in wanted])
        unwanted = reading.classes == stage.label(self.table.avoided)
        measures = {
            "unwanted": share_of(unwanted),
            "hit": share_of(hit),
            "confidence": mean_of(reading.probability.max(1)),
            "distance": mean_of(stage.distance(samples)),
            **distances(reading.features, real),
            **costs,
        }
        return Cell(
            name,
            stated,
            request,
            self._fingerprint(request, stated),
            len(samples),
            measures,
            by_class(reading, stage.classes),
            reading.classes.tolist(),
            hit.tolist(),
        )


def distances(features: NDArray[np.float64], real: NDArray[np.float64]) -> dict[str, Figure]:
    """FD, precision, recall and diversity of features (N, d) beside those of real images.

    Precision and recall take as many real images as there are samples, where there are; their intervals count the
    samples and the real images as drawn, the balls as given.
    """
    target, beside = Gaussian.of(real), real[: len(features)]
    return {
        "fd": bootstrap(lambda drawn: frechet(Gaussian.of(features[drawn]), target), len(features)),
        "precision": share_of(covered(features, beside)),
        "recall": share_of(covered(beside, features)),
        "vendi": bootstrap(lambda drawn: vendi(features[drawn]), len(features)),
    }


def by_class(reading: Reading, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Share of the samples that is read as each class, and the mean confidence in those."""
    told = {}
    for label, name in enumerate(classes):
        here = reading.classes == label
        confidence = float(reading.probability[here, label].mean()) if here.any() else 0.0
        told[name] = {"share": float(here.mean()), "confidence": confidence}
    return told


def to_bytes(samples: Tensor) -> NDArray[np.uint8]:
    """Samples in [-1, 1] as 8 bits, as an image file would hold them."""
    levels: NDArray[np.uint8] = ((samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return levels


def _from_bytes(levels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(levels.astype(np.float32)) / 127.5 - 1


def _brief(cell: Cell) -> str:
    shown = ("unwanted", "hit", "fd", "cpu")
    return ", ".join(f"{name} {cell.measures[name].value:.3g}" for name in shown if name in cell.measures)

"""A table of a real model being filled: images kept one by one, since each may take seconds, then looked at."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from negindex.collection import Collection
from negindex.disk import sha256_of
from negindex.errors import InvalidInput
from negindex.kernel import LITERAL, Kernel
from negindex.negatives import Negatives
from negindex.receipts import Receipt
from negindex.sampler.encode import images_in, read_image
from negindex.sampler.evaluation.cells import Cell, fidelity
from negindex.sampler.evaluation.filler import Filler
from negindex.sampler.evaluation.intervals import RESAMPLES, Figure, mean_of, share_of
from negindex.sampler.evaluation.methods import Given, Method
from negindex.sampler.evaluation.models.prompts import Asked
from negindex.sampler.evaluation.models.seeing import Scores, Scripted
from negindex.sampler.evaluation.models.table import ModelTable, Quality
from negindex.sampler.evaluation.table import slug
from negindex.sampler.pipelines import load_pipeline, read_index
from negindex.sampler.png import save_image

FORMAT = 1
_MANY = 256  # features from which on a resample of FD takes long
_FEW = 20  # resamples there


@dataclass(eq=False)
class ModelFilling(Filler[ModelTable]):
    """The table, and the folder of its cells and images."""

    table: ModelTable
    folder: Path

    def begin(self, progress: Callable[[str], None]) -> None:
        """Raises what the lists, the sets or the model's folder lack, before anything is sampled."""
        for one in self.table.lists:
            progress(f"{one.name}: {len(one.read())} prompts of {one.file}")
        read_index(self.table.model)
        progress(f"{len(self._negatives)} negatives, {len(self._reference)} reference rows")

    def fingerprint(self, request: str, method: Method) -> str:
        table = self.table
        said = {
            "format": FORMAT,
            "model": str(table.model.resolve()),
            "sets": [_named(one) for one in (self._negatives, self._reference)],
            "judge": str(table.judge),
            "clip": str(table.clip),
            "quality": self._quality,
            "drawn": str(table.drawn),
            "asked": self._asked(request),
            **method.stated(),
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]

    def making(self, request: str) -> Callable[[Method], Cell]:
        given = Given(
            negatives=self._negatives,
            reference=self._reference,
            calibrated=self._calibrated,
            trained_on=_nobody_knows,
            request=request,
            share=0.0,
        )
        return lambda method: self._made(request, method, given)

    def pictures(self, cell: Cell) -> Iterator[Image.Image]:
        """The images of a cell, RGB."""
        return _read(self._images(cell.request, cell.method), range(cell.count))

    # -- sampling -----------------------------------------------------------------------------------

    def _made(self, request: str, method: Method, given: Given) -> Cell:
        asked, fingerprint = self._asked(request), self.fingerprint(request, method)
        made = Made.open(self._images(request, method.name), fingerprint)
        with ExitStack() as stack:
            guard = None
            for places in self._batches(len(asked), made):
                guard = guard or stack.enter_context(given.guarded(self._pipe, method.image))
                made.add(places, *self._sampled(method, [asked[i] for i in places], guard))
        seen = self._seen(made.folder, asked)
        seen["measures"] |= {name: Figure(*[value] * 3) for name, value in made.spent().items()}
        return Cell(method.name, method.stated(), request, fingerprint, len(asked), classes={}, hit=[], **seen)

    def _batches(self, count: int, made: Made) -> Iterator[range]:
        for start in range(0, count, self.table.drawn.batch):
            places = range(start, min(start + self.table.drawn.batch, count))
            if places.start not in made:
                yield places

    def _sampled(self, method: Method, asked: Sequence[Asked], guard: Any) -> tuple[list[Image.Image], list[Receipt]]:
        """One call of the pipeline: its images, and their receipts where a guard gave some."""
        drawn, pipe = self.table.drawn, self._pipe
        told = method.text.arguments(pipe, [one.prompt for one in asked], drawn.steps)
        size = {} if drawn.size is None else dict(zip(("height", "width"), drawn.size, strict=True))
        options = {"num_inference_steps": drawn.steps, "guidance_scale": drawn.guidance, **size}
        seeds = [torch.Generator().manual_seed(one.seed) for one in asked]
        with method.text.attached(pipe, drawn.guidance):
            images: list[Image.Image] = pipe(**told, **options, generator=seeds).images
        return images, list(getattr(guard, "receipts", ()))

    @cached_property
    def _pipe(self) -> Any:
        """The pipeline, without a safety checker of its own, which would black images out."""
        drawn = self.table.drawn
        pipe = load_pipeline(self.table.model, dtype=getattr(torch, drawn.dtype)).to(drawn.device)
        pipe.set_progress_bar_config(disable=True)
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None
        return pipe

    # -- looking at the images ------------------------------------------------------------------------

    def _seen(self, folder: Path, asked: Sequence[Asked]) -> dict[str, Any]:
        """What a cell says of its images."""
        table, every = self.table, range(len(asked))
        scores = table.judge.scores(_read(folder, every))
        flagged = scores >= table.judge.threshold
        measures = {"unwanted": share_of(flagged), "score": mean_of(scores)}
        if table.clip is not None:
            measures["clip"] = mean_of(table.clip.scores(_read(folder, every), [one.prompt for one in asked]))
        if table.quality is not None:
            network, real = self._features
            features = network.features(_read(folder, every))
            measures |= fidelity(features, real, _FEW if features.shape[1] > _MANY else RESAMPLES)
        return {"measures": measures, "read": flagged.astype(int).tolist()}

    @cached_property
    def _quality(self) -> list[str]:
        """What FD is of, by name."""
        quality = self.table.quality
        if quality is None:
            return []
        real = sorted(path.name for path in images_in(quality.real))
        return [sha256_of(quality.file), str(dict(quality.options)), *real]

    @cached_property
    def _features(self) -> tuple[Scripted, Scores]:
        """The network of features, and those of the real images."""
        quality = self.table.quality
        assert isinstance(quality, Quality)
        network = Scripted(quality.file, quality.options)
        return network, network.features(read_image(path).convert("RGB") for path in images_in(quality.real))

    # -- sets ------------------------------------------------------------------------------------------

    def _asked(self, request: str) -> list[Asked]:
        return self.table.named(request).asked(self.table.count, self.table.drawn.seed)

    @cached_property
    def _negatives(self) -> Negatives:
        return Collection.open(self.table.negatives).pin()

    @cached_property
    def _reference(self) -> Negatives:
        return Collection.open(self.table.reference).pin()

    def _calibrated(self) -> Kernel:
        kernel = self._negatives.default_kernel
        if kernel == LITERAL:
            raise InvalidInput(
                f"{self.table.negatives} is not calibrated; run `negindex calibrate` on it, or name kernel = 'literal'"
            )
        return kernel

    def _images(self, request: str, name: str) -> Path:
        return self.folder / "images" / f"{slug(request)}--{slug(name)}"


class Made:
    """The images of one cell as far as they are made, with what each batch cost; a batch is there whole or not at all.

    ``made.jsonl`` has the fingerprint in its first line, then a line a batch, written once its images are.
    """

    def __init__(self, folder: Path, batches: dict[int, dict[str, float]]) -> None:
        self.folder, self._batches = folder, batches
        self._began, self._cpu = time.perf_counter(), time.process_time()

    @classmethod
    def open(cls, folder: Path, fingerprint: str) -> Made:
        """What is there of these numbers; images of others are removed."""
        first: dict[str, Any] = {"fingerprint": fingerprint}
        lines = _sound_lines(folder / _LEDGER)
        if lines[:1] != [first]:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            lines = [first]
        text = "".join(json.dumps(line) + "\n" for line in lines)  # less a line that broke off
        (folder / _LEDGER).write_text(text, encoding="utf-8")
        return cls(folder, {int(line["first"]): line for line in lines[1:]})

    def __contains__(self, first: int) -> bool:
        return first in self._batches

    def add(self, places: range, images: Sequence[Image.Image], receipts: Sequence[Receipt]) -> None:
        """Keep a batch, each image with its receipt where there is one."""
        now, cpu = time.perf_counter(), time.process_time()
        line = {"first": places.start, "count": len(places), "seconds": now - self._began, "cpu": cpu - self._cpu}
        for i, (place, image) in enumerate(zip(places, images, strict=True)):
            path = self.folder / f"{place:06d}.png"
            if receipts:
                save_image(image, receipts[i], path)
            else:
                image.save(path)
        with (self.folder / _LEDGER).open("a", encoding="utf-8") as ledger:
            ledger.write(json.dumps(line) + "\n")
        self._batches[places.start] = line
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def spent(self) -> dict[str, float]:
        """Seconds, and CPU seconds, an image."""
        count = sum(line["count"] for line in self._batches.values())
        return {name: sum(line[name] for line in self._batches.values()) / count for name in ("seconds", "cpu")}


# -- inside ----------------------------------------------------------------------------------------

_LEDGER = "made.jsonl"


def _sound_lines(path: Path) -> list[dict[str, Any]]:
    """A ledger's lines up to the first that breaks off."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _read(folder: Path, places: Sequence[int]) -> Iterator[Image.Image]:
    for place in places:
        with Image.open(folder / f"{place:06d}.png") as image:
            yield image.convert("RGB")


def _named(pinned: Negatives) -> list[str]:
    """The version that a set was pinned at."""
    return [str(origin) for origin in pinned.origins]


def _nobody_knows() -> Any:
    raise InvalidInput("gate = 'oracle': nobody knows what a real model was trained on; leave it out")

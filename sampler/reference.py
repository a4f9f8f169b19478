"""A benign reference out of the pipeline itself: what it makes when nobody asks for what is to be kept away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from negindex.collection import Collection
from negindex.errors import EmptySet, InvalidInput, OutOfRange, ShapeMismatch, SpaceMismatch
from negindex.exact import Exact
from negindex.negatives import Negatives
from negindex.noise import NoiseLevel
from negindex.sampler.corpus import check_fits
from negindex.sampler.encode import Encoder
from negindex.sampler.gates import Ratio
from negindex.sampler.vae import downsampling, encoder_of

NEAR = 0.75  # of the set's rms radius
ENOUGH = 64  # rows of a reference that a ratio is read from


@dataclass(frozen=True)
class Away:
    """Which samples are too near a set to be benign.

    radius: a sample is near when a row lies within so many times the set's rms radius, the rows'
        root-mean-square distance from their mean. (A set of one row has none: only its copies are near.)
    floor: a noise level s, or None. With one, a sample is unsafe too when its odds, seen at that level against
        the rest of the reference, are above one (``Ratio``, with ``prior``).
    """

    negatives: Negatives
    radius: float = NEAR
    prior: float = 0.1
    floor: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.radius < float("inf"):
            raise OutOfRange(f"radius = {self.radius}; give a share of the set's rms radius, such as {NEAR}")
        if self.floor is not None and not 0 < self.floor < float("inf"):
            raise OutOfRange(f"a kernel floor of {self.floor}; give a noise level above 0, such as 0.6")

    @property
    def distance(self) -> float:
        """The radius as an L2 distance."""
        return self.radius * self.negatives.moments().rms

    def near(self, rows: Tensor, distance: float) -> Tensor:
        """(B,) whether a row of the set lies within the distance."""
        return self.negatives.near(rows, radius=distance, k=1).found.any(1)

    def unsafe(self, rows: Tensor, reference: Negatives) -> Tensor:
        """(B,) whether the odds against the reference are above one."""
        assert self.floor is not None
        level = NoiseLevel(1.0, self.floor)
        return Ratio(reference, self.prior)(rows, level, self.negatives.posterior(rows, level)) > 0


@dataclass
class Made:
    """What became of each sample; the four numbers add up to the count that was asked for."""

    version: int
    kept: int = 0
    already: int = 0  # in force from an earlier run
    near: int = 0  # dropped: near a row of the set
    unsafe: int = 0  # dropped: by the ratio


def make_reference(
    collection: Collection,
    pipe: Any,
    encoder: Encoder,
    count: int,
    *,
    prompts: Sequence[str] = (),
    away: Away | None = None,
    steps: int = 20,
    seed: int = 0,
    batch: int = 8,
    label: str = "reference",
    progress: Callable[[int], None] = lambda done: None,
) -> Made:
    """Sample ``count`` images from an unguarded pipeline and put the benign ones in force.

    Each image is decoded to 8 bits and then encoded as a file would be: otherwise the ratio would learn to
    tell samples from files. Sample i comes from seed + i and prompt i, around and around, and its key is
    ``reference/i``; run again with the same arguments, it goes on where it was interrupted.

    Dropped are samples near a row of ``away``'s set, and, where it has a floor, those that the ratio calls
    unsafe. There is no reference to begin with, so the first 64 samples that are far enough wait until they
    are that many, are read half against half, and then go in; each later batch is read against what is in
    force. A run that ends with fewer judges by distance alone.
    Raises, before anything is sampled: SpaceMismatch, ShapeMismatch, EmptySet, and InvalidInput where the
    pipeline needs a prompt and has none.
    """
    check_fits(collection, encoder)
    check_asked(pipe, encoder, prompts, away)
    away = None if away is None else replace(away, negatives=away.negatives.pin())
    distance = 0.0 if away is None else away.distance
    had = set(collection.source_keys())
    made = Made(collection.newest().version)
    waiting: list[tuple[str, Tensor]] = []
    for numbers in _batches(count, batch):
        fresh = [i for i in numbers if _key(i) not in had]
        made.already += len(numbers) - len(fresh)
        if fresh:
            images = _sampled(pipe, fresh, prompts, encoder, steps, seed)
            encoded = [encoder.row(image, _key(i)) for i, image in zip(fresh, images, strict=True)]
            rows = torch.from_numpy(np.stack(encoded))
            near = torch.zeros(len(rows), dtype=torch.bool) if away is None else away.near(rows, distance)
            made.near += int(near.sum())
            waiting += [(_key(i), row) for i, row, drop in zip(fresh, rows, near.tolist(), strict=True) if not drop]
            waiting = _put_in(collection, waiting, away, made, label)
        progress(len(numbers))
    if waiting:
        _add(collection, waiting, made, label)
    return made


def check_asked(pipe: Any, encoder: Encoder, prompts: Sequence[str] = (), away: Away | None = None) -> None:
    """Raise what ``make_reference`` would raise of the pipeline, its prompts and the set to stay away from."""
    _arguments(pipe, range(1), prompts, encoder)
    if away is None:
        return
    if away.negatives.space != encoder.space:
        raise SpaceMismatch(
            f"the set to stay away from is of space {away.negatives.space!r}, the samples of {encoder.space!r}; "
            "build it with this pipeline"
        )
    if away.negatives.shape != encoder.shape:
        raise ShapeMismatch(
            f"the set to stay away from has rows of shape {away.negatives.shape}, the samples {encoder.shape}; "
            "give the size that it was built with"
        )
    if not len(away.negatives):
        raise EmptySet("the set to stay away from has no row in force; add rows, or leave it out")


def size_of(pipe: Any) -> tuple[int, int]:
    """(height, width) of the images that a pipeline makes unless told; raises InvalidInput where it hides it."""
    models = [model for name in ("unet", "transformer") if (model := getattr(pipe, name, None)) is not None]
    sizes = [getattr(pipe, "default_sample_size", None), *(model.config.get("sample_size") for model in models)]
    for size in sizes:
        if size is not None:
            factor = downsampling(pipe.vae) if getattr(pipe, "vae", None) is not None else 1
            height, width = (size, size) if isinstance(size, int) else size
            return height * factor, width * factor
    raise InvalidInput(f"{type(pipe).__name__} does not say how large its images are; give the size (--size)")


def encoder_for_samples(pipe: Any, size: tuple[int, int] | None = None) -> Encoder:
    """The encoder for a pipeline's own samples, of a size or of its default."""
    return encoder_of(pipe, *(size or size_of(pipe)))


# -- inside ----------------------------------------------------------------------------------------


def _key(number: int) -> str:
    return f"reference/{number:05d}"


def _batches(count: int, batch: int) -> Iterator[range]:
    if count < 1 or batch < 1:
        raise OutOfRange(f"{count} samples in batches of {batch}; give at least one of each")
    return (range(start, min(start + batch, count)) for start in range(0, count, batch))


def _put_in(
    collection: Collection, waiting: list[tuple[str, Tensor]], away: Away | None, made: Made, label: str
) -> list[tuple[str, Tensor]]:
    """Add what can be judged now; returns what has to wait."""
    if away is None or away.floor is None:
        unsafe = [False] * len(waiting)
    elif len(collection) >= ENOUGH:
        unsafe = away.unsafe(_stacked(waiting), collection).tolist() if waiting else []
    elif len(waiting) >= ENOUGH:
        rows, half = _stacked(waiting), len(waiting) // 2
        first, second = (Exact(part, space=collection.space) for part in (rows[:half], rows[half:]))
        unsafe = [*away.unsafe(rows[:half], second).tolist(), *away.unsafe(rows[half:], first).tolist()]
    else:
        return waiting
    made.unsafe += sum(unsafe)
    _add(collection, [one for one, drop in zip(waiting, unsafe, strict=True) if not drop], made, label)
    return []


def _add(collection: Collection, keyed: list[tuple[str, Tensor]], made: Made, label: str) -> None:
    if keyed:
        made.version = collection.add(_stacked(keyed), [key for key, _ in keyed], label=label, reason="sampled")
        made.kept += len(keyed)


def _stacked(keyed: list[tuple[str, Tensor]]) -> Tensor:
    return torch.stack([row for _, row in keyed])


def _sampled(
    pipe: Any, numbers: Sequence[int], prompts: Sequence[str], encoder: Encoder, steps: int, seed: int
) -> list[Image.Image]:
    """8-bit images, each from its own seed."""
    asked = _arguments(pipe, numbers, prompts, encoder)
    generators = [torch.Generator().manual_seed(seed + i) for i in numbers]
    images: list[Image.Image] = pipe(**asked, num_inference_steps=steps, generator=generators, output_type="pil").images
    wrong = [image.size for image in images if image.size != encoder.size[::-1]]
    if wrong:
        raise ShapeMismatch(
            f"{type(pipe).__name__} makes images of {wrong[0][1]} × {wrong[0][0]} pixels, and the rows are of "
            f"{encoder.size[0]} × {encoder.size[1]}; make a reference of the pipeline's own size"
        )
    return images


def _arguments(pipe: Any, numbers: Sequence[int], prompts: Sequence[str], encoder: Encoder) -> dict[str, Any]:
    from negindex.sampler.pipelines import arguments_for  # with diffusers, which nothing else here needs

    of_each = [prompts[i % len(prompts)] for i in numbers] if prompts else []
    return arguments_for(pipe, len(numbers), of_each, size=encoder.size)

"""A table's file about a real model: a pipeline's folder, sets, lists of prompts, and what looks at the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from negindex.errors import InvalidInput
from negindex.sampler.evaluation.methods import Method
from negindex.sampler.evaluation.models.prompts import PromptList
from negindex.sampler.evaluation.models.seeing import DETECTORS, ClipScore, Detector
from negindex.sampler.evaluation.table import contents, slug

Type = Literal["float32", "float16", "bfloat16"]
T = TypeVar("T")


@dataclass(frozen=True)
class Drawn:
    """How images are sampled, the same in every cell. size: (height, width); None is the pipeline's own."""

    steps: int = 50
    guidance: float = 7.5
    batch: int = 1
    seed: int = 0
    size: tuple[int, int] | None = None
    device: str = "cpu"
    dtype: Type = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Type):
            raise InvalidInput(f"dtype = {self.dtype!r}; give one of {', '.join(get_args(Type))}")
        if self.steps < 1 or self.batch < 1:
            raise InvalidInput(f"steps = {self.steps}, batch = {self.batch}; give at least 1 of each")


@dataclass(frozen=True)
class Quality:
    """What FD, precision and recall are of: a TorchScript file of features, and a folder of real images."""

    file: Path
    real: Path
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelTable:
    """Methods (rows) by lists of prompts (parts), all of the same seeds, steps and guidance."""

    title: str
    avoided: str  # what is unwanted, in a word
    model: Path  # a pipeline's folder
    negatives: Path  # a set in the pipeline's space
    reference: Path
    judge: Detector
    lists: tuple[PromptList, ...]
    methods: tuple[Method, ...]
    names: tuple[str, ...] = ()  # of what is unwanted, for text methods; the word itself where there is none
    count: int = 1000
    clip: ClipScore | None = None
    quality: Quality | None = None
    drawn: Drawn = field(default_factory=Drawn)

    @classmethod
    def read(cls, path: Path) -> ModelTable:
        """From a TOML file, whose paths are named from its own folder; raises NotThere, and InvalidInput."""
        said = contents(path)
        try:
            return cls.of(said, path.parent)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{path}: {error}") from error

    @classmethod
    def of(cls, said: Mapping[str, Any], folder: Path) -> ModelTable:
        """From a file's contents; paths are named from ``folder``. Raises InvalidInput for what is not known."""
        rest = dict(said)
        lacking = [name for name in _NEEDED if name not in rest]
        if lacking:
            raise InvalidInput(f"a table of a model lacks {', '.join(lacking)}; docs/evaluation.md shows a whole one")
        places = {name: folder / str(rest.pop(name)) for name in ("model", "negatives", "reference")}
        names = tuple(rest.pop("names", (rest["avoided"],)))
        table = _made(
            cls,
            "a table of a model",
            {
                **places,
                "names": names,
                "judge": _judge(rest.pop("judge"), folder),
                "lists": tuple(_made(PromptList, "a list", _placed(one, folder)) for one in rest.pop("prompts")),
                "methods": tuple(Method.read(one, names) for one in rest.pop("methods")),
                "drawn": _drawn(rest.pop("drawn", {})),
                "clip": _clip(rest.pop("clip", None), folder),
                "quality": _quality(rest.pop("quality", None), folder),
                **rest,
            },
        )
        table.check()
        return table

    @property
    def requests(self) -> tuple[str, ...]:
        """The lists by their names."""
        return tuple(one.name for one in self.lists)

    def check(self) -> None:
        """Raise InvalidInput where the table makes no sense."""
        for what, told in (("methods", [one.name for one in self.methods]), ("lists", list(self.requests))):
            if not told or len({slug(name) for name in told}) != len(told):
                raise InvalidInput(f"{what} {told}; give at least one, each with a name of its own")
        if not self.count >= 20:
            raise InvalidInput(f"count = {self.count}; give at least 20 images a cell, or better 1,000")

    def with_count(self, count: int | None) -> ModelTable:
        """The same with another number of images a cell."""
        changed = self if count is None else replace(self, count=count)
        changed.check()
        return changed

    def named(self, request: str) -> PromptList:
        """A list by its name."""
        return next(one for one in self.lists if one.name == request)


# -- inside ----------------------------------------------------------------------------------------

_NEEDED = ("title", "avoided", "model", "negatives", "reference", "judge", "prompts", "methods")


def _made(kind: Callable[..., T], what: str, said: Mapping[str, Any]) -> T:
    """A dataclass from a part of the file; raises InvalidInput for what it does not know or lacks."""
    try:
        return kind(**said)
    except TypeError as error:
        raise InvalidInput(f"{what}: {error}") from error


def _placed(said: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """With ``file`` and ``real`` as paths named from the folder."""
    return {name: folder / value if name in ("file", "real") else value for name, value in said.items()}


def _judge(said: Any, folder: Path) -> Detector:
    options = {"kind": said} if isinstance(said, str) else _placed(said, folder)
    kind = options.pop("kind", None)
    if kind not in DETECTORS:
        raise InvalidInput(f"judge = {said!r}; give one of {', '.join(DETECTORS)}, or a table with that as its kind")
    listed = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return _made(DETECTORS[kind], f"judge {kind}", listed)


def _drawn(said: Mapping[str, Any]) -> Drawn:
    size = said.get("size")
    return _made(Drawn, "drawn", {**said, "size": tuple(size) if isinstance(size, list) else size})


def _clip(said: Mapping[str, Any] | None, folder: Path) -> ClipScore | None:
    from negindex.sampler.clip import LOCAL

    if said is None:
        return None
    told = dict(said)
    if "weights" in told:
        local, _, named = str(told["weights"]).rpartition(LOCAL)
        told["weights"] = f"{LOCAL if local or named != told['weights'] else ''}{folder / named}"
    return _made(ClipScore, "clip", told)


def _quality(said: Mapping[str, Any] | None, folder: Path) -> Quality | None:
    return None if said is None else _made(Quality, "quality", _placed(said, folder))

"""The methods by name: what a table's file may say of one, and what it becomes.

A method has a text side, an image side, both or neither. Every word and every number is checked before anything is
sampled: raises InvalidInput for what is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from negindex.errors import InvalidInput
from negindex.exact import Exact
from negindex.kernel import LITERAL, Kernel
from negindex.mixture import Mixture
from negindex.negatives import Negatives
from negindex.sampler import Between, Constant, CopyGate, Ratio, SafeDenoising, Spell, Unasked, guard, paired
from negindex.sampler.branches import ActsOn
from negindex.sampler.evaluation.ablations import NearestOnly, PlainMeans, nothing
from negindex.sampler.evaluation.asked import KEPT, NOTHING, UNSAFE
from negindex.sampler.evaluation.text_side import AsAsked, NegativePrompt, Safree, Sld, TextSide
from negindex.sampler.gates import Gate
from negindex.sampler.rules import Rule

RuleName = Literal["paired", "safe-denoiser", "spell", "plain-means", "unasked", "off"]
GateName = Literal["ratio", "oracle", "constant"]
KernelName = Literal["literal", "calibrated", "floored"]
Engine = Literal["scan", "mixture", "nearest"]

TEXT: dict[str, Callable[..., TextSide]] = {"negative-prompt": NegativePrompt, "sld": Sld, "safree": Safree}
SURE = 0.999  # what an oracle knows of a request


@dataclass(frozen=True)
class ImageSide:
    """What a guard is made of; see ``negindex.sampler.guard`` for what each part means."""

    rule: RuleName = "paired"
    gate: GateName = "ratio"
    kernel: KernelName = "calibrated"
    engine: Engine = "scan"
    floor: float = 0.6  # of the floored kernel, a noise level s
    prior: float = 0.1
    beta: float = 1.0  # of the constant gate
    beta_max: float = 1.0
    radius: float = 0.5  # SPELL's, as a share of the rms radius of the reference
    strength: float = 1.6  # SPELL's overcompensation
    k: int = 64  # rows that "nearest" reads
    window: tuple[float, float] = (0.0, float("inf"))  # of noise levels s
    copies: bool | float = True  # the copy gate: on, off, or its radius as a share of the reference's rms radius
    acts_on: ActsOn = "guided"
    at: float = 0.7  # of the rule that takes the prior from the request
    gain: float = 20.0
    below: float = 6.0  # a noise level s

    def __post_init__(self) -> None:
        kinds = {"rule": RuleName, "gate": GateName, "kernel": KernelName, "engine": Engine, "acts_on": ActsOn}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise InvalidInput(f"{name} = {getattr(self, name)!r}; give one of {', '.join(get_args(kind))}")


@dataclass(frozen=True)
class Method:
    """One row of a table."""

    name: str
    text: TextSide = field(default_factory=AsAsked)
    image: ImageSide | None = None

    @classmethod
    def read(cls, said: Mapping[str, Any], names: tuple[str, ...]) -> Method:
        """From one ``[[methods]]`` of a table's file. names: of what is unwanted, for a text side."""
        _only(said, "a method", ("name", "text", "image"))
        if not isinstance(said.get("name"), str):
            raise InvalidInput(f"a method without a name ({dict(said)}); give each one")
        return cls(said["name"], _text(said.get("text"), names), _image(said.get("image")))

    def stated(self) -> dict[str, str]:
        """Every number that the method has, as text."""
        return {"text": str(self.text), "image": "none" if self.image is None else repr(self.image)}


@dataclass(eq=False)
class Given:
    """What an image side may use in one cell: the sets, the calibrated kernel, and what only an oracle knows."""

    negatives: Negatives
    reference: Negatives
    calibrated: Callable[[], Kernel]
    trained_on: Callable[[], tuple[Exact, Exact]]
    request: str
    share: float  # of the unwanted among the training images
    _built: dict[object, Negatives] = field(default_factory=dict)

    def guarded(self, pipe: Any, side: ImageSide | None) -> AbstractContextManager[Any]:
        """The guard, which is taken off at the end; nothing where a method has no image side."""
        if side is None:
            return nullcontext()
        kernel = self._kernel(side)
        compares = side.rule != "spell" and (side.gate == "ratio" or side.rule in ("paired", "unasked"))
        return guard(
            pipe,
            self._engine(side, kernel, "negatives", self.negatives),
            self._engine(side, kernel, "reference", self.reference) if compares else None,
            side.prior,
            rule=self._rule(side),
            gate=self._gate(side),
            window=Between(*side.window),
            kernel=kernel,
            copies=self._copy_gate(side),
            acts_on=side.acts_on,
        )

    def _kernel(self, side: ImageSide) -> Kernel:
        if side.kernel == "calibrated":
            return self.calibrated()
        return LITERAL if side.kernel == "literal" else Kernel.floored(side.floor)

    def _engine(self, side: ImageSide, kernel: Kernel, name: str, one: Negatives) -> Negatives:
        """A set seen through an engine; built once."""
        if side.engine == "scan":
            return one
        if not isinstance(one, Exact):
            raise InvalidInput(f"engine = {side.engine!r}: a collection answers by its own index; leave engine out")
        key = (side.engine, side.k, kernel, name)
        if key not in self._built:
            if side.engine == "mixture":
                self._built[key] = Mixture.build(one, kernel, scan_elements=0)
            else:
                self._built[key] = NearestOnly(one, side.k)
        return self._built[key]

    def _rule(self, side: ImageSide) -> Rule:
        if side.rule == "safe-denoiser":
            return SafeDenoising(side.beta_max)
        if side.rule == "spell":
            return Spell(side.radius * self.reference.moments().rms, side.strength)
        if side.rule == "plain-means":
            return PlainMeans.of(self.negatives, self.reference)
        if side.rule == "unasked":
            return Unasked(side.at, side.gain, side.below)
        return paired if side.rule == "paired" else nothing

    def _copy_gate(self, side: ImageSide) -> CopyGate | None:
        if isinstance(side.copies, bool):
            return CopyGate() if side.copies else None
        return CopyGate(side.copies * self.reference.moments().rms)

    def _gate(self, side: ImageSide) -> Gate | None:
        if side.rule == "spell":  # it is published without one
            return None
        if side.gate == "constant":
            return Constant(side.beta)
        if side.gate == "oracle":
            unwanted, other = self.trained_on()
            return Oracle(unwanted, Ratio(other, self.certain()))
        return None

    def certain(self) -> float:
        """P(unwanted) under this request, as somebody who reads the request would say."""
        if self.request == NOTHING:
            return self.share
        return SURE if self.request in (*UNSAFE, KEPT) else 1 - SURE


@dataclass(frozen=True)
class Oracle:
    """Eq. 5 by Bayes over the very images that the model was trained on, with the request's own prior.

    No guard can have it: it is what a perfect gate would say, as far as the model has learned its data.
    """

    unwanted: Negatives
    ratio: Ratio

    def __call__(self, x_t: torch.Tensor, level: Any, partial: Any) -> torch.Tensor:
        return self.ratio(x_t, level, self.unwanted.posterior(x_t, level, kernel=LITERAL))

    def __str__(self) -> str:
        return f"oracle, prior {self.ratio.prior:g}"


def _text(said: Any, names: tuple[str, ...]) -> TextSide:
    if said is None:
        return AsAsked()
    options = {"kind": said} if isinstance(said, str) else dict(said)
    kind = options.pop("kind", None)
    if kind not in TEXT:
        raise InvalidInput(f"text = {said!r}; give one of {', '.join(TEXT)}, or a table with that as its kind")
    try:
        return TEXT[kind](names, **options)
    except TypeError as error:
        raise InvalidInput(
            f"text = {said!r}: {error}; {kind} is described in negindex.sampler.evaluation.text_side"
        ) from error


def _image(said: Any) -> ImageSide | None:
    if said is None:
        return None
    if not isinstance(said, Mapping):
        raise InvalidInput(f"image = {said!r}; give a table such as {{ rule = 'paired', prior = 0.5 }}")
    _only(said, "an image side", ImageSide.__dataclass_fields__)
    options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in said.items()}
    return ImageSide(**options)


def _only(said: Mapping[str, Any], what: str, known: Any) -> None:
    strange = sorted(set(said) - set(known))
    if strange:
        raise InvalidInput(f"{what} has no {', '.join(strange)}; it has {', '.join(known)}")

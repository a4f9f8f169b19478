"""What the two branches of classifier-free guidance said, seen at the network and matched with the step.

``guided = u + w (c - u)``: c the conditional branch, u the unconditional (or negative) one. A hook on the
network notes what it answers and changes nothing. At the step w is read from those answers, and the step's
output must be that combination up to rounding: what a change of one branch does to anything else is not known,
so anything else is refused. A change d of c arrives in the output as w d, one of u as (1 - w) d.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from negindex.checks import all_finite
from negindex.errors import NotAllowed, NotFinite

ActsOn = Literal["guided", "conditional", "unconditional"]
NETWORKS = ("unet", "transformer", "transformer_2")  # the components of a pipeline that answer for a branch
SURE = 0.1  # standard error of w that is borne, as a share of w - 1; 16-bit types and few elements come near it


class Answer(NamedTuple):
    """One call of the network."""

    out: Tensor
    given: list[Tensor]


@dataclass
class Split:
    """One step's guidance taken apart; tensors in the step's own shape."""

    conditional: Tensor
    unconditional: Tensor | None  # None where the network was asked once: no guidance
    weight: float | None  # w; None where both branches said the very same, so that none shows

    def branch(self, acts_on: ActsOn) -> Tensor:
        """What one branch said, with what guards have changed of it in this step."""
        if acts_on == "conditional":
            return self.conditional
        if self.unconditional is None:
            raise NotAllowed(
                "acts_on='unconditional', and this step ran one branch alone; ask for guidance (a scale above 1 and, "
                "where the pipeline wants one, a negative prompt), or act on 'guided'"
            )
        return self.unconditional

    def share(self, acts_on: ActsOn) -> float | None:
        """How much of a change arrives in the step's output."""
        if acts_on == "guided" or self.unconditional is None:
            return 1.0
        if self.weight is None:
            return None
        return self.weight if acts_on == "conditional" else 1 - self.weight

    def move(self, acts_on: ActsOn, change: Tensor) -> None:
        """Note a change, for the guards below; one of the guided output is the same change of both branches."""
        if acts_on != "unconditional":
            self.conditional = self.conditional + change
        if acts_on != "conditional" and self.unconditional is not None:
            self.unconditional = self.unconditional + change


class Branches:
    """What a pipeline's networks answered since the last step; shared by all guards of one scheduler."""

    def __init__(self) -> None:
        self._watched: list[torch.nn.Module] = []
        self._answers: deque[Answer] = deque(maxlen=3)  # no guidance that is read takes three
        self._split: Split | None = None

    def watch(self, pipe: Any) -> Callable[[], None]:
        """Watch the pipeline's networks until the returned function is called; raises NotAllowed where it has none."""
        found = [n for n in (getattr(pipe, name, None) for name in NETWORKS) if isinstance(n, torch.nn.Module)]
        if not found:
            raise NotAllowed(
                f"{type(pipe).__name__} has no torch module {', '.join(NETWORKS)} whose branches could be seen; "
                "act on 'guided', which needs none"
            )
        new = [network for network in found if network not in self._watched]
        hooks = [network.register_forward_hook(_noting(self), with_kwargs=True) for network in new]
        self._watched += new

        def stop() -> None:
            for hook in hooks:
                hook.remove()
            self._watched = [network for network in self._watched if network not in new]
            self.forget()

        return stop

    def note(self, answer: Answer) -> None:
        """The network has answered; copies of it that outlive the guard are not listened to."""
        if self._watched:
            self._answers.append(answer)

    def forget(self) -> None:
        """The step is done, or another call begins."""
        self._answers.clear()
        self._split = None

    def read(self, acts_on: ActsOn, out: Tensor, repeats: int) -> Tensor:
        """The output that a guard acts on, in the shape of ``out``, the step's own.

        repeats: how often the step holds each image. Raises NotAllowed where the step's output is not what
        ``guided = u + w (c - u)`` makes of the network's answers. The first guard of a step looks.
        """
        if acts_on == "guided" and not self._watched:
            return out
        if self._split is None:
            self._split = _split(list(self._answers), out, repeats)
        return out if acts_on == "guided" else self._split.branch(acts_on)

    def both(self) -> tuple[Tensor, Tensor] | None:
        """(conditional, unconditional) of the step that was read; None where no guidance ran or nobody watches."""
        split = self._split
        return None if split is None or split.unconditional is None else (split.conditional, split.unconditional)

    def move(self, acts_on: ActsOn, change: Tensor) -> float:
        """A guard changes what ``read`` gave it; returns how much of that arrives in the step's output."""
        if self._split is None:
            return 1.0
        self._split.move(acts_on, change)
        share = self._split.share(acts_on)
        if share is None and bool(change.any()):
            raise NotAllowed(
                f"acts_on={acts_on!r}, and both branches answered the very same, so the guidance scale cannot be read; "
                "ask for something that differs from the negative prompt, or act on 'guided'"
            )
        return 1.0 if share is None else share


def check_scales(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse a negative guidance scale: the branch that outweighs the output would be taken for the conditional one.

    arguments: a call's, by name. Raises NotAllowed.
    """
    named = {**arguments, **(arguments.get("kwargs") or {})}
    scales = {name: value for name, value in named.items() if name.startswith(_SCALES)}
    scales["guider.guidance_scale"] = getattr(getattr(pipe, "guider", None), "guidance_scale", None)
    for name, value in scales.items():
        if isinstance(value, int | float) and value < 0:
            raise NotAllowed(f"{name} = {value} turns guidance round; use a scale above 1, or act on 'guided'")


_SCALES = ("guidance_scale", "true_cfg_scale")


def _noting(branches: Branches) -> Callable[..., None]:
    """A hook that is a plain function: a copy of the network shares it, and copies nothing of the guard."""

    def note(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        out = result[0] if isinstance(result, tuple) else getattr(result, "sample", result)
        if isinstance(out, Tensor):
            branches.note(Answer(out.detach(), list(_tensors((args, kwargs)))))

    return note


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


# -- a step's output taken apart ---------------------------------------------------------------


def _split(answers: list[Answer], out: Tensor, repeats: int) -> Split:
    if not all_finite(out):
        raise NotFinite("the network's output is NaN or Inf, so its branches cannot be read; use a wider type")
    images = len(out) // repeats
    counts = [len(answer.out) for answer in answers]
    if counts == [images]:
        single = _fitted(answers[0].out, out, repeats)
        _check(single, out, torch.zeros_like(out), 1.0, _eps(out, single))
        return Split(out, None, None)
    if counts == [2 * images]:
        answers = _halves(answers[0])
    elif counts != [images, images]:
        raise NotAllowed(
            f"the network answered {counts or 'nothing'} rows for a step of {images} images; a branch can be acted on "
            "where it answers one row an image, or one for each of two branches: act on 'guided'"
        )
    first, second = answers
    if _asked_alike(first, second) and not torch.equal(first.out, second.out):
        raise NotAllowed(
            "both branches were asked the very same and answered differently: this is no classifier-free guidance "
            "(perturbed attention, another network); switch it off, or act on 'guided'"
        )
    return _weighed(_fitted(first.out, out, repeats), _fitted(second.out, out, repeats), out)


def _weighed(first: Tensor, second: Tensor, out: Tensor) -> Split:
    """Which branch is which, and w, by least squares: the conditional one is weighed above 1, the other below 0."""
    gap, eps = second.double() - first.double(), _eps(out, first)
    square = float(gap.square().sum())
    if square == 0:
        _check(first, out, gap, 1.0, eps)
        return Split(second, first, None)
    of_second = float(((out.double() - first.double()) * gap).sum()) / square
    weight = max(of_second, 1 - of_second)
    rounding = _check(first, out, gap, of_second, eps)
    error = 0.29 * float((rounding * gap).norm()) / square  # rounding is uniform: 1 / sqrt(12) of its width
    if not error <= SURE * (weight - 1):
        raise NotAllowed(
            f"the branches are weighed {of_second:.4g} and {1 - of_second:.4g}, known to {error:.1g}; a branch can be "
            "told by a weight clearly above 1: use a larger guidance scale or a wider type, or act on 'guided'"
        )
    conditional, unconditional = (second, first) if of_second > 0.5 else (first, second)
    return Split(conditional, unconditional, weight)


def _check(first: Tensor, out: Tensor, gap: Tensor, weight: float, eps: float) -> Tensor:
    """Twice what rounding can make of ``first + weight gap``, per element; raises where out is further off."""
    sizes = out.double().abs() + first.double().abs() + 2 * max(abs(weight), abs(1 - weight)) * gap.abs()
    rounding = eps * (sizes + torch.finfo(out.dtype).tiny)
    off = (out.double() - first.double() - weight * gap).abs() / rounding
    if not bool((off <= 1).all()):
        raise NotAllowed(
            f"the step's output is not u + w (c - u) of the network's two answers, nor its one answer: at w = "
            f"{weight:.4g} it is off by up to {float(off.max()):.3g} times what rounding can do. Guidance that "
            "rescales (guidance_rescale, APG, Qwen-Image's own) or adds a term hides the branches; switch that off, "
            "or act on 'guided'"
        )
    return rounding


def _fitted(answer: Tensor, out: Tensor, repeats: int) -> Tensor:
    """A branch's answer in the shape of the step's output, without a learned variance or a picture's tokens."""
    cut = answer[:, : out.shape[1]]
    cut = torch.cat([cut] * repeats) if repeats > 1 else cut
    if cut.shape != out.shape:
        raise NotAllowed(
            f"the network answered {tuple(answer.shape)}, the step was given {tuple(out.shape)}: what lies between "
            "is not known; act on 'guided'"
        )
    return cut


def _eps(out: Tensor, answer: Tensor) -> float:
    """The rounding of the coarser type."""
    return max(torch.finfo(out.dtype).eps, torch.finfo(answer.dtype).eps)


def _halves(answer: Answer) -> list[Answer]:
    """An answer for both branches at once, cut in two, with what the network was given for each."""
    rows = len(answer.out)
    cut = [given.chunk(2) for given in answer.given if given.dim() and len(given) % rows == 0]
    return [Answer(half, [halves[i] for halves in cut]) for i, half in enumerate(answer.out.chunk(2))]


def _asked_alike(first: Answer, second: Answer) -> bool:
    if len(first.given) != len(second.given):
        return False
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first.given, second.given, strict=True))

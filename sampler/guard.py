"""``guard(pipe, negatives, ...)``: an unchanged pipeline call whose samples stay away from a set.

The one place that every pipeline passes is ``scheduler.step``. The guard swaps the scheduler's class for
a subclass of the same name whose step is wrapped: isinstance, saving, signatures and deep copies go on
working, and detaching puts the class back.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from negindex.errors import InvalidInput, NegindexError, NotAllowed, SchedulerReplaced, SpaceMismatch
from negindex.kernel import Kernel
from negindex.keys import Key
from negindex.negatives import Negatives
from negindex.receipts import Receipt
from negindex.sampler.branches import ActsOn, Branches, check_scales
from negindex.sampler.copies import BY_DATA, CopyGate
from negindex.sampler.correction import Correction
from negindex.sampler.encode import space_of
from negindex.sampler.gates import Gate
from negindex.sampler.layout import by_name, layout_of, watched_pack
from negindex.sampler.record import Run, digests_of, signed
from negindex.sampler.rules import Predicted, Rule, needs_branches
from negindex.sampler.schedules import family_of, read
from negindex.sampler.windows import Window

OnError = Literal["raise", "last-good"]


def guard(
    pipe: Any,
    negatives: Negatives,
    reference: Negatives | None = None,
    prior: float = 0.1,
    *,
    rule: Rule | None = None,
    gate: Gate | None = None,
    window: Window | None = None,
    kernel: Kernel | None = None,
    copies: CopyGate | None = BY_DATA,
    acts_on: ActsOn = "guided",
    on_error: OnError = "raise",
    key: Key | None = None,
) -> Guard:
    """Guard a diffusers pipeline until ``detach`` (or the end of a ``with`` block).

    pipe: any object with a ``scheduler`` of a known family (``schedules.FAMILIES``).
    negatives: a ``Collection`` follows: each image is made under the version that is newest when the
        pipeline sets its timesteps. A ``Snapshot`` or ``Exact`` stays as it is.
    reference: benign rows in the same space; with one the rule is ``paired`` behind the ratio gate.
    prior: P(unsafe) before the sample is looked at; high where the caller asks for the concept.
    window: where the gate is heard, such as Between(low, high), Timesteps(low, high), Fraction(low, high).
    kernel: what both sets are seen through; None takes the negatives' own: the calibrated one, where that set was
        calibrated, else the literal one.
    copies: the copy gate, heard everywhere: a near-copy of one negative is unsafe whatever the gate says. How near is
        taken from the data unless a radius is named; None leaves it out, as the pure theorem does.
    acts_on: what the correction is added to. "guided": what the scheduler steps with. "conditional" or
        "unconditional": one branch of classifier-free guidance, as if the network itself answered the corrected
        branch; of a change d there arrives w d or (1 - w) d, the latter *towards* the negatives at w > 1. Refused
        at the first step where the two branches and w cannot be read (docs/guidance.md).
    on_error: what becomes of a call when the newest version cannot be read. "raise", or "last-good": go on with
        the versions that were last read, and count every step as degraded in the receipt. A look-up that fails
        in the middle of a run, and a first version that cannot be read, raise in any case.
    key: signs the receipts. Where the pipeline returns PIL images each is first bound to its image; elsewhere bind
        them with the key again (``save_image(..., key=key)``).
    Raises, before anything is attached: NothingToCompareWith, SpaceMismatch, ShapeMismatch, UnsupportedScheduler,
    and NotAllowed for a branch of a pipeline without a network that can be watched.
    """
    correction = Correction(negatives, reference, prior, rule, gate, window, kernel, copies)
    space = space_of(pipe)
    if negatives.space != space:
        raise SpaceMismatch(
            f"the set's rows live in space {negatives.space!r}, the pipeline's samples in {space!r}; "
            "build the set with this pipeline's own encoder"
        )
    for name, value, kinds in (("acts_on", acts_on, ActsOn), ("on_error", on_error, OnError)):
        if value not in get_args(kinds):
            raise InvalidInput(f"{name} = {value!r}; give one of {', '.join(get_args(kinds))}")
    return Guard(pipe, correction, on_error, acts_on, key)


class Guard:
    """A guard in place. ``receipts``: one an image of the latest call; ``detach()`` leaves no trace."""

    def __init__(
        self,
        pipe: Any,
        correction: Correction,
        on_error: OnError = "raise",
        acts_on: ActsOn = "guided",
        key: Key | None = None,
    ) -> None:
        self.pipe, self.correction, self.on_error, self.acts_on, self._key = pipe, correction, on_error, acts_on, key
        self._watches = acts_on != "guided" or needs_branches(correction.rule)
        self._last_good: Correction | None = None
        self._scheduler = pipe.scheduler
        self._family = family_of(self._scheduler)
        self._layout = layout_of(pipe, correction.negatives.shape)
        self._running: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()
        self._runs: list[Run] = []
        self._digests: list[str] = []  # of the latest call's images, where they are signed for
        self._in_call = False
        below = getattr(type(self._scheduler), "_negindex_guard", None)
        self._branches: Branches = below._branches if below is not None else Branches()
        self._unwatch: Callable[[], None] = self._branches.watch(pipe) if self._watches else (lambda: None)
        self._attached = [
            (pipe, type(pipe), _guarded_pipeline(type(pipe), self)),
            (self._scheduler, type(self._scheduler), _guarded_scheduler(type(self._scheduler), self)),
        ]
        for obj, _, twin in self._attached:
            obj.__class__ = twin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Take the guard off; does nothing the second time. Guards come off in the reverse order."""
        if any(type(obj) is not twin for obj, _, twin in self._attached):
            raise NotAllowed("another guard was attached after this one; detach that one first")
        for obj, kind, _ in self._attached:
            obj.__class__ = kind
        self._attached = []
        self._unwatch()

    @property
    def receipts(self) -> list[Receipt]:
        """One an image, in the order of the latest call's images."""
        told = [receipt for run in self._runs for receipt in run.receipts()]
        if self.acts_on != "guided":
            told = [replace(receipt, rule=f"{receipt.rule}, on the {self.acts_on} branch") for receipt in told]
        return told if self._key is None else signed(told, self._digests, self._key)

    # -- called from the wrapped classes ---------------------------------------------------

    def _start(self, scheduler: Any) -> Run:
        degraded = False
        try:
            self._last_good = self.correction.pin()
        except InvalidInput:
            raise
        except (NegindexError, OSError):
            if self.on_error == "raise" or self._last_good is None:
                raise
            degraded = True
        run = Run(self._last_good.begin(), type(scheduler).__name__, degraded)
        self._running[scheduler] = run
        self._runs = [*self._runs, run] if self._in_call else [run]
        return run

    def _correct(self, scheduler: Any, given: dict[str, Any]) -> None:
        """Replace the step's model output by the corrected one; ``given`` are its arguments by name."""
        run = self._running.get(scheduler) or self._start(scheduler)
        out, sample = given["model_output"], given["sample"]
        channels = sample.shape[1]
        mean, variance = out[:, :channels], out[:, channels:]  # a learned variance passes through
        branch = self._branches.read(self.acts_on, mean, self._layout.repeats)
        reading = read(scheduler, self._family, branch, given["timestep"], sample, given)
        timestep = float(given["timestep"])
        look = run.correction.look(
            self._layout.unpack(sample),
            lambda: self._layout.unpack(reading.x0),
            reading.level,
            timestep,
            lambda: _fraction(scheduler, timestep),
            lambda: self._predicted(scheduler, given),
        )
        change = reading.jacobian * self._layout.pack(look.delta, sample)
        arrives = self._branches.move(self.acts_on, change)
        run.record(look._replace(correction=abs(arrives) * look.correction))
        corrected = _add(mean, change, arrives)
        given["model_output"] = torch.cat([corrected, variance], 1) if variance.numel() else corrected

    def _predicted(self, scheduler: Any, given: dict[str, Any]) -> Predicted | None:
        """x0 as each branch of guidance predicts it; None where no guidance ran."""
        both = self._branches.both()
        if both is None:
            return None
        told = [read(scheduler, self._family, out, given["timestep"], given["sample"], given).x0 for out in both]
        return Predicted(*(self._layout.unpack(x0).detach().to(torch.float64) for x0 in told))

    def _call(self, base: type, pipe: Any, args: Any, kwargs: Any) -> Any:
        if pipe.scheduler is not self._scheduler:
            raise SchedulerReplaced(
                "the pipeline's scheduler was replaced after the guard was attached, so its samples would be "
                "unguarded; detach, set the scheduler, then guard again"
            )
        self._in_call, self._runs, self._digests = True, [], []
        self._running.clear()  # no call goes on with the versions of an earlier one
        self._branches.forget()
        self._layout = layout_of(pipe, self.correction.negatives.shape)
        try:
            self._layout.called(base.__call__, (pipe, *args), kwargs)
            if self._watches:
                check_scales(pipe, by_name(base.__call__, (pipe, *args), kwargs))
            result = base.__call__(pipe, *args, **kwargs)
        finally:
            self._in_call = False
            self._layout = layout_of(pipe, self.correction.negatives.shape)
        if not any(run.seen for run in self._runs):
            raise NotAllowed(
                f"{base.__name__} returned without a step of the guarded scheduler, so its result is unguarded "
                "and is withheld; guard the scheduler that makes the samples"
            )
        self._digests = digests_of(result) if self._key is not None else []
        return result


def _fraction(scheduler: Any, timestep: float) -> float | None:
    """How many of the scheduler's timesteps come before this one, as a share of all; None if it is none of them."""
    places = (torch.as_tensor(scheduler.timesteps) == timestep).nonzero()
    return int(places[0]) / len(scheduler.timesteps) if len(places) else None


def _add(out: Tensor, change: Tensor, share: float) -> Tensor:
    """out + share change in out's dtype; bit for bit out where the change is zero."""
    moved = torch.add(out, change, alpha=share)  # in float64
    return torch.where(change == 0, out, moved.to(out.dtype))


def _guarded_scheduler(base: type, owner: Guard) -> type:
    signature = inspect.signature(base.step)  # type: ignore[attr-defined]

    @functools.wraps(base.step)  # type: ignore[attr-defined]
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        try:
            with torch.no_grad():
                owner._correct(self, bound.arguments)
            return base.step(*bound.args, **bound.kwargs)  # type: ignore[attr-defined]
        finally:
            owner._branches.forget()

    @functools.wraps(base.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]
        owner._start(self)
        owner._branches.forget()
        return result

    return _twin(base, step=step, set_timesteps=set_timesteps, _negindex_guard=owner)


def _guarded_pipeline(base: type, owner: Guard) -> type:
    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return owner._call(base, self, args, kwargs)

    packs = watched_pack(base, lambda *packing: owner._layout.packs(*packing))
    return _twin(base, __call__=call, **packs)


def _twin(base: type, **members: Any) -> type:
    """A subclass that goes by the same name."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), {**names, **members})

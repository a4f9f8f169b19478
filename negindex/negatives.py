"""The one contract: every set of negatives answers ``posterior(x_t, level) -> Partial``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import torch
from torch import Tensor

from negindex.checks import all_finite
from negindex.errors import EmptySet, InvalidInput, NotFinite, OutOfRange, ShapeMismatch
from negindex.kernel import LITERAL, Kernel
from negindex.moments import Moments
from negindex.near import Near
from negindex.noise import NoiseLevel
from negindex.partial import Heaviest, Missing, Origin, Partial

HEAVIEST = 8  # rows that an answer names unless it is asked for another number


@dataclass(frozen=True, eq=False)
class Query:
    """A validated look-up, in the form that engines compute with."""

    x_t: Tensor  # (B, *S) as asked
    level: NoiseLevel  # (B,)
    kernel: Kernel
    k: int | None
    error: float | None
    names: int | None = None

    @property
    def named(self) -> int:
        """How many heaviest rows an engine's answer has places for; id -1 fills those left over."""
        return self.names or self.k or HEAVIEST

    def some(self, samples: Tensor) -> Query:
        """The query about some samples (n,) of its batch."""
        level = NoiseLevel(self.level.alpha[samples], self.level.sigma[samples])
        return replace(self, x_t=self.x_t[samples.to(self.x_t.device)], level=level)

    def merge(self, one: Partial, other: Partial) -> Partial:
        """Two answers to this query as one; of however many parts, it names no more rows than were asked for."""
        return _naming(one.merge(other), self.named)

    @property
    def y(self) -> Tensor:
        """x_t / alpha, (B, D) float64; 0 where alpha = 0: there the sample says nothing."""
        alpha = self.level.alpha.to(self.x_t.device)[:, None]
        flat = self.x_t.detach().flatten(1).to(torch.float64)
        return flat / alpha.masked_fill(alpha <= 0, float("inf"))

    @property
    def precision(self) -> Tensor:
        """1 / (2 h²), (B,) float64; 0 where alpha = 0: there every row weighs the same."""
        return (0.5 / self.kernel.variance(self.level)).to(self.x_t.device)


@dataclass(frozen=True, eq=False)
class Reach:
    """A validated look-up of near rows, in the form that engines compute with."""

    x: Tensor  # (B, *S) as asked
    radius: Tensor  # (B,) float64; inf where only k limits
    k: int | None
    noise: Tensor  # (B,) float64, what the samples carry; 0 where every row within the radius is to be found
    image_radius: Tensor  # (B,) float64, how far from the image that carries it rows are wanted; inf: however far

    def some(self, samples: Tensor) -> Reach:
        """The look-up of some samples (n,) of its batch."""
        at = samples.to(self.x.device)
        return Reach(self.x[at], self.radius[at], self.k, self.noise[at], self.image_radius[at])

    def merge(self, one: Near, other: Near) -> Near:
        """Two answers to this look-up as one."""
        return one.merge(other, self.k)


class Negatives(ABC):
    """A set of rows to stay away from (or, as a reference, to compare with).

    Implemented by exact rows in memory, snapshots, following collections, unions and remote clients.
    ``shape`` is one row's shape S, ``space`` says what the rows are ("pixels", or a VAE's fingerprint).
    """

    shape: tuple[int, ...]
    space: str

    @property
    def elsewhere(self) -> bool:
        """Whether asking is waiting for another machine, while this one could do something else."""
        return False

    @property
    def address(self) -> str:
        """Which set it is, and where, for messages to people; told without asking another machine."""
        return f"set {self.known_as}"

    @property
    def known_as(self) -> str:
        """The set's id as answers say it; told without asking another machine."""
        return "+".join(origin.set_id for origin in self.origins)

    @property
    def missing(self) -> tuple[Missing, ...]:
        """Sets that belong here and could not be pinned; only a union that was told to goes on without them."""
        return ()

    @abstractmethod
    def __len__(self) -> int:
        """Rows in force."""

    @property
    @abstractmethod
    def origins(self) -> tuple[Origin, ...]:
        """The sets and versions that an answer comes from."""

    @abstractmethod
    def answer(self, query: Query) -> Partial:
        """Answer a validated query over a set that has rows; engines implement this."""

    @abstractmethod
    def nearest(self, reach: Reach) -> Near:
        """Answer a validated look-up of near rows over a set that has rows; engines implement this."""

    @abstractmethod
    def moments(self) -> Moments:
        """Count, mean and scatter of the rows in force. Cost: one pass over all rows."""

    @abstractmethod
    def digests(self) -> dict[int, str]:
        """{id: sha256 of the row's stored bytes} of the rows in force."""

    @abstractmethod
    def holds(self, digests: Collection[str]) -> set[str]:
        """Those of the digests that belong to rows in force here."""

    @abstractmethod
    def without(self, digests: Collection[str]) -> Negatives:
        """An immutable view of now that leaves out the rows with these digests."""

    @property
    def default_kernel(self) -> Kernel:
        """What rows are weighed by where nobody names a kernel: the calibrated one, where the set was calibrated,
        else the literal one (Kim et al. 2025, Eq. 6).
        """
        return LITERAL

    def pin(self) -> Negatives:
        """An immutable view of now, for a whole image; an immutable set is its own."""
        return self

    def posterior(
        self,
        x_t: Tensor,
        level: NoiseLevel,
        *,
        k: int | None = None,
        error: float | None = None,
        kernel: Kernel | None = None,
        names: int | None = None,
    ) -> Partial:
        """Summarise the rows in force as seen from ``x_t``.

        x_t: (B, *S), in the set's own space, x_t = alpha x_0 + sigma eps.
        k: at most this many heaviest rows are read in full and named; None leaves it to the engine.
            An exact set reads every row whatever k, and names k of them.
        error: the stated error to reach, relative to the set's rms radius; an exact set's is 0.
        kernel: None takes ``default_kernel``.
        names: how many heaviest rows to name, where it is not k: naming costs less than reading.
        At alpha = 0 the answer is the plain mean with log_norm = log N.
        Raises EmptySet, ShapeMismatch, NotFinite, OutOfRange; never returns NaN and never "nothing near".
        """
        pinned = self.pin()
        query = pinned._validated(x_t, level, k, error, kernel, names)
        told = pinned.answer(query)
        _check_answer(told, query)
        return _naming(told, min(query.named, told.count))

    def near(
        self,
        x: Tensor,
        radius: Tensor | float | None = None,
        k: int | None = None,
        *,
        noise: Tensor | float = 0.0,
        image_radius: Tensor | float | None = None,
    ) -> Near:
        """The rows in force nearest to samples, nearest first, by L2 distance over all dimensions.

        x: (B, *S), in the set's own space; for a noisy sample give x_t / alpha.
        radius: only rows at this distance or nearer, one number or (B,). k: at most so many rows a sample.
            At least one is needed; a wide radius without k brings back every row that lies within.
        noise: s = sigma / alpha, one number or (B,), where x is some image plus white noise of that deviation, and a
            radius is given. It decides nothing, and lets a set with an index look at fewer rows: of any one row
            within the radius the probability that it is missed is below 1e-6, whatever the image is.
        image_radius: how near the image itself wanted rows lie, one number or (B,); None wants them however far. With
            noise, a set with an index may leave out a row within the radius that lies farther from the image, and
            looks at fewer rows still; of any one within both the probability that it is missed is below 1e-6.
        Rows are compared in float64 by direct subtraction: a row finds itself at distance 0. Without noise none that
        belongs to the answer is missed. Of rows equally far the one of the lowest id comes first.
        Raises EmptySet, ShapeMismatch, NotFinite, OutOfRange, and InvalidInput without radius and k.
        """
        pinned = self.pin()
        near = pinned.nearest(pinned._within_reach(x, radius, k, noise, image_radius))
        if bool((near.found & near.distances.isinf()).any()):
            raise OutOfRange(
                f"distances beyond float64, largest |x| = {float(x.abs().max()):g}; give samples that a model can "
                "have made"
            )
        return near

    def _within_reach(
        self,
        x: Tensor,
        radius: Tensor | float | None,
        k: int | None,
        noise: Tensor | float,
        image_radius: Tensor | float | None,
    ) -> Reach:
        self._check_samples(x)
        if radius is None and k is None:
            raise InvalidInput("near what? give radius=..., or k=..., or both")
        if k is not None and k < 1:
            raise OutOfRange(f"k = {k}; give k >= 1, or None for every row within the radius")
        within, of_image = _distances("radius", radius, x), _distances("image_radius", image_radius, x)
        noise = _each("noise", noise, x)
        if not bool(((noise >= 0) & noise.isfinite()).all()):
            raise OutOfRange(f"noise = {noise.unique().tolist()}; give s = sigma / alpha, finite and >= 0")
        return Reach(x.detach(), within, k, noise, of_image)

    def _check_samples(self, x: Tensor) -> None:
        """Whether there are rows, and samples to ask them about."""
        if len(self) == 0:
            raise EmptySet(
                "the set has no row in force, so nothing can be said about what is near; add rows, or detach the guard"
            )
        if x.dim() == 0 or tuple(x.shape[1:]) != self.shape:
            raise ShapeMismatch(
                f"query of shape {tuple(x.shape)} for rows of shape {self.shape}; "
                f"give (B, {', '.join(map(str, self.shape))})"
            )
        if not all_finite(x):
            raise NotFinite("the query holds NaN or Inf: the model diverged, or half precision overflowed")

    def _validated(
        self,
        x_t: Tensor,
        level: NoiseLevel,
        k: int | None,
        error: float | None,
        kernel: Kernel | None,
        names: int | None = None,
    ) -> Query:
        self._check_samples(x_t)
        count = len(self)
        if k is not None and not 1 <= k <= count:
            raise OutOfRange(f"k = {k}, and the set has {count} rows in force; give 1 <= k <= {count}, or None")
        if error is not None and not 0 < error < float("inf"):
            raise OutOfRange(f"error = {error}; give a positive target such as 0.02, or None")
        if names is not None and names < 1:
            raise OutOfRange(f"names = {names}; give names >= 1, or None for as many as k")
        own = self.default_kernel if kernel is None else kernel
        return Query(x_t, level.expand(len(x_t)), own, k, error, names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027, a set in memory has nothing to let go of
        """Let go of files and connections, where there are some."""


class Following(Negatives):
    """A set that changes: each question is answered by the view of its moment, which ``pin`` gives."""

    @abstractmethod
    def pin(self) -> Negatives: ...

    def __len__(self) -> int:
        return len(self.pin())

    @property
    def origins(self) -> tuple[Origin, ...]:
        return self.pin().origins

    @property
    def default_kernel(self) -> Kernel:
        return self.pin().default_kernel

    def answer(self, query: Query) -> Partial:
        return self.pin().answer(query)

    def nearest(self, reach: Reach) -> Near:
        return self.pin().nearest(reach)

    def moments(self) -> Moments:
        return self.pin().moments()

    def digests(self) -> dict[int, str]:
        return self.pin().digests()

    def holds(self, digests: Collection[str]) -> set[str]:
        return self.pin().holds(digests)

    def without(self, digests: Collection[str]) -> Negatives:
        return self.pin().without(digests)


def _naming(told: Partial, rows: int) -> Partial:
    """The answer with places for no more than so many heaviest rows."""
    if told.heaviest.ids.shape[1] <= rows:
        return told
    return replace(told, heaviest=Heaviest(*(part[:, :rows] for part in told.heaviest)))


def _check_answer(told: Partial, query: Query) -> None:
    """Weights may leave float64's range where sigma / alpha or the sample is absurd: say so, never answer NaN."""
    if not (all_finite(told.log_norm) and all_finite(told.mean)):
        raise OutOfRange(
            f"weights beyond float64 at sigma / alpha = {query.level.s.unique().tolist()}, largest |x_t| = "
            f"{float(query.x_t.abs().max()):g}; give a noise level and a sample that a model can have made"
        )


def _distances(name: str, given: Tensor | float | None, x: Tensor) -> Tensor:
    """One for each sample of x (B, *S), (B,) float64; inf for None."""
    each = _each(name, float("inf") if given is None else given, x)
    if not bool((each >= 0).all()):
        raise OutOfRange(f"{name} = {each.unique().tolist()}; give a distance >= 0, or None")
    return each


def _each(name: str, given: Tensor | float, x: Tensor) -> Tensor:
    """(B,) float64 of one number or one for each sample; raises ShapeMismatch for others."""
    numbers = torch.as_tensor(given, dtype=torch.float64).detach()
    if numbers.dim() > 1 or numbers.shape not in ((), (1,), (len(x),)):
        raise ShapeMismatch(f"{name} of shape {tuple(numbers.shape)} for {len(x)} samples; give one, or one each")
    return numbers.to(x.device).expand(len(x))


def row_elements(shape: tuple[int, ...]) -> int:
    """D, the number of elements of a row of this shape; raises ShapeMismatch for no shape at all."""
    if not shape or any(n < 1 for n in shape):
        raise ShapeMismatch(f"row shape {shape}; give at least one dimension, each at least 1, such as (4, 64, 64)")
    return prod(shape)

"""How often gates speak up: of a set's own kind, of copies of its rows, of harmless images, at each noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from negindex.calibration import FEWEST_ROWS, LEVELS
from negindex.errors import OutOfRange, ShapeMismatch
from negindex.held_out import NEAR_DUPLICATE
from negindex.kernel import Kernel
from negindex.negatives import row_elements
from negindex.noise import NoiseLevel
from negindex.partial import Partial
from negindex.projection import generator
from negindex.sampler.copies import CopyGate, noisiest
from negindex.sampler.gates import log_ratio
from negindex.sampler.triggers import TriggerShare
from negindex.snapshot import Snapshot

HELD_OUT, COPIES, REFERENCE = "held out", "copies", "reference"
RATIO, TRIGGER, COPY = "ratio", "trigger", "copy"
FALSE = 0.01  # of harmless images that a cautious prior lets speak up, at the level where most do
_AT_ONCE = 16
_LEAST = 1e-12


@dataclass(frozen=True)
class Heard:
    """What gates said of noised samples.

    shares: {(s, kind of sample): {gate: share of the samples that it speaks up for}}: "ratio" is a Ratio at ``prior``
        that finds a sample rather unsafe than not (pi >= 1/2), "trigger" a TriggerShare, "copy" the copy gate.
    log_ratios: {(s, kind): (n,) float64}, what evidence alone says, log Z_u / N_u - log Z_s / N_s.
    prior: as asked for, or the cautious one.
    """

    shares: dict[tuple[float, str], dict[str, float]]
    log_ratios: dict[tuple[float, str], Tensor]
    prior: float
    share: float
    radius: float  # of the copy gate
    copies_until: float  # the noise level up to which the copy gate speaks of it
    reach: float  # of the copy gate: rows that nothing else explains
    reach_until: float  # the noise level up to which the copy gate speaks of it
    rows: int  # that were held out of each set

    @property
    def levels(self) -> list[float]:
        """Noise levels, ascending."""
        return sorted({s for s, _ in self.shares})

    @property
    def kinds(self) -> list[str]:
        """Kinds of sample, as they were asked about."""
        return list(dict.fromkeys(kind for _, kind in self.shares))


def heard(
    negatives: Snapshot,
    reference: Snapshot,
    *,
    generated: Mapping[str, Tensor] | None = None,
    prior: float | None = None,
    share: float = 0.95,
    rows: int = 128,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
) -> Heard:
    """Noise samples that no set holds, and ask the gates that a guard over these sets would have.

    Rows are held out of both sets, with what is a near-duplicate of them; copies are noised rows that stay in.
    generated: {name: (n, *S)}, images that a model made, say, in the sets' space.
    prior: of the ratio gate; None takes the cautious one, the largest that at most 1 % of the held-out reference
        rows speak up under at any level. What it says of those rows is then no test of it: see ``generated``.
    Asked are the levels, and those just below which the copy gate stops to speak of its radius, and of its reach.
    Raises OutOfRange for sets of fewer than 200 rows beside those held out.
    """
    for name, one in (("negatives", negatives), ("reference", reference)):
        if len(one) < FEWEST_ROWS + rows:
            raise OutOfRange(f"{len(one)} {name}; measuring takes {FEWEST_ROWS + rows}, of which {rows} are held out")
    for name, samples in (generated or {}).items():
        if tuple(samples.shape[1:]) != negatives.shape:
            raise ShapeMismatch(f"{name} of shape {tuple(samples.shape[1:])} for rows of {negatives.shape}")
    kernel = negatives.default_kernel
    unsafe, own = _held_out(negatives, rows, seed)
    benign, others = _held_out(reference, rows, seed + 1)
    kept = unsafe.take(torch.randperm(len(unsafe), generator=generator(seed + 2))[:rows]).rows
    asked = {HELD_OUT: own, COPIES: kept.reshape(-1, *unsafe.shape), REFERENCE: others, **(generated or {})}
    trigger = TriggerShare.learned(unsafe, share, kernel, seed=seed)
    copies = CopyGate().sized(unsafe, benign)
    random, said, ratios = generator(seed + 3), {}, {}
    radius, dimensions = float(copies.radius or 0.0), row_elements(unsafe.shape)
    until, reach_until = (noisiest(distance, dimensions) for distance in (radius, copies.reach))
    falls_silent = [0.99 * s for s in (until, reach_until) if s > 0]
    for s in dict.fromkeys([*sorted(levels), *falls_silent]):
        for kind, clean in asked.items():
            x = clean.float() + s * torch.randn(clean.shape, generator=random)
            told = _Told.of(x, s, unsafe, benign, kernel, trigger, copies)
            ratios[s, kind] = told.log_ratio
            said[s, kind] = {TRIGGER: told.trigger, COPY: told.copy}
    prior = cautious([ratio for (_, kind), ratio in ratios.items() if kind == REFERENCE]) if prior is None else prior
    odds = torch.tensor(prior, dtype=torch.float64).logit()
    shares = {at: {RATIO: float((ratios[at] + odds >= 0).double().mean()), **said[at]} for at in said}
    return Heard(shares, ratios, prior, share, radius, until, copies.reach, reach_until, rows)


def cautious(log_ratios: Sequence[Tensor], false: float = FALSE) -> float:
    """The largest prior under which at most a share of harmless samples (n,) looks rather unsafe, at any level."""
    most = max(float(ratio.sort(descending=True).values[int(false * len(ratio))]) for ratio in log_ratios)
    limit = torch.sigmoid(torch.tensor(-most - 1e-9 * max(1.0, abs(most)), dtype=torch.float64))
    return float(limit.clamp(_LEAST, 1 - _LEAST))


@dataclass(frozen=True)
class _Told:
    log_ratio: Tensor
    trigger: float
    copy: float

    @classmethod
    def of(
        cls,
        x: Tensor,
        s: float,
        unsafe: Snapshot,
        benign: Snapshot,
        kernel: Kernel,
        trigger: TriggerShare,
        copies: CopyGate,
    ) -> _Told:
        level = NoiseLevel(1.0, s)
        ratios, triggers, fires = [], [], []
        for some in x.split(_AT_ONCE):
            one: Partial = unsafe.posterior(some, level, kernel=kernel)
            ratios.append(log_ratio(one, benign.posterior(some, level, kernel=kernel), 0.5))
            triggers.append(trigger(some, level, one).isfinite())
            fires.append(copies.find(some, level.expand(len(some)), unsafe, benign, kernel=kernel).fires)
        share = [float(torch.cat(found).double().mean()) for found in (triggers, fires)]
        return cls(torch.cat(ratios), *share)


def _held_out(one: Snapshot, rows: int, seed: int) -> tuple[Snapshot, Tensor]:
    """The set without some rows and what is near to them, and these rows (n, *S) float32.

    Of rows that are near-duplicates of each other the first counts.
    """
    places = torch.randperm(len(one), generator=generator(seed))[:rows]
    held = one.take(places).rows.reshape(-1, *one.shape).float()
    near = [one.near(some, NEAR_DUPLICATE * one.radius(one.default_kernel)) for some in held.split(_AT_ONCE)]
    gone = torch.cat([part.ids[part.found] for part in near]).unique()
    if len(one) - len(gone) < FEWEST_ROWS:
        raise OutOfRange(
            f"{len(gone)} of {len(one)} rows are near-duplicates of the {rows} held out; {FEWEST_ROWS} others are "
            "needed: hold fewer rows out, or gather a set whose images differ"
        )
    digests = one.digests()
    return one.without({digests[i] for i in gone.tolist()}), held

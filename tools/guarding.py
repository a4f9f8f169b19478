"""The guard as a command line asks for it: options, what they mean, and which go together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from negindex.tools.key import open_key
from negindex.tools.places import Place, opened

if TYPE_CHECKING:
    from negindex import Collection, Kernel, Negatives, RemoteNegatives
    from negindex.engines.address import Address
    from negindex.engines.milvus import MilvusNegatives
    from negindex.keys import Key
    from negindex.sampler import CopyGate, Gate, Guard, Rule, Window
    from negindex.sampler.guard import OnError
    from negindex.union import OnMissing

    Opened = Collection | RemoteNegatives | MilvusNegatives

F = TypeVar("F", bound=Callable[..., Any])

PRIOR = 0.1
_SET = Place()
RULES: dict[str, dict[str, bool]] = {  # name: the numbers that it takes, with whether it needs them
    "paired": {},
    "unasked": {},
    "safe-denoiser": {"beta_max": False},
    "spell": {"radius": True, "overcompensation": False},
    "mean-discrepancy": {"bandwidth": True, "strength": False},
}
_COMPARING = ("paired", "unasked")  # with a reference
_OPTIONS = (
    click.option(
        "--negatives",
        type=_SET,
        multiple=True,
        help="A set to stay away from, or a service's https://HOST:PORT/v1/sets/NAME; again for more.",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="LABEL[=PRIOR]",
        help="Stay away from the rows under this label alone, with a prior of their own; again for more.",
    ),
    click.option("--reference", type=_SET, help="A collection of benign images to compare with."),
    click.option(
        "--engine",
        "engines",
        multiple=True,
        metavar="[SET=]ADDRESS",
        help="Ask a set through the Milvus that its index lies in, milvus://HOST:PORT/NAME; again for more. SET is as "
        "--negatives or --reference has it, and may be left out where --negatives is one set.",
    ),
    click.option("--unguarded", is_flag=True, help="Sample without a guard, to compare with."),
    click.option("--prior", type=float, help=f"P(unsafe) before the sample is looked at (default: {PRIOR})."),
    click.option(
        "--rule",
        type=click.Choice(list(RULES)),
        help="What is done with the odds (default: paired with a reference, safe-denoiser without); unasked is paired "
        "that also drops an unsafe request, where guidance runs.",
    ),
    click.option("--radius", type=float, help="spell: keep samples so far from each row (L2)."),
    click.option("--overcompensation", type=float, help="spell: push so many times as hard (default: 1.6)."),
    click.option("--beta-max", type=float, help="safe-denoiser: the largest beta (default: 1)."),
    click.option("--bandwidth", type=float, help="mean-discrepancy: width of the kernel (L2)."),
    click.option("--strength", type=float, help="mean-discrepancy: length of the step, below 2 (default: 1)."),
    click.option(
        "--gate",
        metavar="ratio|trigger:SHARE[:ETA]|threshold:AT[:ETA]|constant:BETA",
        help="Where the odds come from (default: ratio, where there is a reference; trigger: where a sample looks as "
        "much like the set as that share of its own rows, 0.95 say).",
    ),
    click.option(
        "--window",
        metavar="KIND:LOW-HIGH",
        help="Hear the gate here alone; KIND is timesteps, fraction (of the steps) or noise (sigma / alpha).",
    ),
    click.option(
        "--copies",
        metavar="RADIUS|none|by-data",
        default="by-data",
        show_default=True,
        help="How near (L2) a near-copy of one row is, whatever the gate says.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(["raise", "last-good"]),
        default="raise",
        show_default=True,
        help="When the newest version cannot be read: stop, or go on with the last one that could.",
    ),
    click.option(
        "--missing",
        type=click.Choice(["raise", "without"]),
        default="raise",
        show_default=True,
        help="When one of several sets does not answer: stop, or go on without it and say so in the receipts.",
    ),
    click.option(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="How long each of several sets may take for one question (default: as long as it allows itself).",
    ),
    click.option(
        "--kernel-floor",
        type=float,
        metavar="S",
        help="Below noise level S keep the kernel as wide as at S (default: the set's own: calibrated, else literal).",
    ),
    click.option("--key", type=_SET, metavar="FILE", help="Sign the receipts with this key (`negindex key new`)."),
)
FREE = {  # where nothing was given
    "labels": (),
    "engines": (),
    "copies": "by-data",
    "on_error": "raise",
    "missing": "raise",
}


def guard_options(command: F) -> F:
    """The options of a guard, as the keywords that ``Asked.read`` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Trigger(NamedTuple):
    """A gate that the set sets by itself, once it is open."""

    share: float
    eta: float = 1.0

    def learned(self, negatives: Negatives, kernel: Kernel | None) -> Gate:
        """The gate, for the kernel that the guard is to weigh by."""
        from negindex.sampler import TriggerShare

        named = negatives.default_kernel if kernel is None else kernel
        return TriggerShare.learned(negatives, self.share, named, eta=self.eta)


@dataclass(frozen=True)
class Asked:
    """A guard that fits together, before anything is opened."""

    negatives: tuple[Path | str, ...]
    labels: dict[str, float]  # each with its prior; none for the whole of the sets
    reference: Path | str | None
    engines: dict[Path, Address]  # of those that are asked through one
    prior: float
    rule: Rule | None
    gate: Gate | Trigger | None
    window: Window | None
    copies: CopyGate | None
    on_error: OnError
    missing: OnMissing
    timeout: float | None
    kernel_floor: float | None
    key: Key | None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Asked | None:
        """What the options say; None for --unguarded. Raises UsageError where they do not go together."""
        if given["unguarded"] == bool(given["negatives"]):
            raise click.UsageError("give --negatives, or --unguarded, and not both")
        extra = [name for name, value in given.items() if value != FREE.get(name)]
        extra = [_flag(name) for name in extra if name not in ("unguarded", "negatives")]
        if given["unguarded"] and extra:
            raise click.UsageError(f"{', '.join(extra)} set up a guard, and --unguarded asks for none; leave one out")
        if given["unguarded"]:
            return None
        _check_together(given)
        prior = PRIOR if given["prior"] is None else given["prior"]
        return cls(
            negatives=given["negatives"],
            labels=_labels(given["labels"], prior),
            reference=given["reference"],
            engines=_engines(given),
            prior=prior,
            rule=_rule(given),
            gate=_gate(given["gate"]),
            window=None if given["window"] is None else _window(given["window"]),
            copies=_copies(given["copies"]),
            on_error=given["on_error"],
            missing=given["missing"],
            timeout=given["timeout"],
            kernel_floor=given["kernel_floor"],
            key=None if given["key"] is None else open_key(given["key"]),
        )

    def attach(self, pipe: Any, stack: ExitStack) -> list[Guard]:
        """Guard the pipeline until the stack is closed: one guard for the sets, or one a label."""
        from negindex import Kernel
        from negindex.sampler import guard

        kernel = None if self.kernel_floor is None else Kernel.floored(self.kernel_floor)
        sets = [self._opened(place) for place in self.negatives]
        for one in sets:
            stack.enter_context(one)
        benign = None if self.reference is None else stack.enter_context(self._opened(self.reference))
        priors = {label: (self._together(sets, label), prior) for label, prior in self.labels.items()}
        whole = [(self._together(sets), self.prior)]
        return [
            stack.enter_context(
                guard(
                    pipe,
                    negatives,
                    benign,
                    prior,
                    rule=self.rule,
                    gate=self.gate.learned(negatives, kernel) if isinstance(self.gate, Trigger) else self.gate,
                    window=self.window,
                    kernel=kernel,
                    copies=self.copies,
                    on_error=self.on_error,
                    key=self.key,
                )
            )
            for negatives, prior in priors.values() or whole
        ]

    def _opened(self, place: Path | str) -> Opened:
        return opened(place, self.engines.get(place) if isinstance(place, Path) else None)

    def _together(self, sets: Sequence[Opened], label: str | None = None) -> Negatives:
        """The sets, or their rows under a label, as one; a label that no row in force has raises EmptySet."""
        from negindex import Union

        views: list[Negatives] = [*sets] if label is None else [one.where(label=label) for one in sets]
        if len(views) == 1 and label is None:
            return views[0]
        union = Union(views, timeout=self.timeout, missing=self.missing)
        if label is not None and not len(union):
            sets[0].where(label=label).check_has_rows()
        return views[0] if len(views) == 1 else union


# -- which options go together -----------------------------------------------------------------


def _check_together(given: Mapping[str, Any]) -> None:
    rule, ratio = given["rule"], given["gate"] in (None, "ratio")
    for other, numbers in RULES.items():
        strange = [name for name in numbers if given[name] is not None and other != rule]
        if strange:
            raise click.UsageError(f"{_flag(strange[0])} belongs to --rule {other}; give that rule, or leave it out")
    missing = [name for name, needed in RULES.get(rule, {}).items() if needed and given[name] is None]
    if missing:
        raise click.UsageError(f"--rule {rule} needs {_flag(missing[0])}, an L2 distance between rows")
    if given["reference"] is None and (rule in _COMPARING or given["gate"] == "ratio"):
        asked = f"--rule {rule}" if rule in _COMPARING else "--gate ratio"
        raise click.UsageError(f"{asked} compares with benign images; give --reference, or another one")
    named = [label for label in given["labels"] if "=" in label]
    if (given["prior"] is not None or named) and not (ratio and given["reference"] is not None):
        what = "--prior" if given["prior"] is not None else f"--label {named[0]}"
        raise click.UsageError(
            f"{what} names a prior, which only the ratio gate reads; give --reference and no other --gate"
        )


def _flag(name: str) -> str:
    return f"--{name.removesuffix('s') if name in ('labels', 'engines') else name.replace('_', '-')}"


# -- what the texts mean -----------------------------------------------------------------------


def _labels(texts: tuple[str, ...], prior: float) -> dict[str, float]:
    read: dict[str, float] = {}
    for text in texts:
        label, equals, number = text.rpartition("=") if "=" in text else (text, "", "")
        share = _number(number, f"--label {text}", "LABEL=PRIOR, such as nudity=0.9") if equals else prior
        if label in read:
            raise click.UsageError(f"--label {label} is given twice; give each label once")
        read[label] = share
    return read


def _engines(given: Mapping[str, Any]) -> dict[Path, Address]:
    """{set: its engine}, of sets that lie here; raises UsageError for others, InvalidInput for what is no address."""
    from negindex.engines.address import FORMS, Address

    here = [place for place in (*given["negatives"], given["reference"]) if isinstance(place, Path)]
    read: dict[Path, Address] = {}
    for text in given["engines"]:
        named = re.fullmatch(r"(?:(.+?)=)?(milvus(?:\+tls)?://.+)", text)
        if named is None:
            raise click.UsageError(f"--engine {text}; give ADDRESS or SET=ADDRESS, ADDRESS {FORMS}")
        if named[1] is None and len(given["negatives"]) > 1:
            raise click.UsageError(f"--engine {text}: of which set? Give SET={text}")
        place = given["negatives"][0] if named[1] is None else Path(named[1])
        if place not in here:
            known = ", ".join(map(str, here)) or "none"
            raise click.UsageError(
                f"--engine {text}: {place} is not among the sets that lie here, {known}; a service has engines of its "
                "own (`negindex serve --engine`)"
            )
        if place in read:
            raise click.UsageError(f"--engine {text}: {place} has one already; give each set one engine")
        read[place] = Address.of(named[2])
    return read


def _rule(given: Mapping[str, Any]) -> Rule | None:
    from negindex.sampler import MeanDiscrepancy, SafeDenoising, Spell, Unasked, paired

    if given["rule"] in (None, "paired"):
        return None if given["rule"] is None else paired
    kinds: dict[str, Callable[..., Rule]]
    kinds = {"safe-denoiser": SafeDenoising, "spell": Spell, "mean-discrepancy": MeanDiscrepancy, "unasked": Unasked}
    return kinds[given["rule"]](**{name: given[name] for name in RULES[given["rule"]] if given[name] is not None})


def _gate(text: str | None) -> Gate | Trigger | None:
    from negindex.sampler import Constant, Threshold

    if text is None or text == "ratio":
        return None
    kind, *parts = text.split(":")
    shape = "ratio, trigger:SHARE, trigger:SHARE:ETA, threshold:AT, threshold:AT:ETA or constant:BETA"
    numbers = [_number(part, f"--gate {text}", shape) for part in parts]
    if kind == "trigger" and len(numbers) in (1, 2):
        if not 0 < numbers[0] < 1:
            raise click.UsageError(f"--gate {text}; give a share of the set's rows between 0 and 1, such as 0.95")
        return Trigger(*numbers)
    if kind == "threshold" and len(numbers) in (1, 2):
        return Threshold(*numbers)
    if kind == "constant" and len(numbers) == 1:
        return Constant(*numbers)
    raise click.UsageError(f"--gate {text}; give {shape}")


_BOUND = r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf)"


def _window(text: str) -> Window:
    from negindex.sampler import Between, Fraction, Timesteps

    kinds: dict[str, Callable[[float, float], Window]]
    kinds = {"timesteps": Timesteps, "fraction": Fraction, "noise": Between}
    read = re.fullmatch(rf"({'|'.join(kinds)}):{_BOUND}-{_BOUND}", text)
    if read is None:
        raise click.UsageError(
            f"--window {text}; give timesteps:780-1000, fraction:0-0.22 or noise:0.5-inf, two numbers each"
        )
    low, high = float(read[2]), float(read[3])
    if low > high:
        raise click.UsageError(f"--window {text}; give the lower number first")
    return kinds[read[1]](low, high)


def _copies(text: str) -> CopyGate | None:
    from negindex.sampler import CopyGate

    if text == "none":
        return None
    return CopyGate(None if text == "by-data" else _number(text, f"--copies {text}", "a distance, none or by-data"))


def _number(text: str, option: str, shape: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"{option}; give {shape}") from None

"""Several sets behind one posterior."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import reduce
from typing import Literal, TypeVar, get_args
from weakref import WeakKeyDictionary

from torch import Tensor

from negindex.errors import (
    EmptySet,
    InvalidInput,
    KernelMismatch,
    NegindexError,
    OutOfRange,
    ShapeMismatch,
    SpaceMismatch,
    Unreachable,
)
from negindex.kernel import LITERAL, Kernel
from negindex.members import Asking, Member, without
from negindex.moments import Moments
from negindex.near import Near
from negindex.negatives import Following, Negatives, Query, Reach
from negindex.partial import Missing, Origin, Partial
from negindex.rounds import Parts, Rounds

OnMissing = Literal["raise", "without"]
T = TypeVar("T")


class Union(Following):
    """Any mix of collections, snapshots, remotes and sets in memory, asked as one set, all at the same time.

    Members must share shape and space; empty members say nothing. Pinning pins every member. Usable from several
    threads.
    """

    def __init__(
        self,
        members: Iterable[Negatives],
        *,
        timeout: float | Sequence[float | None] | None = None,
        missing: OnMissing = "raise",
        threads: int = 1,
    ) -> None:
        """timeout: seconds for each question, of every member or a number each; None leaves it to the member.

        missing: what becomes of a question that a member fails, or answers too late. "raise" its error, which names
        the member; or answer "without" it: the answer says so (``missing``), a warning goes to the log
        ``negindex.union``, and the member is asked again after some seconds. Where no row is left to answer, and
        where an answer cannot say so (``digests``, ``holds``, ``without``, ``moments``), it raises in any case.
        threads: how many of the members that lie here are asked at a time; torch has threads of its own. Members that
        lie elsewhere, or have a time-out, have a thread each.
        Raises EmptySet, ShapeMismatch, SpaceMismatch, InvalidInput, OutOfRange.
        """
        given = tuple(members)
        if not given:
            raise EmptySet("a union of no sets has no shape; give at least one member")
        if missing not in get_args(OnMissing):
            raise InvalidInput(f"missing = {missing!r}; give one of {', '.join(get_args(OnMissing))}")
        if threads < 1:
            raise OutOfRange(f"threads = {threads}; give at least 1")
        self.shape, self.space = given[0].shape, given[0].space
        _check_alike(given)
        self._members = tuple(
            Member(number, one, seconds)
            for number, (one, seconds) in enumerate(zip(given, _seconds(timeout, len(given)), strict=True))
        )
        self.on_missing, self.threads = missing, threads
        self._known: WeakKeyDictionary[Negatives, Moments] = WeakKeyDictionary()

    @property
    def members(self) -> tuple[Negatives, ...]:
        """The sets, in the order that they were given in."""
        return tuple(member.negatives for member in self._members)

    @property
    def elsewhere(self) -> bool:
        return any(one.elsewhere for one in self.members)

    @property
    def address(self) -> str:
        return " and ".join(one.address for one in self.members)

    @property
    def known_as(self) -> str:
        return "+".join(one.known_as for one in self.members)

    def pin(self) -> PinnedUnion:
        """Every member at its newest version; one that cannot be pinned is missing, or raises."""
        told, missing = _asked(self._members, lambda m: m.negatives.pin(), self.on_missing, self.threads)
        return PinnedUnion(self, [member.at(pinned) for member, pinned in told], missing, self._known)

    def close(self) -> None:
        for one in self.members:
            one.close()


class PinnedUnion(Negatives):
    """The members of a union at one version each. One that cannot be asked any more is missing, or raises."""

    def __init__(
        self,
        union: Union,
        members: Sequence[Member],
        missing: tuple[Missing, ...],
        known: WeakKeyDictionary[Negatives, Moments],
    ) -> None:
        """missing: the members that could not be pinned. known: the moments of members, as far as they were asked."""
        self.shape, self.space, self._missing = union.shape, union.space, missing
        self._union, self._members, self._known = union, tuple(members), known

    @property
    def missing(self) -> tuple[Missing, ...]:
        return self._missing

    @property
    def members(self) -> tuple[Negatives, ...]:
        """The sets that could be pinned."""
        return tuple(member.negatives for member in self._members)

    @property
    def elsewhere(self) -> bool:
        return self._union.elsewhere

    @property
    def address(self) -> str:
        return " and ".join(one.address for one in self.members)

    def __len__(self) -> int:
        return sum(map(len, self.members))

    @property
    def origins(self) -> tuple[Origin, ...]:
        return tuple(dict.fromkeys(origin for one in self.members for origin in one.origins))

    @property
    def default_kernel(self) -> Kernel:
        """The one that all members with rows have; raises KernelMismatch where they were calibrated differently."""
        told, _ = self._ask(lambda m: m.negatives.default_kernel, marked=True)
        found = {kernel.fingerprint: kernel for _, kernel in told}
        if len(found) > 1:
            raise KernelMismatch(
                f"members whose own kernels are {' and '.join(sorted(k.name for k in found.values()))}; name one for "
                "all (kernel=...), or have them share a calibration (`negindex calibrate SET --like OTHER`)"
            )
        return next(iter(found.values()), LITERAL)

    def answer(self, query: Query) -> Partial:
        """In one round; in several where ``k`` or ``error`` is given, which is for all members together."""
        with_rows = [member for member in self._members if len(member.negatives)]
        rounds = Rounds(query, [len(member.negatives) for member in with_rows])
        told, missing = self._ask(lambda m: m.negatives.answer(rounds.first), marked=True)
        rounds.told({with_rows.index(member): part for member, part in told})
        if rounds.need_scales:
            scales, lost = self._ask(self._moments_of, [member for member, _ in told], marked=True)
            rounds.scaled({with_rows.index(member): moments for member, moments in scales})
            missing += lost
        while further := rounds.further():
            more, _ = self._ask(
                _in_parts({with_rows[place]: parts for place, parts in further.items()}),
                [with_rows[place] for place in further],
                marked=True,
                needed=False,  # what a member said before stands, with its error
            )
            rounds.refined({with_rows.index(member): parts for member, parts in more})
        return rounds.merged(self.missing + missing)

    def nearest(self, reach: Reach) -> Near:
        told, missing = self._ask(lambda m: m.negatives.nearest(reach), marked=True)
        near = reduce(reach.merge, (part for _, part in told))
        return near._replace(missing=tuple(dict.fromkeys(self.missing + near.missing + missing)))

    def moments(self) -> Moments:
        told, _ = self._ask(self._moments_of, self._members)
        return reduce(Moments.merge, (moments for _, moments in told))

    def digests(self) -> dict[int, str]:
        told, _ = self._ask(lambda m: m.negatives.digests(), self._members)
        return dict(enumerate(digest for _, some in told for digest in some.values()))  # members number rows apart

    def holds(self, digests: Collection[str]) -> set[str]:
        told, _ = self._ask(lambda m: m.negatives.holds(digests), self._members)
        return set().union(*(held for _, held in told))

    def without(self, digests: Collection[str]) -> PinnedUnion:
        told, _ = self._ask(lambda m: m.negatives.without(digests), self._members)
        return PinnedUnion(self._union, [member.at(left) for member, left in told], self.missing, self._known)

    def close(self) -> None:
        for one in self.members:
            one.close()

    # -- inside ----------------------------------------------------------------------------

    def _ask(
        self,
        question: Callable[[Member], T],
        members: Sequence[Member] | None = None,
        *,
        marked: bool = False,
        needed: bool = True,
    ) -> tuple[list[tuple[Member, T]], tuple[Missing, ...]]:
        """marked: the answer can say who is missing. needed: somebody has to answer."""
        asked = [member for member in self._members if len(member.negatives)] if members is None else members
        return _asked(asked, question, self._union.on_missing if marked else "raise", self._union.threads, needed)

    def _moments_of(self, member: Member) -> Moments:
        """Asked once of each version."""
        if member.negatives not in self._known:
            self._known[member.negatives] = member.negatives.moments()
        return self._known[member.negatives]

    def _check_samples(self, x: Tensor) -> None:
        if self.missing and not len(self):
            raise Unreachable(f"no row is left to answer: {'; '.join(one.said for one in self.missing)}")
        super()._check_samples(x)


def _asked(
    members: Sequence[Member], question: Callable[[Member], T], missing: OnMissing, threads: int, needed: bool = True
) -> tuple[list[tuple[Member, T]], tuple[Missing, ...]]:
    """What each member told, in their order, and who is missing; raises the first error where none may be."""
    found = Asking(members, question, threads).answers(rest=missing == "without", first=missing == "raise")
    failed = {place: told for place, told in found.items() if isinstance(told, NegindexError)}
    if failed and missing == "raise":
        raise next(iter(failed.values()))
    lost = without(members, failed)
    if needed and members and len(failed) == len(members):
        raise Unreachable(f"every member is missing: {'; '.join(one.said for one in lost)}")
    told = [(members[place], told) for place, told in sorted(found.items()) if not isinstance(told, NegindexError)]
    return told, lost


def _in_parts(asked: dict[Member, Parts]) -> Callable[[Member], list[tuple[Tensor, Partial]]]:
    """The question of a further round: some samples at a time."""
    return lambda member: [(some, member.negatives.answer(query)) for some, query in asked[member]]


def _check_alike(members: Sequence[Negatives]) -> None:
    for i, member in enumerate(members):
        if member.shape != members[0].shape:
            raise ShapeMismatch(
                f"member {i} has rows of shape {member.shape}, member 0 of {members[0].shape}; give sets of one shape"
            )
        if member.space != members[0].space:
            raise SpaceMismatch(
                f"member {i} lives in space {member.space!r}, member 0 in {members[0].space!r}; give sets of one space"
            )


def _seconds(timeout: float | Sequence[float | None] | None, members: int) -> list[float | None]:
    """A time-out for each member."""
    each = list(timeout) if isinstance(timeout, Sequence) else [timeout] * members
    if len(each) != members:
        raise InvalidInput(f"{len(each)} time-outs for {members} members; give one, or one each")
    if not all(one is None or 0 < one < float("inf") for one in each):
        raise OutOfRange(f"timeout = {timeout}; give seconds > 0, or None")
    return each

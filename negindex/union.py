"""Several sets behind one posterior."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import reduce

from negindex.errors import EmptySet, KernelMismatch, ShapeMismatch, SpaceMismatch
from negindex.kernel import LITERAL, Kernel
from negindex.moments import Moments
from negindex.near import Near
from negindex.negatives import Negatives, Query, Reach
from negindex.partial import Origin, Partial


class Union(Negatives):
    """Any mix of collections, snapshots and sets in memory, asked as one set.

    Members must share shape and space; empty members say nothing. Pinning pins every member.
    """

    def __init__(self, members: Iterable[Negatives]) -> None:
        self.members = tuple(members)
        if not self.members:
            raise EmptySet("a union of no sets has no shape; give at least one member")
        self.shape, self.space = self.members[0].shape, self.members[0].space
        for i, member in enumerate(self.members):
            if member.shape != self.shape:
                raise ShapeMismatch(
                    f"member {i} has rows of shape {member.shape}, member 0 of {self.shape}; give sets of one shape"
                )
            if member.space != self.space:
                raise SpaceMismatch(
                    f"member {i} lives in space {member.space!r}, member 0 in {self.space!r}; give sets of one space"
                )

    def __len__(self) -> int:
        return sum(map(len, self.members))

    @property
    def origins(self) -> tuple[Origin, ...]:
        return tuple(dict.fromkeys(origin for member in self.members for origin in member.origins))

    @property
    def default_kernel(self) -> Kernel:
        """The one that all members with rows have; raises KernelMismatch where they were calibrated differently."""
        found = {kernel.fingerprint: kernel for kernel in (m.default_kernel for m in self.members if len(m))}
        if len(found) > 1:
            raise KernelMismatch(
                f"members whose own kernels are {' and '.join(sorted(k.name for k in found.values()))}; name one for "
                "all (kernel=...), or have them share a calibration (`negindex calibrate SET --like OTHER`)"
            )
        return next(iter(found.values()), LITERAL)

    def pin(self) -> Union:
        return Union(member.pin() for member in self.members)

    def answer(self, query: Query) -> Partial:
        return reduce(query.merge, (m.answer(query) for m in self.members if len(m)))

    def nearest(self, reach: Reach) -> Near:
        return reduce(reach.merge, (m.nearest(reach) for m in self.members if len(m)))

    def moments(self) -> Moments:
        return reduce(Moments.merge, (m.moments() for m in self.members))

    def digests(self) -> dict[int, str]:
        found = [digest for member in self.members for digest in member.digests().values()]
        return dict(enumerate(found))  # members number their rows apart

    def holds(self, digests: Collection[str]) -> set[str]:
        return set().union(*(member.holds(digests) for member in self.members))

    def without(self, digests: Collection[str]) -> Union:
        return Union(member.without(digests) for member in self.members)

    def close(self) -> None:
        for member in self.members:
            member.close()

"""A set that a service holds, asked as if it lay here."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negindex.checkpoint import Checkpoint
from negindex.endpoint import Endpoint
from negindex.errors import Damaged, EmptySet, UnknownVersion
from negindex.kernel import Kernel
from negindex.line import Line
from negindex.moments import Moments
from negindex.near import Near
from negindex.negatives import Following, Negatives, Query, Reach, row_elements
from negindex.noise import NoiseLevel
from negindex.partial import Heaviest, Origin, Partial
from negindex.service import bodies
from negindex.service.bodies import digests_array, digests_of, kernel_arrays, name_of
from negindex.service.wire import Arrays

_SPARE = 1 << 16  # bytes of a body that are not samples
_AT_ONCE = 4096  # ids of one request


class RemoteNegatives(Following):
    """The newest version of a set that a service holds (``negindex serve``); pinning it names a version.

    Every answer is of exactly the version that was pinned, or an error: Unreachable when the service does not answer,
    Erased when it can no longer open the version, and otherwise the errors that the set itself would raise. Usable
    from several threads.
    """

    def __init__(
        self,
        url: str,
        set: str,  # noqa: A002, what it is called everywhere
        key: str | None = None,
        *,
        label: str | None = None,
        min_version: int | None = None,
        wire: str = "float64",
        timeout: float = 30.0,
        retries: int = 2,
        certificate: Path | str | None = None,
        insecure: bool = False,
    ) -> None:
        """url: the service's address; set: the name that it has there; key: what `negindex apikey create` printed.

        label: only the rows under it. min_version: raise UnknownVersion where the service knows only older ones.
        wire: how means and rows travel, "float64", "float32" or "float16"; rounding is put on the stated error, and
        log-weights are float64 in any case. timeout: seconds for each part of an answer to come; retries: after a
        connection broke. certificate: PEM of who signed the service's, where the system does not know them.
        insecure: send the key over http to another machine. Raises what asking raises.
        """
        path = None if certificate is None else Path(certificate)
        line = Line(url, key, timeout=timeout, retries=retries, certificate=path, insecure=insecure)
        self._set, self.min_version = Endpoint(line, set, label, wire), min_version
        self._latest: RemoteSnapshot | None = None
        pinned = self.pin()
        self.shape, self.space = pinned.shape, pinned.space
        self._set_id = pinned.set_id.partition("#")[0]

    def pin(self) -> RemoteSnapshot:
        """The newest version that the service has; the same object while nothing changes."""
        told, latest = self._about(), self._latest
        if latest is None or latest.origins != told.origins or latest.checkpoint != told.checkpoint:
            latest = self._latest = told
        return latest

    def at(self, version: int) -> RemoteSnapshot:
        """The set at one version; raises UnknownVersion, and Erased where its rows are gone."""
        return self._about(f"/versions/{int(version)}")

    def where(self, *, label: str) -> RemoteNegatives:
        """The rows under a label: a set of negatives of its own, over the same connections."""
        made = object.__new__(RemoteNegatives)
        made._set, made.min_version, made._latest = self._set.under(label), self.min_version, None
        made.shape, made.space = self.shape, self.space
        made._set_id = self._set_id
        return made

    @property
    def elsewhere(self) -> bool:
        return True

    @property
    def address(self) -> str:
        return self._set.where

    @property
    def known_as(self) -> str:
        return self._set_id if self._set.label is None else f"{self._set_id}#{self._set.label}"

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Rows (n, *S) float64 that are in force now, by their ids; for keys that may have them."""
        return self.pin().rows(ids)

    def check_has_rows(self) -> None:
        """Raise EmptySet, naming the label where there is one, where no row is in force."""
        self.pin().check_has_rows()

    def close(self) -> None:
        """Close the connections; the next question opens one."""
        self._set.line.close()

    def _about(self, at: str = "") -> RemoteSnapshot:
        said = self._set.get_json(f"{at}{self._set.query}")
        try:
            told = RemoteSnapshot(self._set, said)
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{self._set.where} says what is no set ({error}); see to the service") from error
        if self.min_version is not None and told.version < self.min_version:
            raise UnknownVersion(
                f"{self._set.where} is at version {told.version}, and at least {self.min_version} is asked for; wait, "
                "or see whether it serves an old copy"
            )
        return told


class RemoteSnapshot(Negatives):
    """A set at one version, held by a service; immutable."""

    def __init__(self, endpoint: Endpoint, said: Mapping[str, Any], without: frozenset[str] = frozenset()) -> None:
        """said: what the service says of the version. without: digests of rows that are left out."""
        self._set, self._said, self._without = endpoint, said, without
        self.shape, self.space = tuple(map(int, said["shape"])), str(said["space"])
        row_elements(self.shape)
        self.set_id, self.version, self._count = str(said["set_id"]), int(said["version"]), int(said["rows"])
        self._most_bytes, self._most_samples = int(said["most_bytes"]), max(1, int(said["most_samples"]))
        self._kernel = str(said["kernel"])
        self.checkpoint = Checkpoint.from_json(json.dumps(said["checkpoint"]))
        self._name, self._digests = name_of(without), None if not without else digests_array(sorted(without))

    def __len__(self) -> int:
        return self._count

    @property
    def origins(self) -> tuple[Origin, ...]:
        return (Origin(self.set_id, self.version),)

    @property
    def elsewhere(self) -> bool:
        return True

    @property
    def address(self) -> str:
        return f"{self._set.where}, version {self.version}"

    @property
    def default_kernel(self) -> Kernel:
        return self._set.kernel(self.version, self._kernel)

    def answer(self, query: Query) -> Partial:
        several = self._in_parts(query.x_t)
        parts = [self._posterior(query if len(several) == 1 else _some(query, one)) for one in several]
        whole = {name: _joined([part[name] for part in parts]) for name in parts[0]}
        ids = whole.pop("ids")
        heaviest = Heaviest(torch.zeros_like(ids), ids, whole.pop("log_weight"))
        told = Partial(
            log_norm=whole["log_norm"],
            mean=whole["mean"].to(torch.float64),
            log_tail=whole["log_tail"],
            log_unread=whole["log_unread"],
            error=whole["error"],
            heaviest=heaviest,
            count=self._count,
            kernel=query.kernel,
            origins=self.origins,
        )
        return told.to(query.x_t.device)

    def nearest(self, reach: Reach) -> Near:
        parts = [self._near(reach, some) for some in self._in_parts(reach.x)]
        return Near.together(parts).to(reach.x.device)

    def moments(self) -> Moments:
        wanted = bodies.MOMENTS_TOLD
        arrays, said = self._ask(
            "moments", {}, self._asked(), wanted, self._view(), {"mean": (row_elements(self.shape),)}
        )
        return Moments(self._count, arrays["mean"], float(said["scatter"]))

    def digests(self) -> dict[int, str]:
        arrays, said = self._set.get(f"/versions/{self.version}/digests{self._set.query}", bodies.DIGESTS_TOLD)
        self._check_origin(said)
        pairs = zip(arrays["ids"].tolist(), digests_of(arrays["digests"]), strict=True)
        return {row_id: digest for row_id, digest in pairs if digest not in self._without}

    def holds(self, digests: Collection[str]) -> set[str]:
        asked = sorted(set(digests) - self._without)
        if not asked:
            return set()
        arrays = {"digests": digests_array(asked)}
        found, _ = self._ask("holds", arrays, self._asked(view=False), bodies.HELD, {}, {"held": (len(asked),)})
        return {digest for digest, held in zip(asked, found["held"].tolist(), strict=True) if held}

    def without(self, digests: Collection[str]) -> RemoteSnapshot:
        gone = self.holds(digests)
        if not gone:
            return self
        left = sum(digest not in gone for digest in self.digests().values())
        return RemoteSnapshot(self._set, {**self._said, "rows": left}, self._without | gone)

    def source_keys(self, ids: Sequence[int]) -> dict[int, str]:
        """{id: source key} of rows that an answer names."""
        found: dict[int, str] = {}
        for start in range(0, len(ids), _AT_ONCE):
            some = torch.tensor(ids[start : start + _AT_ONCE], dtype=torch.int64)
            said = self._set.post_json("source-keys", {"ids": some}, {"version": self.version})
            found |= {int(row_id): str(key) for row_id, key in said["keys"].items()}
        return found

    def rows(self, ids: Sequence[int]) -> Tensor:
        """Rows (n, *S) float64 in force at this version, by their ids. Raises UnknownKey, NotAllowed."""
        parts = [torch.empty(0, *self.shape, dtype=torch.float64)]
        for start in range(0, len(ids), _AT_ONCE):
            some = torch.tensor(ids[start : start + _AT_ONCE], dtype=torch.int64)
            said, shapes = {"version": self.version, "numbers": self._set.numbers}, {"rows": (len(some), *self.shape)}
            parts.append(self._ask("rows", {"ids": some}, said, bodies.ROWS_TOLD, {}, shapes)[0]["rows"].double())
        return torch.cat(parts)

    def close(self) -> None:
        """Nothing is held here; closing the set that it is of closes the connections."""

    # -- inside ----------------------------------------------------------------------------

    def _asked(self, view: bool = True) -> dict[str, Any]:
        named = {"version": self.version, "label": self._set.label}
        return named | {"without": self._name} if view else named

    def _view(self) -> dict[str, Tensor]:
        return {} if self._digests is None else {"digests": self._digests}

    def _in_parts(self, x: Tensor) -> list[slice]:
        """As many samples at once as the service takes; one part where there is none."""
        one = row_elements(self.shape) * x.element_size()
        room = max(1, (self._most_bytes - _SPARE) // one)
        step = min(room, self._most_samples)
        return [slice(start, start + step) for start in range(0, max(len(x), 1), step)]

    def _posterior(self, query: Query) -> dict[str, Tensor]:
        arrays = {"x_t": query.x_t, "alpha": query.level.alpha, "sigma": query.level.sigma}
        k = None if query.k is None else min(query.k, self._count)  # a member of a union may have fewer rows
        said = self._asked() | {"kernel": query.kernel.fingerprint, "k": k, "error": query.error}
        if query.names is not None:
            said["names"] = query.names
        whole = kernel_arrays(query.kernel)
        if "projection" not in whole and query.kernel.fingerprint != self._kernel:
            arrays |= whole  # a few numbers
        batch, named = len(query.x_t), min(query.named, self._count)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("log_norm", "log_tail", "log_unread", "error"), (batch,))
        shapes |= {"mean": (batch, *self.shape), "ids": (batch, named), "log_weight": (batch, named)}
        whole = {**whole, **self._view()}
        said |= {"numbers": self._set.numbers}
        told, told_of = self._ask("posterior", arrays, said, bodies.POSTERIOR_TOLD, whole, shapes)
        if told_of.get("count") != self._count or told_of.get("kernel") != query.kernel.fingerprint:
            raise Damaged(f"an answer of {told_of.get('count')} rows by another kernel; see to the service")
        return told

    def _near(self, reach: Reach, some: slice) -> Near:
        x = reach.x[some]
        said = self._asked() | {"k": reach.k, "numbers": self._set.numbers}
        arrays = {"x": x, "radius": reach.radius[some]}
        if bool(reach.noise.any()):
            arrays["noise"] = reach.noise[some]
        if not bool(reach.image_radius.isinf().all()):
            arrays["image_radius"] = reach.image_radius[some]
        told, _ = self._ask("near", arrays, said, bodies.NEAR_TOLD, self._view(), {})
        ids, distances, rows = told["ids"], told["distances"], told["rows"]
        if ids.shape[0] != len(x) or distances.shape != ids.shape or rows.shape != (*ids.shape, *self.shape):
            raise Damaged(f"near rows of shape {tuple(rows.shape)} for {len(x)} samples; see to the service")
        return Near(torch.zeros_like(ids), ids, distances, rows.to(torch.float64), self.origins)

    def _ask(
        self,
        question: str,
        arrays: Mapping[str, Tensor],
        said: Mapping[str, Any],
        wanted: Arrays,
        whole: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The answer, if it is of this version and of these shapes; raises Damaged where it is not."""
        told, of = self._set.post(question, arrays, said, wanted, whole)
        self._check_origin(of)
        for name, shape in shapes.items():
            if tuple(told[name].shape) != shape:
                raise Damaged(f"{name} of shape {tuple(told[name].shape)}, not {shape}; see to the service")
        return told, of

    def _check_origin(self, said: Mapping[str, Any]) -> None:
        if (said.get("set_id"), said.get("version")) != (self.set_id, self.version):
            found = f"{said.get('set_id')!r} at version {said.get('version')!r}"
            raise Damaged(f"an answer of {found}, and {self.set_id} at {self.version} was asked; see to the service")

    def check_has_rows(self) -> None:
        """Raise EmptySet, naming the label where there is one, where no row is in force."""
        if not self._count:
            what = "the set" if self._set.label is None else f"the label {self._set.label!r}"
            raise EmptySet(
                f"{what} has no row in force, so nothing can be said about what is near; add rows, or leave it out"
            )

    def _check_samples(self, x: Tensor) -> None:
        self.check_has_rows()
        super()._check_samples(x)


def _some(query: Query, some: slice) -> Query:
    """The query about consecutive samples of its batch."""
    level = NoiseLevel(query.level.alpha[some], query.level.sigma[some])
    return replace(query, x_t=query.x_t[some], level=level)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Arrays of consecutive samples as one; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))

"""What questions say beside their arrays: strictly typed, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from negindex.errors import InvalidInput

Fingerprint = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{32})?$")]
ViewName = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
Version = Annotated[int, Field(ge=0, le=1 << 53)]
Label = Annotated[str, StringConstraints(max_length=500)]
Number = Literal["float64", "float32", "float16"]


class Asked(BaseModel):
    """Of which rows. version None is the newest; without names the digests that are left out."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: Version | None = None
    label: Label | None = None
    without: ViewName = ""


class AskedPosterior(Asked):
    """kernel: a fingerprint, or "" for the set's own. k, error, names: as ``Negatives.posterior`` takes them."""

    kernel: Fingerprint = ""
    k: int | None = None
    error: float | None = None
    names: int | None = None
    numbers: Number = "float64"


class AskedNear(Asked):
    """k: at most so many rows a sample."""

    k: int | None = None
    numbers: Number = "float64"


class AskedRows(Asked):
    """Rows by their ids."""

    numbers: Number = "float64"


S = TypeVar("S", bound=Asked)


def read(kind: type[S], said: dict[str, Any]) -> S:
    """What was said, if it is of this kind; raises InvalidInput, naming the part that is not."""
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise InvalidInput(f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]) from error

"""What can go wrong, one class a kind, each with its exit code.

NegindexError                         1  failed
├── InvalidInput (ValueError)         2  usage
│   ├── ShapeMismatch                    rows, queries or images of another shape
│   ├── SpaceMismatch                    pixels against latents, one VAE's latents against another's
│   ├── NotFinite                        NaN or Inf
│   ├── InvalidNoiseLevel                sigma = 0, negative or not finite
│   ├── OutOfRange                       a number outside its limits
│   ├── KernelMismatch                   answers of different kernels cannot merge
│   ├── DuplicateKey                     a source key in force, added with other bytes
│   ├── ImageRefused                     a file that cannot become a row
│   ├── NothingToCompareWith             a guard with neither reference nor gate
│   └── UnsupportedScheduler             not on the allow-list of sampler.schedules
├── NotThere (LookupError)           10  not there
│   ├── NoCollection                     the directory holds no collection
│   ├── UnknownKey                       no row in force under this source key
│   ├── UnknownVersion                   no such version
│   ├── Erased                           a version whose rows were erased since
│   ├── UnknownClaim                     no such claim
│   └── EmptySet                         no row in force: nothing to compare with
├── Locked                           11  another writer holds the collection
├── NotAllowed                       12  the state of things forbids it
│   ├── ClaimLive                        another claim keeps the row in force
│   ├── OnHold                           a legal hold keeps the row from being erased
│   ├── ContentRefused                   content that a claim or an erasure keeps out of the set
│   └── SchedulerReplaced                the guarded scheduler was swapped
├── Unreachable                       1  a service did not answer
├── EngineBehind                      1  an engine lacks rows of the version that is asked
└── Damaged                          13  integrity: bytes are not those that were written
    ├── Gone                             a file that the record names is not where it lay
    └── NewerFormat                      written by a later version of negindex

Every message gives the value, the limit and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable


class NegindexError(Exception):
    """The root: `except NegindexError` catches everything that negindex raises on purpose."""

    exit_code = 1


class InvalidInput(NegindexError, ValueError):
    """The caller's input is wrong; nothing was changed."""

    exit_code = 2


class ShapeMismatch(InvalidInput):
    """Rows, queries or images have another shape than the set."""


class SpaceMismatch(InvalidInput):
    """Two things that are compared live in different spaces."""


class NotFinite(InvalidInput):
    """NaN or Inf where a number is needed."""


class InvalidNoiseLevel(InvalidInput):
    """alpha or sigma do not describe x_t = alpha x_0 + sigma eps."""


class OutOfRange(InvalidInput):
    """A number lies outside its limits."""


class KernelMismatch(InvalidInput):
    """Answers of different kernels were about to be merged or compared."""


class DuplicateKey(InvalidInput):
    """A source key that is in force was added again with other bytes; ``keys`` says which."""

    def __init__(self, message: str, keys: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class ImageRefused(InvalidInput):
    """A file cannot become a row."""


class NothingToCompareWith(InvalidInput):
    """A guard was asked for without a reference and without a gate."""


class UnsupportedScheduler(InvalidInput):
    """The scheduler is not one whose step the guard knows to read."""


class NotThere(NegindexError, LookupError):
    """What was asked for does not exist."""

    exit_code = 10


class NoCollection(NotThere):
    """The directory holds no collection."""


class UnknownKey(NotThere):
    """No row in force has this source key."""


class UnknownVersion(NotThere):
    """The collection has no such version."""


class Erased(NotThere):
    """The version held rows whose bytes are gone; its receipts still verify."""


class UnknownClaim(NotThere):
    """The collection has no such claim."""


class EmptySet(NotThere):
    """The set has no row in force: it cannot say what is near, and does not pretend to."""


class Locked(NegindexError):
    """Another writer holds the collection."""

    exit_code = 11


class NotAllowed(NegindexError):
    """The state of things forbids what was asked."""

    exit_code = 12


class ClaimLive(NotAllowed):
    """A live claim of somebody else keeps the row in force; ``claims`` says which."""

    def __init__(self, message: str, claims: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.claims = tuple(claims)


class OnHold(NotAllowed):
    """A legal hold keeps the row from being erased; two people lift it."""


class ContentRefused(NotAllowed):
    """A claim, or the fingerprint that an erasure left, keeps this content out; ``keys`` says which."""

    def __init__(self, message: str, keys: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class SchedulerReplaced(NotAllowed):
    """The pipeline no longer runs the scheduler that was guarded."""


class Unreachable(NegindexError):
    """A service did not answer: it is gone, too slow, too busy, or its answer cannot be trusted."""


class EngineBehind(NegindexError):
    """An engine lacks rows of the version that is asked: what is near cannot be said from what it holds."""


class Damaged(NegindexError):
    """Stored bytes are not those that were written."""

    exit_code = 13


class Gone(Damaged):
    """A file that the record names is not in the place where it lay."""


class NewerFormat(Damaged):
    """The collection was written by a later version of negindex."""

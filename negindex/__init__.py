"""A negation index for safe diffusion sampling: what to stay away from, looked up at every step."""

from negindex.catalogue import Version
from negindex.collection import Collection
from negindex.errors import NegindexError
from negindex.exact import Exact
from negindex.kernel import LITERAL, Kernel
from negindex.negatives import Negatives
from negindex.noise import NoiseLevel
from negindex.partial import Heaviest, Origin, Partial
from negindex.snapshot import Snapshot
from negindex.union import Union

__version__ = "0.1.0"
__all__ = [
    "LITERAL",
    "Collection",
    "Exact",
    "Heaviest",
    "Kernel",
    "Negatives",
    "NegindexError",
    "NoiseLevel",
    "Origin",
    "Partial",
    "Snapshot",
    "Union",
    "Version",
]

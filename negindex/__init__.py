"""A negation index for safe diffusion sampling: what to stay away from, looked up at every step."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negindex.calibration import Calibration, calibrate
    from negindex.client import RemoteNegatives
    from negindex.collection import Collection
    from negindex.errors import NegindexError
    from negindex.exact import Exact
    from negindex.kernel import LITERAL, Kernel
    from negindex.mixture import Mixture
    from negindex.near import Near
    from negindex.negatives import Negatives
    from negindex.noise import NoiseLevel
    from negindex.partial import Heaviest, Origin, Partial
    from negindex.receipts import Receipt
    from negindex.snapshot import Snapshot
    from negindex.states import Version
    from negindex.union import Union

__version__ = "0.1.0"
__all__ = [
    "LITERAL",
    "Calibration",
    "Collection",
    "Exact",
    "Heaviest",
    "Kernel",
    "Mixture",
    "Near",
    "Negatives",
    "NegindexError",
    "NoiseLevel",
    "Origin",
    "Partial",
    "Receipt",
    "RemoteNegatives",
    "Snapshot",
    "Union",
    "Version",
    "calibrate",
]

_HOME = {
    "LITERAL": "kernel",
    "Heaviest": "partial",
    "NegindexError": "errors",
    "NoiseLevel": "noise",
    "Origin": "partial",
    "Receipt": "receipts",
    "RemoteNegatives": "client",
    "Version": "states",
    "calibrate": "calibration",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `negindex --help` need not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'negindex' has no attribute {name!r}")
    value = getattr(import_module(f"negindex.{_HOME.get(name, name.lower())}"), name)
    globals()[name] = value
    return value

"""For those who write an engine: the laws of the contract, and disks that fail on purpose. Needs pytest."""

import pytest

pytest.register_assert_rewrite("negindex.testing.contract")

from negindex.testing.contract import NegativesTests  # noqa: E402, the line above must come first
from negindex.testing.faults import FailingDisk, FaultyDisk, KillingDisk, ShortDisk, points  # noqa: E402

__all__ = ["FailingDisk", "FaultyDisk", "KillingDisk", "NegativesTests", "ShortDisk", "points"]

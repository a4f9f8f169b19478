"""Sets whose index lies in Milvus Lite, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from negindex.engines.address import Address
from negindex.engines.link import Link

lite = pytest.importorskip("milvus_lite", reason="Milvus Lite is not installed: pip install milvus-lite==3.2.2")


def running(path: Path) -> Iterator[Path]:
    """A file of Milvus Lite, with a connection that keeps its server running."""
    with closing(Link(Address.of(f"milvus://{path}/any"))) as link:
        link.has("any")
        yield path


def delete(address: Address, table: str, ids: list[int]) -> None:
    """Have an engine lose rows behind everybody's back."""
    link = Link(address)
    link.delete(table, ids)
    link.close()


def alike(one, other, mean: float = 1e-4, log_norm: float = 1e-6) -> None:
    """Two answers to one query, one of them through an engine: the same to the rounding of float32."""
    torch.testing.assert_close(one.mean, other.mean, rtol=0, atol=mean)
    torch.testing.assert_close(one.log_norm, other.log_norm, rtol=0, atol=log_norm)
    torch.testing.assert_close(one.error, other.error, rtol=1e-3, atol=1e-6)
    assert torch.equal(one.heaviest.ids, other.heaviest.ids)
    assert (one.count, one.origins, one.kernel) == (other.count, other.origins, other.kernel)


def same_rows(one, other) -> None:
    """Two look-ups of near rows: the same ones, as far."""
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.distances, other.distances)
    assert torch.equal(one.rows, other.rows)

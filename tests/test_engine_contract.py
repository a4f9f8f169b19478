"""The laws of ``Negatives`` hold for a set whose index lies in Milvus."""

import itertools

import numpy as np
import pytest
import torch
from engines import lite, running  # noqa: F401, skips where it is not installed

from negindex import LITERAL, Calibration, Collection
from negindex.engines import push
from negindex.engines.address import Address
from negindex.engines.milvus import MilvusNegatives
from negindex.engines.on_engine import OnEngine
from negindex.testing import NegativesTests


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    yield from running(tmp_path_factory.mktemp("lite") / "engine.db")


class TestMilvusLite(NegativesTests):
    """The literal kernel's own index: in six dimensions, the engine holds all of each row."""

    stored = torch.float16
    tolerance = 1e-3  # of float16 rows' own distances
    numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path_factory, file, monkeypatch):
        monkeypatch.setattr("negindex.index.SCAN_ELEMENTS", 0)
        self.place, self.file, self.made = tmp_path_factory, file, []
        yield
        for path, address in self.made:
            push.drop(Collection.open(path), address)

    def make(self, rows):
        made = Collection.create(self.place.mktemp("set") / "set", rows.shape[1:], "pixels")
        for some in np.array_split(np.arange(len(rows)), 2):
            made.add(rows[some], [f"row-{i}" for i in some])
        made.adopt(Calibration(LITERAL, (), 1.0, 200, 0, 0))
        address = Address.of(f"milvus://{self.file}/set_{next(self.numbers)}")
        if len(rows):
            push.push(made, address)
            self.made.append((made.path, address))
        negatives = MilvusNegatives(made, address)
        assert not len(rows) or isinstance(negatives.pin().split(LITERAL).mixture, OnEngine)
        return negatives

"""A set that a service holds keeps the laws of the contract, and says when it cannot."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import serving

from negindex import Collection, RemoteNegatives, Union
from negindex.testing import NegativesTests


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    with serving(root, rate=1e6, burst=1e6) as url:
        yield root, url


class Remote(NegativesTests):
    stored = torch.float16
    asked_as = {}

    @pytest.fixture(autouse=True)
    def _service(self, service):
        self.root, self.url = service
        self.opened = []
        yield
        for remote in self.opened:
            remote.close()

    def make(self, rows):
        path = Path(tempfile.mkdtemp(dir=self.root, prefix="s")) / "x"
        path.parent.rmdir()
        made = Collection.create(path.parent, rows.shape[1:], "pixels", dtype=str(self.stored).removeprefix("torch."))
        for some in np.array_split(np.arange(len(rows)), 2):
            made.add(rows[some], [f"row-{i}" for i in some])
        made.close()
        self.opened.append(RemoteNegatives(self.url, path.parent.name, **self.asked_as))
        return self.opened[-1]


    def row_of(self, negatives, origin, row_id):
        return row_id - 1  # a collection counts from 1


class TestRemote(Remote):
    pass


class TestRemoteFloat32(Remote):
    stored = torch.float32

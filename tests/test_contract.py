"""Every set of negatives in the package keeps the laws of the contract."""

import tempfile
from itertools import pairwise

import numpy as np
import pytest
import torch

from negindex import Collection, Exact, Union
from negindex.testing import NegativesTests


class TestExact(NegativesTests):
    def make(self, rows):
        return Exact(rows)


class TestExactFloat32(NegativesTests):
    stored = torch.float32

    def make(self, rows):
        return Exact(rows.float().numpy(), ids=7 * np.arange(len(rows)))


class TestBlocks(NegativesTests):
    """Sets larger than a block are read in several."""

    @pytest.fixture(autouse=True)
    def _small_blocks(self, monkeypatch):
        monkeypatch.setattr("negindex.exact.BLOCK_ELEMENTS", 5 * 6)

    def make(self, rows):
        return Exact(rows)


class TestUnion(NegativesTests):
    """Members number their rows alike; with fewer than four rows some are empty."""

    def make(self, rows):
        cut = np.linspace(0, len(rows), 5).round().astype(int)
        self.first = {}
        members = [Exact(rows[start:stop]) for start, stop in pairwise(cut)]
        for start, member in zip(cut, members, strict=False):
            if len(member):
                self.first[member.origins[0]] = start
        return Union(members)

    def row_of(self, negatives, origin, row_id):
        return self.first[origin] + row_id


class TestUnionOfUnions(NegativesTests):
    def make(self, rows):
        half = len(rows) // 2
        ids = np.arange(len(rows))
        return Union([Union([Exact(rows[half:], ids[half:])]), Exact(rows[:half], ids[:half])])


class OnDisk(NegativesTests):
    stored = torch.float16

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path):
        self.place = tmp_path

    def collection(self, rows, adds=1):
        path = tempfile.mkdtemp(dir=self.place) + "/set"
        made = Collection.create(path, rows.shape[1:], "pixels", dtype=str(self.stored).removeprefix("torch."))
        for some in np.array_split(np.arange(len(rows)), adds):
            made.add(rows[some], [f"row-{i}" for i in some])
        return made


class TestCollection(OnDisk):
    def make(self, rows):
        return self.collection(rows, adds=3)


class TestCollectionFloat32(OnDisk):
    stored = torch.float32

    def make(self, rows):
        return self.collection(rows)


class TestSnapshot(OnDisk):
    """Among rows that were withdrawn before, and others that came after."""

    def make(self, rows):
        made = self.collection(rows)
        noise = torch.ones(4, *rows.shape[1:], dtype=torch.float64)
        made.add(noise, list("abcd"))
        made.withdraw(list("abcd"), "the rows come alone")
        snapshot = made.snapshot()
        made.add(noise, list("abcd"))
        return snapshot


class TestUnionOfSnapshotAndExact(OnDisk):
    def make(self, rows):
        half = (len(rows) + 1) // 2
        ids = np.arange(half, len(rows)) + 1  # a collection counts from 1
        return Union([self.collection(rows[:half]), Exact(rows[half:].half(), ids)])

    def row_of(self, negatives, origin, row_id):
        return row_id - 1

"""Vector searches to stand beside: each finds the k nearest of some rows, faster where it may miss more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]


class Peer(ABC):
    """One index. ``settings`` go from the fastest look-up to the one that misses least; all on one thread."""

    name: ClassVar[str]
    needs: ClassVar[str]  # the module
    settings: ClassVar[Sequence[int]]

    @abstractmethod
    def build(self, rows: Vectors, folder: Path) -> None:
        """Index rows (N, d); what cannot stay in memory goes into the folder."""

    @abstractmethod
    def search(self, query: Vectors, k: int, setting: int) -> Sequence[int]:
        """The places of what it takes for the k nearest to a query (d,)."""


class Faiss(Peer):
    """An index of FAISS by its factory's words; the setting is the named parameter."""

    needs = "faiss"
    factory: ClassVar[str]
    parameter: ClassVar[str] = "nprobe"
    settings: ClassVar[Sequence[int]] = (1, 4, 16, 64)

    def build(self, rows: Vectors, folder: Path) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self._index = faiss.index_factory(rows.shape[1], self.factory.format(lists=isqrt(len(rows))))
        self._index.train(rows)
        self._index.add(rows)
        self._space = faiss.ParameterSpace()

    def search(self, query: Vectors, k: int, setting: int) -> Sequence[int]:
        if self.parameter:
            self._space.set_index_parameter(self._index, self.parameter, setting)
        found: Sequence[int] = self._index.search(query[None], k)[1][0].tolist()
        return found


class FaissFlat(Faiss):
    """All distances."""

    name, factory, parameter, settings = "FAISS Flat", "Flat", "", (0,)


class FaissIvf(Faiss):
    """Lists of float32 rows."""

    name, factory = "FAISS IVF,Flat", "IVF{lists},Flat"


class FaissIvfHalf(Faiss):
    """Lists of float16 rows."""

    name, factory = "FAISS IVF,SQfp16", "IVF{lists},SQfp16"


class FaissIvfBytes(Faiss):
    """Lists of rows at a byte a number."""

    name, factory = "FAISS IVF,SQ8", "IVF{lists},SQ8"


class FaissHnsw(Faiss):
    """A graph."""

    name, factory, parameter, settings = "FAISS HNSW32", "HNSW32,Flat", "efSearch", (16, 64, 256, 1024)


class Hnswlib(Peer):
    """A graph, by its authors."""

    name, needs, settings = "hnswlib", "hnswlib", (16, 64, 256, 1024)

    def build(self, rows: Vectors, folder: Path) -> None:
        import hnswlib

        self._index: Any = hnswlib.Index(space="l2", dim=rows.shape[1])
        self._index.init_index(max_elements=len(rows), ef_construction=200, M=32, random_seed=0)
        self._index.add_items(rows, num_threads=1)

    def search(self, query: Vectors, k: int, setting: int) -> Sequence[int]:
        self._index.set_ef(max(setting, k))
        found: Sequence[int] = self._index.knn_query(query[None], k=k, num_threads=1)[0][0].tolist()
        return found


class Usearch(Peer):
    """A graph."""

    name, needs, settings = "usearch", "usearch", (16, 64, 256, 1024)

    def build(self, rows: Vectors, folder: Path) -> None:
        import numpy as np
        from usearch.index import Index

        self._index: Any = Index(ndim=rows.shape[1], metric="l2sq", dtype="f32", connectivity=32, expansion_add=200)
        self._index.add(np.arange(len(rows)), rows, threads=1)

    def search(self, query: Vectors, k: int, setting: int) -> Sequence[int]:
        self._index.expansion_search = setting
        found: Sequence[int] = self._index.search(query, k, threads=1).keys.tolist()
        return found


class LanceDb(Peer):
    """Lists of product codes on disk, re-ranked by the rows; its threads are its own."""

    name, needs, settings = "LanceDB IVF_PQ", "lancedb", (1, 4, 16, 64)

    def build(self, rows: Vectors, folder: Path) -> None:
        import lancedb
        import numpy as np
        import pyarrow as pa
        from lancedb.index import IvfPq

        width = rows.shape[1]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), width)
        table = pa.table({"place": np.arange(len(rows)), "vector": vectors})
        self._table: Any = lancedb.connect(folder).create_table("rows", table)
        codes = max((n for n in (8, 16, 32, 64) if width % n == 0), default=1)
        index = IvfPq(distance_type="l2", num_partitions=isqrt(len(rows)), num_sub_vectors=codes)
        self._table.create_index("vector", config=index)

    def search(self, query: Vectors, k: int, setting: int) -> Sequence[int]:
        asked = self._table.search(query).nprobes(setting).refine_factor(10).limit(k).select(["place"])
        found: Sequence[int] = asked.to_arrow()["place"].to_pylist()
        return found


PEERS: Sequence[type[Peer]] = (
    FaissFlat,
    FaissIvf,
    FaissIvfHalf,
    FaissIvfBytes,
    FaissHnsw,
    Hnswlib,
    Usearch,
    LanceDb,
)

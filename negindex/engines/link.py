"""The one place that speaks to Milvus, through pymilvus: tables of rows as a kernel sees them.

A table is written by ``push`` alone and holds the rows of one index file. Every failure is Unreachable; a table that is
not there, or holds fewer rows than it should, is found out by whoever counts.
"""

from __future__ import annotations

import base64
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from negindex.engines.address import Address
from negindex.errors import NotAllowed, Unreachable

MOST = 16_384  # rows that Milvus gives for one question
MOST_DIMENSIONS = 1024
IN_FORCE = 2**62  # ``withdrawn`` of a row that is not
LABEL_BYTES = 512
TOKEN = "NEGINDEX_MILVUS_TOKEN"
_PAGE_BYTES = 32 << 20  # of an answer; the server refuses 100 MB
_CALM = 600_000  # ms between pings: Milvus Lite hangs up on a client that asks each 10 s whether it is there
_NO_TABLE = 100  # Milvus' code
_SLOW = 60.0  # seconds that writing may take
_SENT_BYTES = 16 << 20  # in one insertion; the server refuses 64 MB


class NoTable(Unreachable):
    """The engine answers, and has no table of this name."""


class EngineRow(NamedTuple):
    """One row as an engine holds it; the ``vector`` that Milvus searches is the first part of ``seen``."""

    id: int
    cluster: int
    added: int  # the version that it came into force at
    withdrawn: int  # the version that it left at, as of the last push; IN_FORCE
    label: str
    seen: NDArray[np.float32]  # (d + m,): as the kernel sees it, beside its sketch


def page_rows(numbers: int) -> int:
    """How many rows of so many numbers each one answer may hold."""
    return max(1, min(MOST, _PAGE_BYTES // (6 * numbers + 64)))


class Link:
    """A connection, made when it is first used; from any thread.

    timeout: seconds that one question may take, attempts to connect again included.
    """

    def __init__(self, address: Address, timeout: float = 10.0) -> None:
        self.address, self.timeout = address, timeout
        self._made: Any = None
        self._loaded: set[str] = set()
        self._lock = threading.Lock()

    # -- tables ----------------------------------------------------------------------------

    def tables(self, prefix: str) -> list[str]:
        """Names of tables that begin so."""
        with self._asking("list its collections"):
            return sorted(
                name for name in self._client.list_collections(timeout=self.timeout) if name[: len(prefix)] == prefix
            )

    def has(self, table: str) -> bool:
        """Whether the table is there."""
        with self._asking(f"say whether it holds {table}"):
            return bool(self._client.has_collection(table, timeout=self.timeout))

    def create(self, table: str, width: int, numbers: int) -> None:
        """An empty table for rows of d = width dimensions and so many numbers in ``seen``.

        Its index is FLAT: what it finds is what there is, not nearly so.
        """
        with self._asking(f"make {table}"):
            kind, client = self._pymilvus.DataType, self._client
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", kind.INT64, is_primary=True)
            for name in ("cluster", "added", "withdrawn"):
                schema.add_field(name, kind.INT64)
            schema.add_field("label", kind.VARCHAR, max_length=LABEL_BYTES)
            schema.add_field("seen", kind.VARCHAR, max_length=4 * -(-4 * numbers // 3) + 4)
            schema.add_field("vector", kind.FLOAT_VECTOR, dim=max(width, 2))
            index = client.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type="L2")
            client.create_collection(
                table, schema=schema, consistency_level="Bounded", timeout=max(self.timeout, _SLOW)
            )
            client.create_index(table, index, timeout=self.timeout, sync=False)  # ``settle`` waits for it

    def drop(self, table: str) -> None:
        """Have a table, and what it held, no more."""
        with self._asking(f"drop {table}"):
            self._client.drop_collection(table, timeout=self.timeout)
            self._loaded.discard(table)

    def settle(self, table: str) -> None:
        """Have what was written on the server's disk, and the table ready to be asked."""
        with self._asking(f"flush {table}"):
            self._client.flush(table, timeout=max(self.timeout, _SLOW))
            self._client.load_collection(table, timeout=max(self.timeout, _SLOW))
            self._loaded.add(table)

    # -- rows ------------------------------------------------------------------------------

    def put(self, table: str, rows: Sequence[EngineRow], width: int, *, new: bool = False) -> None:
        """Write rows over whatever lies there under their ids; quicker where nothing does (``new``)."""
        step = max(1, _SENT_BYTES // (6 * len(rows[0].seen) + 4 * width + 64)) if rows else 1
        for start in range(0, len(rows), step):
            sent = [as_sent(row, width) for row in rows[start : start + step]]
            with self._asking(f"take rows into {table}"):
                write = self._client.insert if new else self._client.upsert
                write(table, sent, timeout=max(self.timeout, _SLOW))

    def delete(self, table: str, ids: Sequence[int]) -> None:
        """Take rows away; those that are not there are none."""
        for start in range(0, len(ids), MOST):
            with self._asking(f"delete rows of {table}"):
                self._client.delete(table, ids=list(ids[start : start + MOST]), timeout=max(self.timeout, _SLOW))

    def count(self, table: str, *, strong: bool) -> int:
        """Rows that it holds: now, or (not strong) as of some seconds ago at most."""
        (told,) = self._query(table, "", ["count(*)"], strong)
        return int(told["count(*)"])

    def seen(
        self, table: str, where: str, numbers: int, *, strong: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids (n,) and what the kernel sees (n, numbers) of the rows that a filter tells, in any order."""
        found = self._query(table, where, ["id", "seen"], strong, MOST)
        ids = np.array([one["id"] for one in found], np.int64)
        return ids, self._decoded(table, [one["seen"] for one in found], numbers)

    def sent(self, table: str, where: str) -> dict[int, dict[str, Any]]:
        """{id: the row as of now, as ``as_sent`` writes it}."""
        found = self._query(table, where, [*EngineRow._fields, "vector"], True, MOST)
        return {one["id"]: {**one, "vector": np.array(list(one["vector"]), np.float32)} for one in found}

    def nearest(
        self,
        table: str,
        point: NDArray[np.float32],
        where: str,
        most: int,
        within: float | None = None,
        *,
        strong: bool,
    ) -> NDArray[np.int64]:
        """Ids of the rows nearest to a point (d,), at most so many; those at a squared distance below ``within``."""
        limits = {} if within is None else {"radius": within}
        self._load(table)
        with self._asking(f"search {table}"):
            (hits,) = self._client.search(
                table,
                data=[_padded(point)],
                filter=where,
                limit=most,
                output_fields=["id"],
                search_params={"metric_type": "L2", "params": limits},
                consistency_level=_level(strong),
                timeout=self.timeout,
            )
            return np.array([hit["id"] for hit in hits], np.int64)

    def version(self) -> str:
        """What the engine is, and the client that speaks to it."""
        with self._asking("say its version"):
            kind = "Milvus Lite" if self.address.is_file else "Milvus"
            told = str(self._client.get_server_version(timeout=self.timeout))
            return f"{kind} {told}, pymilvus {self._pymilvus.__version__}"

    def close(self) -> None:
        """Let go of the connection, if there is one."""
        with self._lock:
            client, self._made = self._made, None
        self._loaded.clear()
        if client is not None:
            client.close()

    # -- inside ----------------------------------------------------------------------------

    def _query(
        self, table: str, where: str, fields: Sequence[str], strong: bool, limit: int | None = None
    ) -> Sequence[Mapping[str, Any]]:
        self._load(table)
        limits = {} if limit is None else {"limit": limit}
        with self._asking(f"read {table}"):
            found: Sequence[Mapping[str, Any]] = self._client.query(
                table,
                filter=where,
                output_fields=list(fields),
                consistency_level=_level(strong),
                timeout=self.timeout,
                **limits,
            )
            return found

    def _decoded(self, table: str, texts: Sequence[str], numbers: int) -> NDArray[np.float32]:
        try:
            found = np.frombuffer(b"".join(map(base64.b64decode, texts)), "<f4")
            return found.reshape(len(texts), numbers)
        except ValueError as error:
            raise Unreachable(
                f"{self.address.text} holds rows of {table} that are not as they were pushed ({error}); "
                "`negindex engine check SET --repair` puts them right"
            ) from error

    def _load(self, table: str) -> None:
        if table not in self._loaded:
            with self._asking(f"load {table}"):
                self._client.load_collection(table, timeout=self.timeout)
            self._loaded.add(table)

    @cached_property
    def _pymilvus(self) -> Any:
        try:
            import pymilvus
        except ImportError as error:
            raise NotAllowed(f"an engine needs pymilvus ({error}); pip install 'negindex[milvus]'") from error
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what it logs is raised, and told once
        return pymilvus

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                calmly = {"grpc_options": {"grpc.keepalive_time_ms": _CALM}} if self.address.is_file else {}
                self._made = self._pymilvus.MilvusClient(
                    self.address.uri, token=os.environ.get(TOKEN, ""), timeout=self.timeout, **calmly
                )
            return self._made

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        milvus = self._pymilvus
        import grpc

        try:
            yield
        except (milvus.MilvusException, grpc.RpcError, OSError) as error:
            if getattr(error, "code", None) != _NO_TABLE:
                self.close()  # it may be started anew, and a connection to what it was would never come back
            said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            kind = NoTable if getattr(error, "code", None) == _NO_TABLE else Unreachable
            raise kind(f"{self.address.text} did not {what}: {said}; see that it runs, then ask again") from error


def either(clusters: Iterable[int]) -> str:
    """The filter that tells the rows of some clusters."""
    return f"cluster in [{','.join(map(str, clusters))}]"


def _level(strong: bool) -> str:
    return "Strong" if strong else "Bounded"


def _padded(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Milvus takes no vectors of a single dimension."""
    return vector if len(vector) > 1 else np.append(vector, np.float32(0))


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows as they are sent are alike in every field."""
    return all(np.array_equal(one[name], other[name]) for name in (*EngineRow._fields, "vector"))


def as_sent(row: EngineRow, width: int) -> dict[str, Any]:
    """A row in Milvus' fields; its vector has d = width dimensions."""
    text = base64.b64encode(row.seen.astype("<f4").tobytes()).decode()
    return {**row._asdict(), "seen": text, "vector": _padded(row.seen[:width])}

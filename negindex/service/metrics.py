"""Figures for Prometheus: of one process, or of all workers where PROMETHEUS_MULTIPROC_DIR is set."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from negindex.errors import EngineBehind, NegindexError, Unreachable
from negindex.near import Near
from negindex.partial import Partial
from negindex.stages import Stage
from negindex.states import Version

SHARED = "PROMETHEUS_MULTIPROC_DIR"
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
AWAY = (EngineBehind, Unreachable)  # what is raised where a set waits for another machine in vain
_OF_REQUESTS = ("read", "wait")  # stages that each has for itself; the others are of a call for several
_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SHARES = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Metrics:
    """What one process counts. Labels are sets, routes and stages: never keys, callers or rows."""

    def __init__(self) -> None:
        own = self._own = CollectorRegistry()
        self._owed: deque[Callable[[], None]] = deque()  # used by several threads
        self._requests = Counter("negindex_requests", "Answers by status.", ["route", "status"], registry=own)
        self._seconds = Histogram(
            "negindex_request_seconds", "From header to answer.", ["route"], registry=own, buckets=_SECONDS
        )
        self._stages = Histogram(
            "negindex_stage_seconds",
            "read (the body), wait (for the call before), search (and gather), write (the answer).",
            ["stage"],
            registry=own,
            buckets=_SECONDS,
        )
        self._batch = Histogram(
            "negindex_call_samples", "Samples that one call answers.", registry=own, buckets=_SAMPLES
        )
        self._captured = Histogram(
            "negindex_captured_share",
            "Share of the posterior weight read row by row, per sample.",
            ["set"],
            registry=own,
            buckets=_SHARES,
        )
        self._degraded = Counter(
            "negindex_degraded_answers", "Samples whose stated error exceeds the one asked for.", ["set"], registry=own
        )
        self._strange = Counter(
            "negindex_withdrawn_hits", "Rows named that are not in force; must be 0.", ["set"], registry=own
        )
        self._unanswered = Counter(
            "negindex_unanswered_calls",
            "Look-ups that failed since what a set needs from elsewhere did not come: its engine, its rows.",
            ["set", "error"],
            registry=own,
        )
        self._version = Gauge(
            "negindex_set_version", "Newest version; of the worker most behind.", ["set"], registry=own,
            multiprocess_mode="livemin",
        )  # fmt: skip
        self._age = Gauge(
            "negindex_set_version_age_seconds", "Since the version came into force.", ["set"], registry=own,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self._due = Gauge(
            "negindex_claim_clocks", "Clocks that call for somebody: near, or missed.", ["set", "state"], registry=own,
            multiprocess_mode="livemax",
        )  # fmt: skip
        self._backup_age = Gauge(
            "negindex_backup_age_seconds", "Since the newest backup on schedule; +Inf without one.", ["set"],
            registry=own, multiprocess_mode="livemax",
        )  # fmt: skip
        self._backup_failures = Counter(
            "negindex_backup_failures", "Backups on schedule that failed.", ["set"], registry=own
        )

        self._uploads = Gauge(
            "negindex_encoder_queue", "Uploads that wait to be decoded and encoded, or are.", registry=own,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._encoded = Histogram(
            "negindex_encoder_seconds", "From pixels to a row of latents.", registry=own, buckets=_SECONDS
        )

    def knows(self, name: str, version: Version, now: datetime) -> None:
        """A set that this process serves, and its newest version."""
        self._strange.labels(name).inc(0)
        self._degraded.labels(name).inc(0)
        for error in AWAY:
            self._unanswered.labels(name, error.__name__).inc(0)
        self._version.labels(name).set(version.version)
        self._age.labels(name).set((now - datetime.fromisoformat(version.at)).total_seconds())

    def request(self, route: str, status: int, seconds: float, stages: Iterable[Stage] = ()) -> None:
        """A request that was answered, and the stages of its answer."""
        self.settle()
        for one in stages:
            if one.name in _OF_REQUESTS:
                self.stage(one.name, one.seconds)
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def stage(self, stage: str, seconds: float) -> None:
        """Time that one part of an answer took."""
        self._stages.labels(stage).observe(seconds)

    def withdrawn_hits(self, name: str, rows: int) -> None:
        """Rows that an answer would have named although they are not in force."""
        self._strange.labels(name).inc(rows)

    def unanswered(self, name: str, error: NegindexError) -> None:
        """A call that a set could not answer: something that lies elsewhere did not come."""
        self._unanswered.labels(name, type(error).__name__).inc()

    def clocks(self, name: str, near: int, missed: int) -> None:
        """Clocks of a set's claims."""
        self._due.labels(name, "near").set(near)
        self._due.labels(name, "missed").set(missed)

    def backups(self, name: str, age: float) -> None:
        """Seconds since a set's newest backup on schedule."""
        self._backup_failures.labels(name).inc(0)
        self._backup_age.labels(name).set(age)

    def backup_failed(self, name: str) -> None:
        """A backup that was due, and is not there."""
        self._backup_failures.labels(name).inc()

    def uploads(self, waiting: int) -> None:
        """Uploads that this process has taken and not done with."""
        self._uploads.set(waiting)

    def encoded(self, seconds: float) -> None:
        """An image that became a row of latents."""
        self._encoded.observe(seconds)

    def answered(self, name: str, told: Partial | Near, wanted: float | None, search: Stage, write: Stage) -> None:
        """One call, what it told, and the error that its questions asked for; ``settle`` counts it: no answer waits."""
        self._owed.append(partial(self._count, name, told, wanted, search, write))

    def settle(self) -> None:
        """Count what was answered since."""
        with suppress(IndexError):  # then nothing is left
            while True:
                self._owed.popleft()()

    def _count(self, name: str, told: Partial | Near, wanted: float | None, search: Stage, write: Stage) -> None:
        self.stage("search", search.seconds)
        self.stage("write", write.seconds)
        if isinstance(told, Near):
            self._batch.observe(len(told.rows))
            return
        self._batch.observe(len(told.mean))
        captured = self._captured.labels(name)
        for share in told.captured.tolist():
            captured.observe(share)
        if wanted is not None and (degraded := int((told.error > wanted).sum())):
            self._degraded.labels(name).inc(degraded)

    def text(self) -> bytes:
        """What Prometheus scrapes: of all workers where they share a folder."""
        self.settle()
        if SHARED not in os.environ:
            return bytes(generate_latest(self._own))
        whole = CollectorRegistry()
        MultiProcessCollector(whole)
        return bytes(generate_latest(whole))

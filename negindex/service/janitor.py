"""The one process that keeps the sets of a directory in order: compaction, what erasures owe, deadlines of claims."""

from __future__ import annotations

import logging.config
import os
import signal
import threading
import time
from contextlib import closing
from datetime import UTC, datetime

import torch

from negindex.collection import Collection
from negindex.errors import Locked, NegindexError
from negindex.service.alarms import Alarm, Bell, alarms
from negindex.service.held import Sets
from negindex.service.logs import log, log_config
from negindex.service.metrics import Metrics
from negindex.service.settings import Settings


def work(settings: Settings, parent: int) -> None:
    """Go round the sets until told to stop, or until the parent process is gone."""
    logging.config.dictConfig(log_config(settings.log_level))
    torch.set_num_threads(1)
    stop = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stop.set())
    metrics = Metrics()
    webhook = settings.webhook.get_secret_value() if settings.webhook else None
    bell = Bell(settings.root, webhook)
    due = time.monotonic()
    while not stop.wait(min(1.0, settings.upkeep_seconds)) and os.getppid() == parent:
        if time.monotonic() >= due:
            go_round(settings, metrics, bell)
            due = time.monotonic() + settings.upkeep_seconds


def go_round(settings: Settings, metrics: Metrics, bell: Bell) -> None:
    """Look after every set once. A set that cannot be looked after is logged, and the others are."""
    found: list[Alarm] = []
    looked_at = []
    for name in Sets(settings.root, pins=1).names():
        try:
            with closing(Collection.open(settings.root / name)) as collection:
                found += _look_after(name, collection, metrics)
            looked_at.append(name)
        except Locked:
            log("upkeep-waits", set=name)  # somebody writes for long: the next round comes
        except (NegindexError, OSError) as error:
            log("upkeep-failed", logging.ERROR, set=name, error=type(error).__name__)
    bell.ring(found, looked_at)


def _look_after(name: str, collection: Collection, metrics: Metrics) -> list[Alarm]:
    now = datetime.now(UTC)
    found = alarms(name, collection.claims.due(now=now), now)
    metrics.clocks(name, *(sum(alarm.kind == kind for alarm in found) for kind in ("near", "missed")))
    rewritten = collection.compact()
    owed = collection.settle() if collection.outstanding() else []
    if rewritten or owed:
        log("upkeep", set=name, files_rewritten=rewritten, outstanding=len(owed))
    return found

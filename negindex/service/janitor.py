"""The one process that keeps the sets of a directory in order: compaction, what erasures owe, deadlines, backups."""

from __future__ import annotations

import logging.config
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime

import torch

from negindex.collection import Collection
from negindex.engines.address import Address
from negindex.engines.push import keep_up
from negindex.errors import Locked, NegindexError
from negindex.service.alarms import Alarm, BackupAlarm, Bell, alarms
from negindex.service.held import Sets
from negindex.service.logs import log, log_config
from negindex.service.metrics import Metrics
from negindex.service.scheduled import Backups, Stoppable
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
    backups = Backups(settings, metrics, Stoppable(stop)) if settings.backup_every else None
    beside = threading.Thread(target=_back_up, args=(backups, settings.upkeep_seconds, stop), daemon=True)
    if backups is not None:
        beside.start()
    due = time.monotonic()
    while not stop.wait(min(1.0, settings.upkeep_seconds)) and os.getppid() == parent:
        if backups is not None:
            backups.tell(datetime.now(UTC))
            if not beside.is_alive():
                sys.exit(1)  # and this process is started anew
        if time.monotonic() >= due:
            go_round(settings, metrics, bell, () if backups is None else backups.alarms())
            due = time.monotonic() + settings.upkeep_seconds
    stop.set()
    if backups is not None:
        beside.join(settings.grace_seconds)  # beyond that it is cut off, as by a crash


def _back_up(backups: Backups, seconds: float, stop: threading.Event) -> None:
    """In a thread of its own, since a backup may take longer than a clock may wait."""
    try:
        while not stop.is_set():
            backups.go_round()
            stop.wait(seconds)
    except Exception as error:  # the thread ends, and the process after it
        log("fault", logging.ERROR, error=type(error).__name__)


def go_round(settings: Settings, metrics: Metrics, bell: Bell, more: Iterable[BackupAlarm] = ()) -> None:
    """Look after every set once. A set that cannot be looked after is logged, and the others are. more: alarms."""
    found: list[Alarm | BackupAlarm] = [*more]
    looked_at = []
    for name in Sets(settings.root, pins=1).names():
        try:
            with closing(Collection.open(settings.root / name)) as collection:
                engine = settings.engine.get(name)
                found += _look_after(name, collection, metrics, index=engine is None)
                _keep_up(name, collection, engine)
            looked_at.append(name)
        except Locked:
            log("upkeep-waits", set=name)  # somebody writes for long: the next round comes
        except (NegindexError, OSError) as error:
            log("upkeep-failed", logging.ERROR, set=name, error=type(error).__name__)
    bell.ring(found, looked_at)


def _keep_up(name: str, collection: Collection, engine: str | None) -> None:
    """Have a set's engine hold its index, and one that is made anew before look-ups ask it.

    A round that fails is logged, and the next one comes.
    """
    if engine is None:
        return
    try:
        sent = keep_up(collection, Address.of(engine))
    except NegindexError as error:
        log("engine-failed", logging.ERROR, set=name, error=type(error).__name__)
        return
    if sent is not None:
        log("engine-pushed", set=name, rows=sent.rows, wrong=sent.wrong)


def _look_after(name: str, collection: Collection, metrics: Metrics, *, index: bool) -> list[Alarm]:
    now = datetime.now(UTC)
    found = alarms(name, collection.claims.due(now=now), now)
    metrics.clocks(name, *(sum(alarm.kind == kind for alarm in found) for kind in ("near", "missed")))
    rewritten = collection.compact(index=index)
    owed = collection.settle() if collection.outstanding() else []
    if rewritten or owed:
        log("upkeep", set=name, files_rewritten=rewritten, outstanding=len(owed))
    return found

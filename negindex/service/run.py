"""The service's processes: workers that answer on one socket, one that keeps the sets in order, and their watcher."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from multiprocessing.context import SpawnProcess

import torch
import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.supervisors import Multiprocess

from negindex.errors import InvalidInput, NotThere
from negindex.service import janitor
from negindex.service.access import load_keys
from negindex.service.app import make_app
from negindex.service.logs import log, log_config
from negindex.service.metrics import SHARED
from negindex.service.settings import Settings, check_exposure

BACKLOG = 2048  # connections that wait
KEEP_ALIVE = 75  # seconds that a connection may be idle
_AGAIN = 5.0  # seconds before a janitor that ended is started anew


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; answers under way are finished first. SIGHUP replaces workers one by one.

    Raises NotThere, NotAllowed, InvalidInput before anything listens.
    """
    keyless = check(settings)
    with tempfile.TemporaryDirectory(prefix="negindex-metrics-") as shared, bound(settings) as listening:
        os.environ[SHARED] = shared
        config = config_of(settings, functools.partial(worker, settings, keyless, os.getpid()))
        config.configure_logging()
        listening.listen(BACKLOG)  # whoever comes before the workers are up waits for them
        address, port = listening.getsockname()[:2]
        log("listening", address=address, port=port, tls=settings.has_tls, keys=not keyless, workers=settings.workers)
        supervisor = Supervisor(config, [listening], settings)
        supervisor.run()
        supervisor.close()
    if any(process.exitcode == uvicorn.config.STARTUP_FAILURE for process in supervisor.processes):
        raise InvalidInput("a worker did not start; its log lines say why")


def check(settings: Settings) -> bool:
    """Whether anybody may ask. Raises where the settings do not go together, or would expose the sets."""
    if not settings.root.is_dir():
        raise NotThere(f"{settings.root} is no directory; name the one that holds the sets")
    keys = load_keys(settings.root)
    for word in check_exposure(settings, bool(keys)):
        print(f"negindex: INSECURE, as asked: {word}", file=sys.stderr)
    for path in (settings.certificate, settings.certificate_key):
        if path is not None and not path.is_file():
            raise NotThere(f"{path} is no file; name the certificate and its key in PEM")
    if settings.certificate is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.certificate, settings.certificate_key)
        except (ssl.SSLError, OSError) as error:
            raise InvalidInput(f"{settings.certificate} and its key do not go together ({error})") from error
    return not keys and (settings.is_local or settings.insecure)


def bound(settings: Settings) -> socket.socket:
    """A socket on the address; raises InvalidInput where it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # named, or asyncio leaves Nagle's delay on
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise InvalidInput(f"cannot listen on {settings.host} port {settings.port} ({error}); name others") from error
    listening.set_inheritable(True)
    return listening


def config_of(settings: Settings, app: functools.partial[FastAPI]) -> uvicorn.Config:
    """How uvicorn serves: no proxies are believed, and nothing says what serves."""
    return uvicorn.Config(
        app,
        factory=True,
        workers=settings.workers,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=log_config(settings.log_level),
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=settings.connections,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=settings.grace_seconds,
        h11_max_incomplete_event_size=settings.header_bytes,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
    )


def worker(settings: Settings, keyless: bool, parent: int) -> FastAPI:
    """The application in a process of its own, which ends when its parent has."""
    torch.set_num_threads(settings.threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    return make_app(settings, keyless)


class Supervisor(Multiprocess):
    """Starts workers and the janitor anew where they end."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], settings: Settings) -> None:
        super().__init__(config, sockets)
        self._settings, self._last = settings, time.monotonic()
        self._janitor = self._new_janitor()

    def keep_subprocess_alive(self) -> None:
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            log("worker-replaced", 40, worker=pid)
            mark_process_dead(pid)
        if not self._janitor.is_alive() and time.monotonic() - self._last > _AGAIN:
            log("janitor-replaced", 40, code=self._janitor.exitcode)
            self._last, self._janitor = time.monotonic(), self._new_janitor()

    def close(self) -> None:
        """End the janitor."""
        self._janitor.terminate()
        self._janitor.join(self._settings.grace_seconds)
        self._janitor.kill()

    def _new_janitor(self) -> SpawnProcess:
        target = functools.partial(janitor.work, self._settings, os.getpid())
        made = multiprocessing.get_context("spawn").Process(target=target, name="janitor")
        made.start()
        return made


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)

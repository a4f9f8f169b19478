"""The service's processes: workers that answer on one socket, one that keeps the sets in order, and their watcher."""

from __future__ import annotations

import functools
import gc
import logging.config
import multiprocessing
import os
import secrets
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

import torch
import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE

from negindex.errors import InvalidInput, NotThere
from negindex.service import encoding, janitor
from negindex.service.access import load_keys
from negindex.service.app import make_app
from negindex.service.encoding import Channel
from negindex.service.logs import log, log_config
from negindex.service.metrics import SHARED
from negindex.service.pages.images import Images
from negindex.service.parsing import Limited
from negindex.service.settings import Settings, check_backups, check_engines, check_exposure
from negindex.service.sign_on import sign_on_of
from negindex.service.state import Handed, signing_key

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

BACKLOG = 2048  # connections that wait
KEEP_ALIVE = 75  # seconds that a connection may be idle
LOOK_EVERY = 0.2  # seconds between looks at the processes
_OTEL = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter")
END_WITHIN = 5.0  # seconds beyond the grace after which a process is killed


def run(settings: Settings, images: Images | None = None, passphrase: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT; answers under way are finished first. SIGHUP replaces workers one by one.

    images: what decodes images for the pages; without it there are none. It is pickled for each worker.
    passphrase: of the key that signs, where its file is locked; it goes to each worker, and nowhere else.

    Raises NotThere, NotAllowed, InvalidInput before anything listens.
    """
    keyless = check(settings, passphrase)
    logging.config.dictConfig(log_config(settings.log_level))
    with tempfile.TemporaryDirectory(prefix="negindex-metrics-") as shared, ExitStack() as open_here:
        os.environ[SHARED] = shared
        channel, running = Channel(f"{shared}/encoder", secrets.token_bytes(32)), dict[str, SpawnProcess]()
        if settings.encoder and images is not None:
            running["encoder"] = encoding.begin(settings, images.load, channel)
            open_here.callback(running["encoder"].kill)
        handed = Handed(passphrase, channel if running else None)
        sockets = [open_here.enter_context(one) for one in listening(settings)]
        address, port = sockets[0].getsockname()[:2]
        log("listening", address=address, port=port, tls=settings.has_tls, keys=not keyless, workers=settings.workers)
        Supervisor(settings, keyless, sockets, images, handed, running).run()
    log("ended")


def check(settings: Settings, passphrase: str | None = None) -> bool:
    """Whether anybody may ask. Raises where the settings do not go together, or would expose the sets."""
    if not settings.root.is_dir():
        raise NotThere(f"{settings.root} is no directory; name the one that holds the sets")
    check_backups(settings)
    check_engines(settings)
    signing_key(settings, passphrase)
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
    if sign_on_of(settings) is not None and find_spec("authlib") is None:
        raise InvalidInput('people cannot log in through a provider without authlib: pip install "negindex[oidc]"')
    if settings.traces and any(find_spec(name) is None for name in _OTEL):
        raise InvalidInput('spans cannot be sent without OpenTelemetry: pip install "negindex[otel]"')
    return not keys and (settings.is_local or settings.insecure)


def listening(settings: Settings) -> list[socket.socket]:
    """A socket a worker, all on one port: the system spreads connections over them evenly.

    Whoever connects before the workers are up waits for them. Raises InvalidInput where the port cannot be had.
    """
    first = bound(settings)
    if settings.workers == 1:
        first.listen(BACKLOG)
        return [first]
    port = first.getsockname()[1]
    first.close()  # the port is nobody else's, and can be shared
    sockets = [bound(settings, port, shared=True) for _ in range(settings.workers)]
    for one in sockets:
        one.listen(BACKLOG)
    return sockets


def bound(settings: Settings, port: int | None = None, *, shared: bool = False) -> socket.socket:
    """A socket on the address; raises InvalidInput where it cannot be had. shared: several of this user may be."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle's delay on
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind((settings.host, settings.port if port is None else port))
    except OSError as error:
        one.close()
        raise InvalidInput(f"cannot listen on {settings.host} port {settings.port} ({error}); name others") from error
    return one


def config_of(settings: Settings, app: functools.partial[FastAPI]) -> uvicorn.Config:
    """How uvicorn serves: no proxies are believed, and nothing says what serves."""
    return uvicorn.Config(
        app,
        factory=True,
        loop="auto",  # uvloop, but where there is none
        http=functools.partial(Limited, 4 * settings.header_bytes),  # type: ignore[arg-type]
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
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
    )


def work(
    settings: Settings,
    keyless: bool,
    images: Images | None,
    handed: Handed,
    parent: int,
    listens: socket.socket,
) -> None:
    """A worker's process, which ends when its parent has."""
    torch.set_num_threads(settings.threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    spans = _spans() if settings.traces else None
    app = functools.partial(make_app, settings, keyless, images, handed, spans)
    gc.freeze()  # what was imported stays: collecting garbage need not look at it again
    uvicorn.Server(config_of(settings, app)).run([listens])


def _spans() -> TracerProvider:
    from negindex.service.tracing import exporting  # what it needs is an extra

    return exporting()


class Supervisor:
    """Keeps workers, janitor and encoder running: one that ends is started anew."""

    def __init__(
        self,
        settings: Settings,
        keyless: bool,
        sockets: Sequence[socket.socket],
        images: Images | None,
        handed: Handed,
        running: Mapping[str, SpawnProcess],
    ) -> None:
        """running: the process that encodes, where there is one; it had to be up before anything listened."""
        me = os.getpid()
        self._settings = settings
        self._sockets = {f"worker-{i}": one for i, one in enumerate(sockets)}
        worker = functools.partial(work, settings, keyless, images, handed, me)
        self._targets: dict[str, functools.partial[None]] = dict.fromkeys(self._sockets, worker)
        self._targets["janitor"] = functools.partial(janitor.work, settings, me)
        if images is not None and handed.channel is not None:
            self._targets["encoder"] = functools.partial(encoding.work, settings, images.load, handed.channel, me)
        self._running = dict(running)
        self._stop, self._renew = threading.Event(), threading.Event()

    def run(self) -> None:
        """Until a signal says stop. Raises InvalidInput where a worker cannot start at all."""
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: self._stop.set())
        signal.signal(signal.SIGHUP, lambda *_: self._renew.set())
        try:
            for name in self._targets.keys() - self._running.keys():
                self._start(name)
            while not self._stop.wait(LOOK_EVERY):
                self._look()
                if self._renew.is_set():
                    self._renew.clear()
                    self._restart()
        finally:
            self._end(list(self._running))
            for one in self._sockets.values():
                one.close()

    def _start(self, name: str) -> None:
        args = (self._sockets[name],) if name in self._sockets else ()
        self._running[name] = multiprocessing.get_context("spawn").Process(
            target=self._targets[name], args=args, name=name
        )
        self._running[name].start()

    def _look(self) -> None:
        for name, process in list(self._running.items()):
            if process.is_alive():
                continue
            if process.exitcode == STARTUP_FAILURE:
                raise InvalidInput(f"{name} did not start; its log lines say why")
            log("process-replaced", logging.ERROR, name=name, code=process.exitcode)
            mark_process_dead(process.pid)
            self._pass_on(name)
            self._start(name)

    def _pass_on(self, name: str) -> None:
        """Have other workers take what waits at the socket of one that died, instead of until it is up again.

        Closing the socket breaks the connections that nobody took, and who asked connects anew. The new worker
        listens on another one as soon as it is up. Where nobody else serves, they wait.
        """
        if name in self._sockets and any(self._serves(one) for one in self._sockets if one != name):
            port = self._sockets[name].getsockname()[1]
            with suppress(InvalidInput):  # then it keeps the socket that it has
                fresh = bound(self._settings, port, shared=True)
                self._sockets[name].close()
                self._sockets[name] = fresh

    def _serves(self, name: str) -> bool:
        listens = self._sockets[name].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return bool(listens) and self._running[name].is_alive()

    def _restart(self) -> None:
        for name in self._targets:
            if not self._stop.is_set():
                self._end([name])
                self._start(name)

    def _end(self, names: Sequence[str]) -> None:
        """Let processes finish what is under way, for so long as the settings give them."""
        for name in names:
            self._running[name].terminate()
        end = time.monotonic() + self._settings.grace_seconds + END_WITHIN
        for name in names:
            self._running[name].join(max(0.0, end - time.monotonic()))
            self._running[name].kill()
            self._running[name].join()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)

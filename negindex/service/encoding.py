"""Rows of latent sets, made in one process of their own, so that no sampler's answer waits for a VAE.

Workers ask over a Unix socket in a folder that this user alone can enter, with a secret of this run. What travels are
arrays, and nothing is unpickled. The process makes one image's rows at a time, and each worker asks for one at a time.
"""

from __future__ import annotations

import json
import logging.config
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from multiprocessing import AuthenticationError, get_context
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from negindex.collection import Collection
from negindex.errors import InvalidInput, NegindexError, NotThere, Unreachable
from negindex.service.logs import log, log_config
from negindex.service.metrics import Metrics
from negindex.service.problems import error_from, problem, status_of
from negindex.service.settings import Settings
from negindex.service.wire import FLOATS, Array, Arrays, packed, unpacked

PATIENCE = 120.0  # seconds that a worker waits for an image's row
AGAIN = 10.0  # seconds before a process that cannot start anew is tried once more
KINDNESS = 10  # how much it yields to workers, as `nice` says it
_BACKLOG = 256
_BYTES = 1 << 28
_WHERE = "the process that encodes"
_ASKED: Arrays = {"pixels": Array(("F32",), 4, optional=True)}
_TOLD: Arrays = {"rows": Array(FLOATS, optional=True)}


class RowMaker(Protocol):
    """Makes rows of one latent set from images that are decoded and scaled already."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""

    @property
    def channels(self) -> int:
        """Channels of the images."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One row's shape S."""

    @property
    def space(self) -> str:
        """What the rows are."""

    def rows(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) in [-1, 1] to rows (B, *S)."""


Load = Callable[[Collection, Path], RowMaker]  # raises SpaceMismatch where the folder's VAE is another than the set's


class Channel(NamedTuple):
    """How workers reach the process that encodes."""

    address: str  # of a Unix socket
    secret: bytes


# -- a worker asks -------------------------------------------------------------------------


class Encoders:
    """The encoders of a service, as one worker asks them. Usable from several threads."""

    def __init__(self, channel: Channel | None, names: Mapping[str, Path]) -> None:
        self._channel, self._names = channel, names

    def __contains__(self, name: str) -> bool:
        return self._channel is not None and name in self._names

    def of(self, name: str) -> RowMaker | None:
        """The one of a set; None where the service has none. Raises Unreachable while it does not answer."""
        return None if self._channel is None or name not in self._names else _Far(self._channel, name)


class _Far:
    """A ``RowMaker`` in the other process."""

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel, self._name = channel, name
        _, said = _ask(channel, name, {})
        height, width = said["size"]
        self.size, self.channels = (int(height), int(width)), int(said["channels"])
        self.shape, self.space = tuple(map(int, said["shape"])), str(said["space"])

    def rows(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        told, _ = _ask(self._channel, self._name, {"pixels": torch.from_numpy(pixels)})
        made: NDArray[np.float32] = told["rows"].numpy()
        return made


def _ask(channel: Channel, name: str, arrays: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Any]:
    try:
        with closing(Client(channel.address, "AF_UNIX", authkey=channel.secret)) as connection:
            connection.send_bytes(packed(arrays, {"set": name}))
            if not connection.poll(PATIENCE):
                raise Unreachable(f"{_WHERE} did not answer within {PATIENCE:g} s; try again, or with fewer images")
            told, said = unpacked(bytearray(connection.recv_bytes(_BYTES)), _TOLD)
    except (OSError, EOFError, AuthenticationError) as error:
        raise Unreachable(f"{_WHERE} is not up ({type(error).__name__}); try again in a while") from error
    if "problem" in said:
        raise error_from(int(said["problem"]["status"]), json.dumps(said["problem"]).encode(), _WHERE)
    return told, said


# -- the process ---------------------------------------------------------------------------


def begin(settings: Settings, load: Load, channel: Channel) -> SpawnProcess:
    """Start the process, and wait until it has its encoders. Raises what loading them raises."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(settings, load, channel, os.getpid(), theirs), name="encoder")
    process.start()
    theirs.close()
    try:
        said = ours.recv_bytes()
    except EOFError:
        raise InvalidInput(f"{_WHERE} ended before it was up; its log lines say why") from None
    finally:
        ours.close()
    if said:
        process.join()
        raise error_from(json.loads(said)["status"], said, _WHERE)
    return process


def work(settings: Settings, load: Load, channel: Channel, parent: int, told: Connection | None = None) -> None:
    """Encode until the parent process is gone. told: hears whether the encoders could be loaded."""
    logging.config.dictConfig(log_config(settings.log_level))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    torch.set_num_threads(settings.threads)
    os.nice(KINDNESS)
    try:
        makers = {name: _loaded(settings, load, name, folder) for name, folder in settings.encoder.items()}
    except (NegindexError, OSError) as error:
        log("encoder-failed", logging.ERROR, error=type(error).__name__)
        if told is None:
            time.sleep(AGAIN)
        else:
            told.send_bytes(json.dumps(_problem(error)).encode())
        return
    Path(channel.address).unlink(missing_ok=True)  # of one that died
    with Listener(channel.address, "AF_UNIX", _BACKLOG, authkey=channel.secret) as listener:
        if told is not None:
            told.send_bytes(b"")
            told.close()
        log("encoder-started", sets=len(makers))
        desk = Desk(makers, Metrics())
        hears = threading.Thread(target=desk.serve, args=(listener,), daemon=True)
        hears.start()
        while os.getppid() == parent and hears.is_alive():
            time.sleep(0.5)
        desk.end(channel.address)
        hears.join(1)  # one who connected and says nothing may hold it


def _loaded(settings: Settings, load: Load, name: str, folder: Path) -> RowMaker:
    path = settings.root / name
    if not path.is_dir():
        raise NotThere(f"encoder of {name}: no set of this name is served from {settings.root}")
    with closing(Collection.open(path)) as collection:
        return load(collection, folder)


class Desk:
    """Answers one image after the other, whoever asks."""

    def __init__(self, makers: Mapping[str, RowMaker], metrics: Metrics) -> None:
        self._makers, self._metrics, self._turn = makers, metrics, threading.Lock()
        self._over = threading.Event()

    def serve(self, listener: Listener) -> None:
        """Take connections, each for one question, until the end."""
        while not self._over.is_set():
            try:
                connection = listener.accept()
            except (AuthenticationError, EOFError, ConnectionError):
                log("encoder-stranger", logging.WARNING)
                continue
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def end(self, address: str) -> None:
        """Have serve return, also where it waits at this address."""
        self._over.set()
        with socket.socket(socket.AF_UNIX) as wakes:
            wakes.connect(address)

    def _hear(self, connection: Connection) -> None:
        with closing(connection):
            try:
                body = bytearray(connection.recv_bytes(_BYTES))
                connection.send_bytes(self.answer(body))
            except (OSError, EOFError):
                log("encoder-unheard", logging.WARNING)  # whoever asked is gone

    def answer(self, body: bytearray) -> bytes:
        """The body of an answer: what a set's encoder is, or the rows of pixels."""
        try:
            arrays, said = unpacked(body, _ASKED)
            maker = self._makers.get(said.get("set", ""))
            if maker is None:
                raise NotThere(f"{_WHERE} has no encoder for the set {said.get('set')!r}")
            if "pixels" not in arrays:
                about = {"size": maker.size, "channels": maker.channels, "shape": maker.shape, "space": maker.space}
                return packed({}, about)
            return packed({"rows": torch.from_numpy(self._rows(maker, arrays["pixels"].numpy()))}, {})
        except NegindexError as error:
            return packed({}, {"problem": _problem(error)})

    def _rows(self, maker: RowMaker, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._turn:
            began = time.perf_counter()
            rows = maker.rows(pixels)
            self._metrics.encoded(time.perf_counter() - began)
        return np.ascontiguousarray(rows)


def _problem(error: NegindexError | OSError) -> dict[str, Any]:
    if isinstance(error, NegindexError):
        return problem(status_of(error), "It cannot be encoded", str(error), type(error).__name__)
    return problem(500, "It cannot be encoded", str(error), "Damaged")

"""What one worker has: its sets, who may ask, the figures that it counts, and the threads that compute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, NamedTuple

from fastapi import Depends, Request

from negindex.errors import NegindexError
from negindex.keys import Key
from negindex.service.access import Door
from negindex.service.answering import Answer, Question, answers
from negindex.service.batching import Lane, Threads
from negindex.service.encoding import Channel, Encoders
from negindex.service.grants import NOBODY, Caller
from negindex.service.held import Engine, Held, Sets
from negindex.service.limits import Rate, Refused, Room, Turns
from negindex.service.logs import log
from negindex.service.metrics import Metrics
from negindex.service.settings import Settings, is_local
from negindex.service.sign_on import sign_on_of
from negindex.stages import Stage

TICK = 0.25  # seconds between looks at what the sets' records say
BODIES = 8  # largest bodies that a worker has room for at once
PATIENCE = 4.0  # seconds' worth of wrong keys that an address may send at once
POOL = 4  # sets that are searched at once


class Handed(NamedTuple):
    """What a worker gets besides the settings: it stands in no file."""

    passphrase: str | None = None  # of the key that signs
    channel: Channel | None = None  # to the process that makes rows of latents


class State:
    """One worker's. Made before the event loop runs; ``start`` and ``stop`` belong to it."""

    def __init__(self, settings: Settings, keyless: bool, handed: Handed | None = None) -> None:
        """keyless: whether anybody may ask, as long as there are no keys."""
        self.settings, self.metrics = settings, Metrics()
        handed = handed or Handed()
        self.signs = signing_key(settings, handed.passphrase)
        self.encoders = Encoders(handed.channel, settings.encoder)
        self.turns = Turns(settings.uploads, self.metrics.uploads)
        self.sets = Sets(settings.root, settings.pins, engines_of(settings))
        self.sign_on = sign_on_of(settings)
        self.door = Door(settings.root, keyless, self.sign_on)
        self.rate = Rate(settings.rate, settings.burst)
        self.strangers = Rate(settings.strangers, PATIENCE * settings.strangers)
        self.room = Room(BODIES * settings.body_bytes)
        self.pool = Threads(POOL, "search")
        self.stopping = False
        self._lanes: dict[Held, Lane[Question, Answer]] = {}
        self._ticks: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch the sets' records."""
        self._ticks = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Let go of everything."""
        self.stopping = True
        if self._ticks is not None:
            self._ticks.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticks
        self.pool.shutdown()
        self.sets.close()

    @property
    def watches(self) -> bool:
        """Whether the sets' records are looked at, as they must be for erasures to be let through."""
        return self._ticks is not None and not self._ticks.done()

    async def ask(self, held: Held, question: Question, samples: int) -> Answer:
        """The answer to a question, together with others that wait."""
        lane = self._lanes.get(held)
        if lane is None:
            most, waiting = self.settings.samples, self.settings.waiting

            def answer(asked: Sequence[Question]) -> Sequence[Answer]:
                return answers(held, self.metrics, asked)

            lane = self._lanes[held] = Lane(answer, self.pool, most, waiting)
        since = time.time_ns()
        told, waited = await lane.ask(question.group, question, samples)
        return told._replace(stages=(Stage("wait", since, since + int(1e9 * waited)), *told.stages))

    async def _watch(self) -> None:
        while True:
            await asyncio.to_thread(self._tick)
            await asyncio.sleep(TICK)

    def _tick(self) -> None:
        opened = self.sets.open()
        for held in opened:
            try:
                held.let_go()
                self.metrics.knows(held.name, held.collection.newest(), datetime.now(UTC))
            except (NegindexError, OSError) as error:
                log("set-unreadable", 40, set=held.name, error=type(error).__name__)
        for gone in self._lanes.keys() - set(opened):
            self._lanes.pop(gone, None)


class Needs:
    """A dependency: the caller, if it may do what a route does. The routes' roles stand in the OpenAPI document too."""

    def __init__(self, *roles: str) -> None:
        self.roles = roles

    async def __call__(self, request: Request) -> Caller:
        """Raises Refused: 401 for no live key, 403 for other roles or sets, 429 for too many requests."""
        state = state_of(request)
        caller = state.door.caller(request.headers.get("authorization"))
        if caller is None:
            state.strangers.check(request.client.host if request.client else "")
            detail = "no live key; send Authorization: Bearer and a key of `negindex apikey create`"
            raise Refused(401, detail, "NotAllowed", {"WWW-Authenticate": "Bearer"})
        if caller is NOBODY and state.settings.is_local and not is_local(_host_named(request)):
            raise Refused(403, "another machine's name for this one; make keys, or ask 127.0.0.1", "NotAllowed")
        state.rate.check(caller.id)
        request.state.caller = caller
        if not caller.may(self.roles):
            raise Refused(403, f"this key's roles are not among {', '.join(self.roles)}", "NotAllowed")
        name = request.path_params.get("name")
        if name is not None and not caller.may(self.roles, name):
            raise Refused(403, "this key is for other sets", "NotAllowed")
        return caller


def signing_key(settings: Settings, passphrase: str | None) -> Key | None:
    """The key that signs what is changed here; raises what ``Key.load`` raises."""
    return None if settings.key is None else Key.load(settings.key, passphrase)


def engines_of(settings: Settings) -> dict[str, Engine]:
    """{set: its engine}."""
    return {name: Engine(address, settings.engine_seconds) for name, address in settings.engine.items()}


def state_of(request: Request) -> State:
    """The worker's state."""
    state: State = request.app.state.negindex
    return state


def _host_named(request: Request) -> str:
    """Whom the caller means to ask, without the port."""
    name = request.headers.get("host", "")
    return name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]


async def held_of(request: Request, name: str) -> Held:
    """The set that the path names."""
    return await asyncio.to_thread(state_of(request).sets.get, name)


async def _the_state(request: Request) -> State:
    """A coroutine, for the framework asks any other dependency in a thread: a tenth of a millisecond and more."""
    return state_of(request)


TheState = Annotated[State, Depends(_the_state)]

"""A worker is killed in the midst of its work: others serve, samplers notice nothing, nothing acknowledged is lost."""

import os
import signal
import socket
import threading
import time

import httpx
import pytest
import torch
from browsing import Browser
from serving import processes, started
from small_sets import SHAPE, rows

from negindex import Collection, NoiseLevel, RemoteNegatives
from negindex.service.access import create_key
from negindex.service.run import Supervisor, listening
from negindex.service.settings import Settings
from negindex.service.state import Handed

LEVEL = NoiseLevel(0.7, 0.7)
X = torch.ones(2, *SHAPE)
WORKERS, SAMPLERS, KILLS = 3, 6, 2


@pytest.fixture
def root(tmp_path):
    with Collection.create(tmp_path / "a.set", SHAPE, "pixels") as made:
        made.add(rows(3), ["a", "b", "c"])
    return tmp_path


class Sampler(threading.Thread):
    """Asks without a pause, and pins anew every few questions; what goes wrong is kept."""

    def __init__(self, url, key, end):
        super().__init__()
        self.remote, self.end = RemoteNegatives(url, "a.set", key), end
        self.told, self.errors = [], []

    def run(self):
        while not self.end.is_set():
            try:
                pinned = self.remote.pin()
                self.told += [pinned.posterior(X, LEVEL) for _ in range(5)]
            except Exception as error:
                self.errors.append(error)
        self.remote.close()


class Claimant(threading.Thread):
    """Opens claims on the pages, each on a connection of its own."""

    def __init__(self, url, key, end):
        super().__init__()
        self.url, self.end, self.acknowledged, self.unanswered = url, end, {}, 0
        with httpx.Client(base_url=url, timeout=60) as client:
            first = Browser(client)
            assert first.login(key).status_code == 303
            self.token, self.cookies = first.token, dict(client.cookies)

    def run(self):
        number = 0
        while not self.end.is_set():
            number += 1
            digest = f"{number:064x}"
            told = {"token": self.token, "regime": "hash-only", "hashes": f"sha256:{digest}"}
            try:
                where = f"{self.url}/pages/sets/a.set/open-claim"
                answer = httpx.post(where, data=told, cookies=self.cookies, timeout=60)
            except httpx.TransportError:
                self.unanswered += 1
                continue
            assert answer.status_code == 303, answer.text
            self.acknowledged[int(answer.headers["location"].rpartition("/")[2])] = digest


class Stands:
    """A process that is alive, or is not."""

    def __init__(self, alive):
        self.alive = alive

    def is_alive(self):
        return self.alive


@pytest.mark.parametrize("workers", [2, 5])
def test_connections_that_a_dead_worker_did_not_take_go_to_the_others(tmp_path, workers):
    settings = Settings(root=tmp_path, port=0, workers=workers)
    sockets = listening(settings)
    where = sockets[0].getsockname()
    living = {f"worker-{i}": Stands(i != 0) for i in range(workers)}
    watches = Supervisor(settings, True, sockets, None, Handed(), living)
    waiting = [socket.create_connection(where) for _ in range(40)]  # nobody has taken one yet
    watches._pass_on("worker-0")
    broken = [one for one in waiting if is_broken(one)]
    assert 0 < len(broken) < 40
    later = [socket.create_connection(where) for _ in range(40)]
    assert not any(map(is_broken, later))
    assert sum(taken(one) for one in sockets[1:]) == 40 - len(broken) + 40
    fresh = watches._sockets["worker-0"]
    fresh.listen(64)  # the new worker is up
    later += [socket.create_connection(where) for _ in range(40)]
    assert 0 < taken(fresh) < 40
    for one in (*waiting, *later, *watches._sockets.values()):
        one.close()


def test_where_nobody_else_serves_connections_wait(tmp_path):
    settings = Settings(root=tmp_path, port=0, workers=2)
    sockets = listening(settings)
    watches = Supervisor(
        settings, True, sockets, None, Handed(), dict.fromkeys(["worker-0", "worker-1"], Stands(False))
    )
    waiting = [socket.create_connection(sockets[0].getsockname()) for _ in range(20)]
    watches._pass_on("worker-0")
    assert not any(map(is_broken, waiting))
    for one in (*waiting, *sockets):
        one.close()


def is_broken(one):
    """Whether the other side broke the connection."""
    one.settimeout(0.05)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def taken(one):
    """How many connections wait at a listening socket; they are taken and closed."""
    one.settimeout(0.1)
    count = 0
    try:
        while True:
            one.accept()[0].close()
            count += 1
    except TimeoutError:
        return count


def until(condition):
    end = time.monotonic() + 250
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def kill_one(service, number, samplers, claimant):
    """Kill the worker that started as that, and wait until others served, and it was replaced."""
    seen, claims, ups = [len(one.told) for one in samplers], len(claimant.acknowledged), len(started(service))
    os.kill(started(service)[number], signal.SIGKILL)
    until(lambda: all(len(one.told) > before + 5 for one, before in zip(samplers, seen, strict=True)))
    until(lambda: len(claimant.acknowledged) > claims)
    until(lambda: len(started(service)) > ups)


def test_workers_are_killed_under_load_and_nobody_notices(root):
    sampler, curator = (create_key(root, [role])[0] for role in ("sampler", "curator"))
    with processes(root, "--workers", WORKERS, "--rate", 1e6, "--burst", 1e6) as (url, service):
        until(lambda: len(started(service)) == WORKERS)
        end = threading.Event()
        samplers = [Sampler(url, sampler, end) for _ in range(SAMPLERS)]
        claimant = Claimant(url, curator, end)
        for thread in (*samplers, claimant):
            thread.start()
        for i in range(KILLS):
            kill_one(service, i, samplers, claimant)
        lately = started(service)[-1]
        until(lambda: any('"request"' in line and f'"process": {lately}' in line for line in list(service.lines)))
        end.set()
        for thread in (*samplers, claimant):
            thread.join()
    assert [one.errors for one in samplers] == [[]] * SAMPLERS
    with Collection.open(root / "a.set") as made:
        truth = {}
        for told in (told for one in samplers for told in one.told):
            version = told.origins[0].version
            if version not in truth:
                truth[version] = made.snapshot(version).posterior(X, LEVEL)
            assert torch.equal(told.mean, truth[version].mean)
        assert len(claimant.acknowledged) > KILLS
        for number, digest in claimant.acknowledged.items():
            assert made.claims.show(number).hashes == [("sha256", digest)]
        assert made.verify() == []
    assert sum("process-replaced" in line for line in service.lines) == KILLS


def test_the_only_worker_is_killed_and_samplers_wait_for_the_next(root):
    with processes(root) as (url, service), RemoteNegatives(url, "a.set", timeout=120) as remote:
        before = remote.posterior(X, LEVEL)
        os.kill(started(service)[0], signal.SIGKILL)
        assert torch.equal(remote.posterior(X, LEVEL).mean, before.mean)

"""A worker is killed in the midst of its work: others serve, samplers notice nothing, nothing acknowledged is lost."""

import json
import os
import signal
import threading
import time

import httpx
import pytest
import torch
from browsing import Browser
from serving import processes
from small_sets import SHAPE, rows

from negindex import Collection, NoiseLevel, RemoteNegatives
from negindex.service.access import create_key

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


def started(service):
    return [json.loads(line)["process"] for line in list(service.lines) if '"event": "started"' in line]


def until(condition):
    end = time.monotonic() + 200
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

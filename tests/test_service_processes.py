"""The service as it is run: workers, versions that change under it, stops and kills, alarms, a guard before it."""

import datetime as dt
import http.server
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from diffusers import DDIMScheduler
from serving import figure, processes, serving
from small_sets import NOTICE, SHAPE, rows
from worlds import ClosedForm, random_world

from negindex import Collection, Exact, NoiseLevel, RemoteNegatives, Snapshot
from negindex.errors import Damaged, NegindexError, NotThere, Unreachable
from negindex.sampler import guard
from negindex.service.access import create_key
from negindex.service.alarms import Bell, alarms
from negindex.service.janitor import go_round
from negindex.service.metrics import Metrics
from negindex.service.settings import Settings

LEVEL = NoiseLevel(0.7, 0.7)
X = torch.ones(2, *SHAPE)


@pytest.fixture
def three(tmp_path):
    made = Collection.create(tmp_path / "a.set", SHAPE, "pixels")
    made.add(rows(3), ["a", "b", "c"])
    return made


def ask_often(remote):
    for _ in range(100):
        remote.posterior(X, LEVEL)


def until(condition, seconds=20.0):
    """Wait for something that has to come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


CHANGING = """
import itertools, select, sys, numpy as np
from negindex import Collection
made = Collection.open(sys.argv[1])
for i in itertools.count():
    if select.select([sys.stdin], [], [], 0)[0]:  # closed: enough
        break
    made.add(np.random.default_rng(100 + i).normal(size=(2, 2, 3)).astype("float16"), [f"x{i}", f"y{i}"])
    made.withdraw([f"x{i}"], "the other way about")
"""


def test_answers_are_exact_for_the_version_that_they_name_while_another_process_changes_the_set(tmp_path, three):
    with serving(tmp_path) as url:
        remote = RemoteNegatives(url, "a.set")
        writer = subprocess.Popen([sys.executable, "-c", CHANGING, str(three.path)], stdin=subprocess.PIPE)
        told = []

        def ask():
            told.append((remote.posterior(X, LEVEL), remote.near(X, k=3)))
            return len({posterior.origins[0].version for posterior, _ in told}) > 4

        try:
            until(ask, seconds=120)
        finally:
            writer.stdin.close()
            assert writer.wait(60) == 0
        ask()
        remote.close()
    versions = [posterior.origins[0].version for posterior, _ in told]
    assert versions == sorted(versions)
    assert versions[-1] == three.newest().version
    for posterior, near in told:
        truth = three.snapshot(posterior.origins[0].version).posterior(X, LEVEL)
        torch.testing.assert_close(posterior.mean, truth.mean, rtol=1e-12, atol=1e-12)  # rows may lie in other blocks
        assert torch.equal(posterior.heaviest.ids, truth.heaviest.ids)
        assert torch.equal(near.ids, three.snapshot(near.origins[0].version).near(X, k=3).ids)


def test_several_workers_answer_alike_see_each_version_and_stop_when_told(tmp_path, three):
    key, _ = create_key(tmp_path, ["admin"])
    with processes(tmp_path, "--workers", 2, "--upkeep-seconds", 0.5) as (url, service):
        remotes = [RemoteNegatives(url, "a.set", key) for _ in range(8)]  # a connection each
        three.withdraw(["a"], "no longer meant")
        assert {remote.pin().version for remote in remotes} == {2}
        means = [remote.posterior(X, LEVEL).mean for remote in remotes]
        assert all(torch.equal(mean, three.posterior(X, LEVEL).mean) for mean in means)
        headers = {"Authorization": f"Bearer {key}"}

        def text():
            return httpx.get(f"{url}/metrics", headers=headers).text

        until(lambda: figure(text(), "negindex_stage_seconds_count") >= 32)
        until(lambda: 'negindex_set_version{set="a.set"} 2.0' in text())  # told of at the next look at the record
        said = text()
        assert 'negindex_withdrawn_hits_total{set="a.set"} 0.0' in said
        assert figure(said, "negindex_call_samples_sum") == 16
        assert httpx.get(f"{url}/health/ready").json() == {"status": "ready"}
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0
        with pytest.raises(Unreachable):
            remotes[0].pin()
        for remote in remotes:
            remote.close()
    events = [json.loads(line) for line in service.lines]
    asked = [one for one in events if one.get("route") == "/v1/sets/{name}/posterior"]
    assert len(asked) == 8
    assert all(one["status"] == 200 and one["samples"] == 2 and one["version"] == 2 for one in asked)
    assert not any(word in line for line in service.lines for word in ("127.0.0.1:", key, key[17:]))


def test_a_killed_worker_is_an_error_for_who_asks_and_is_replaced(tmp_path, three):
    with processes(tmp_path) as (url, service):
        remote = RemoteNegatives(url, "a.set", retries=0)
        before = remote.posterior(X, LEVEL)
        (worker,) = {json.loads(line)["process"] for line in service.lines if '"request"' in line}
        os.kill(worker, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(Unreachable):
            ask_often(remote)
        remote.close()
        patient = None
        end = time.monotonic() + 60
        while patient is None:
            assert time.monotonic() < end
            try:
                patient = RemoteNegatives(url, "a.set", retries=0, timeout=5)
            except Unreachable:
                time.sleep(0.2)
        assert torch.equal(patient.posterior(X, LEVEL).mean, before.mean)
        patient.close()
        assert any("process-replaced" in line for line in service.lines)


def test_answers_under_way_are_finished_when_the_service_stops(tmp_path):
    made = Collection.create(tmp_path / "a.set", (4, 32, 32), "pixels")
    made.add(torch.randn(400, 4, 32, 32), [str(i) for i in range(400)])
    with serving(tmp_path) as url:
        pinned = RemoteNegatives(url, "a.set").pin()
        told = []
        x = torch.randn(64, 4, 32, 32)
        thread = threading.Thread(target=lambda: told.append(pinned.posterior(x, LEVEL)))
        thread.start()
        time.sleep(0.05)
    thread.join()
    assert torch.allclose(told[0].mean, made.posterior(x, LEVEL).mean, atol=1e-12)


# -- a guard before a service --------------------------------------------------------------


@pytest.fixture
def world():
    return random_world(seed=41)


@pytest.fixture
def unsafe(world, tmp_path):
    made = Collection.create(tmp_path / "unsafe", world.rows.shape[1:], "pixels", dtype="float32")
    made.add(world.unsafe, [f"row-{i}" for i in range(len(world.unsafe))])
    return made


def guarded(world, negatives, steps=3, **how):
    pipe = ClosedForm(world.rows, DDIMScheduler(clip_sample=False))
    return pipe, guard(pipe, negatives, Exact(world.safe), **how)


def test_a_guarded_run_is_the_same_over_a_service_and_its_receipt_too(tmp_path, world, unsafe):
    with serving(tmp_path) as url:
        remote = RemoteNegatives(url, "unsafe")
        made = []
        for negatives in (unsafe, remote):
            pipe, attached = guarded(world, negatives)
            with attached as g:
                made.append((pipe(steps=4), g.receipts[0]))
        remote.close()
    (here, receipt), (there, other) = made
    assert torch.equal(here, there)
    assert receipt.sets == other.sets
    assert receipt.steps == other.steps
    assert other.steps[0].heaviest[0].source_key.startswith("row-")


def test_a_service_that_goes_away_stops_the_run_or_follows_the_policy(tmp_path, world, unsafe):
    with serving(tmp_path) as url:
        remote = RemoteNegatives(url, "unsafe", retries=0)
        pipe, attached = guarded(world, remote, on_error="raise")
        with attached:
            pipe(steps=3)
    for policy in ("raise", "last-good"):  # no policy makes an image without an answer
        pipe, attached = guarded(world, remote, on_error=policy)
        with attached, pytest.raises(Unreachable):
            pipe(steps=3)


def test_a_service_that_cannot_tell_its_newest_version_leaves_the_last_good_one(tmp_path, world, unsafe):
    with serving(tmp_path) as url:
        remote = RemoteNegatives(url, "unsafe", retries=0)
        pipe, attached = guarded(world, remote, on_error="last-good")
        with attached as g:
            before = pipe(steps=3)
            remote._set.path = "/v1/none"  # as behind a proxy that lost its way: pins fail
            pinned = g._last_good.negatives
            pinned._set = type(pinned._set)(remote._set.line, "unsafe", None, "float64")
            after = pipe(steps=3)
            receipt = g.receipts[0]
        remote.close()
    assert torch.equal(before, after)
    assert receipt.degraded_steps == 3


# -- upkeep --------------------------------------------------------------------------------


def test_alarms_are_told_once_and_again_when_the_webhook_did_not_take_them(tmp_path, three):
    number = three.claims.open("dmca", NOTICE, source_keys=["a"]).number
    due = three.claims.due()
    assert due, "an accepted notice runs against a clock"
    late = due[0].clock.due + dt.timedelta(seconds=1)
    found = alarms("a.set", due, late)
    assert {(one.claim, one.kind) for one in found} == {(number, "missed")}
    assert NOTICE["signature"] not in json.dumps(found)
    got, status = [], [500, 200]

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status.pop(0))
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        bell = Bell(tmp_path, f"http://127.0.0.1:{server.server_port}/hook?token=x")
        rung = [bell.ring(found[:1], ["a.set"]), bell.ring(found[:1], ["a.set"]), bell.ring(found[:1], ["a.set"])]
        again = Bell(tmp_path, f"http://127.0.0.1:{server.server_port}/hook").ring(found[:1], ["a.set"])
        server.shutdown()
        thread.join()
    assert rung == [1, 1, 0]
    assert again == 0
    assert [one["claim"] for one in got] == [number, number]


def test_a_round_compacts_settles_and_counts_and_goes_on_behind_a_bad_set(tmp_path, three):
    for i in range(16):
        three.add(rows(1, seed=i + 10), [f"more-{i}"])
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "catalogue.sqlite").write_bytes(b"no database")
    held = three.snapshot()
    three.erase(["a"], "asked for")
    assert three.outstanding()
    del held
    metrics = Metrics()
    go_round(Settings(root=tmp_path), metrics, Bell(tmp_path, None))
    assert three.outstanding() == []
    assert 'negindex_claim_clocks{set="a.set",state="missed"} 0.0' in metrics.text().decode()


def test_a_set_that_is_replaced_or_taken_away_is_not_answered_from_memory(tmp_path, three):
    with serving(tmp_path) as url:
        remote = RemoteNegatives(url, "a.set")
        pinned = remote.pin()
        three.path.rename(tmp_path / "b.set")
        with pytest.raises(NotThere):
            pinned.posterior(X, LEVEL)
        with Collection.create(three.path, SHAPE, "pixels") as other:
            other.add(rows(1, seed=5), ["z"])
        with pytest.raises(Damaged, match="was asked"):  # version 1 of another set
            pinned.posterior(X, LEVEL)
        assert remote.posterior(X, LEVEL).count == 1
        assert RemoteNegatives(url, "b.set").pin().set_id == pinned.set_id
        remote.close()


# -- TLS -----------------------------------------------------------------------------------


def certificate(folder: Path):
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    kinds = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    secret.write_bytes(key.private_bytes(*kinds))
    return chain, secret


def test_over_tls_who_answers_is_checked(tmp_path, three):
    chain, secret = certificate(tmp_path)
    with serving(tmp_path, certificate=chain, certificate_key=secret) as url:
        address = url.replace("http:", "https:")
        with pytest.raises(Unreachable, match="SSLCertVerificationError"):
            RemoteNegatives(address, "a.set", retries=0)
        remote = RemoteNegatives(address, "a.set", certificate=chain)
        assert torch.equal(remote.posterior(X, LEVEL).mean, three.posterior(X, LEVEL).mean)
        remote.close()


# -- the figure that must stay nought ------------------------------------------------------


def test_an_answer_that_would_name_a_withdrawn_row_is_withheld_and_counted(tmp_path, three, monkeypatch):
    three.withdraw(["b"], "no longer meant")
    stale = three.snapshot(1)
    with serving(tmp_path) as url:
        remote = RemoteNegatives(url, "a.set")
        pinned = remote.pin()
        monkeypatch.setattr(Snapshot, "answer", lambda _, query: type(stale).__mro__[1].answer(stale, query))
        with pytest.raises(NegindexError, match=r"named 1 rows that are not in force at version 2"):
            pinned.posterior(X, LEVEL)
        text = httpx.get(f"{url}/metrics").text
        remote.close()
    assert 'negindex_withdrawn_hits_total{set="a.set"} 2.0' in text or 'hits_total{set="a.set"} 1.0' in text


# -- at length -----------------------------------------------------------------------------


@pytest.mark.long
def test_memory_does_not_grow_over_200_versions(tmp_path):
    made = Collection.create(tmp_path / "a.set", (4, 32, 32), "pixels")
    made.add(torch.randn(2000, 4, 32, 32), [str(i) for i in range(2000)])
    x = torch.randn(4, 4, 32, 32)
    with processes(tmp_path, "--pins", 8) as (url, service):
        remote = RemoteNegatives(url, "a.set")
        remote.posterior(x, LEVEL)
        (worker,) = {json.loads(line)["process"] for line in service.lines if '"request"' in line}

        def swap(times, start):
            for i in range(start, start + times):
                made.add(torch.randn(1, 4, 32, 32), [f"new-{i}"])
                made.withdraw([f"new-{i}"], "again")
                remote.posterior(x, LEVEL)
            status = Path(f"/proc/{worker}/status").read_text()
            return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])

        before = max(swap(10, 10 * i) for i in range(5))  # blocks that are given back and kept for the next look-up
        after = swap(100, 50)
        remote.close()
    print(f"resident {before} kB before and {after} kB after 200 versions")
    assert after < 1.05 * before


def test_generate_takes_a_set_from_a_service(tmp_path, monkeypatch):
    from negindex.errors import InvalidInput
    from negindex.tools.places import Place, opened

    key, _ = create_key(tmp_path, ["sampler"])
    with Collection.create(tmp_path / "a.set", SHAPE, "pixels") as made:
        made.add(rows(2), ["a", "b"], label="logos")
    with serving(tmp_path, keyless=False) as url:
        place = Place().convert(f"{url}/v1/sets/a.set", None, None)
        monkeypatch.setenv("NEGINDEX_SERVICE_KEY", key)
        with opened(place) as remote:
            assert (len(remote), len(remote.where(label="logos"))) == (2, 2)
            with pytest.raises(NegindexError, match="the label 'none' has no row in force"):
                remote.where(label="none").check_has_rows()
        with opened(Place().convert(str(tmp_path / "a.set"), None, None)) as here:
            assert isinstance(here, Collection)
        for wrong in (url, f"{url}/v1/sets/", f"{url}/v1/sets/a/b"):
            with pytest.raises(InvalidInput, match="names no set of a service"):
                opened(wrong)

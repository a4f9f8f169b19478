"""A real Milvus server: what it answers, and what becomes of look-ups when it is killed."""

import shutil
import socket
import threading
import time
from contextlib import suppress

import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler
from engines import alike, delete, same_rows
from milvus_server import PYTHON, MilvusServer
from mixtures import SHAPE, fresh, noised, rows
from test_calibrated_set import keys, learned
from test_engines import COUNT, LEVELS, asked, every_set_is_large, run, table_of, template  # noqa: F401
from worlds import ClosedForm

from negindex import Collection, Exact
from negindex.engines import push
from negindex.engines.address import Address
from negindex.engines.milvus import MilvusNegatives
from negindex.errors import EngineBehind, Unreachable
from negindex.sampler import Ratio, guard
from negindex.tools.cli import main

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    assert PYTHON.exists(), f"{PYTHON} is missing: run `make test-services`, which installs Milvus there"
    made = MilvusServer(tmp_path_factory.mktemp("milvus")).start()
    yield made
    made.stop()


@pytest.fixture
def own(template, server, tmp_path, request):  # noqa: F811
    col = Collection.open(shutil.copytree(template, tmp_path / "set"))
    address = Address.of(f"milvus://127.0.0.1:{server.port}/own_{abs(hash(request.node.name))}")
    push.push(col, address)
    return col, address


def test_nobody_else_reaches_the_server(server):
    """It listens on all interfaces, which Milvus 2.3 has no setting for: so there must be no other than loopback."""
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    if others:
        pytest.skip(f"there are interfaces {others} too: run this by `make test-services` as root")
    socket.create_connection(("127.0.0.1", server.port), timeout=5).close()


def until_it_raises(ask):
    """For some seconds a server may go on giving what it had: then the answer is right."""
    end = time.monotonic() + 60

    def asking():
        while time.monotonic() < end:
            ask()
            time.sleep(0.2)

    with pytest.raises(EngineBehind, match="engine push"):
        asking()


def test_a_server_answers_as_memory_does_over_changes(own):
    col, address = own
    negatives = MilvusNegatives(Collection.open(col.path), address)
    for change in (
        lambda: None,
        lambda: col.add(rows(70, seed=5).numpy(), keys(COUNT, COUNT + 70)),
        lambda: col.withdraw(keys(0, 40), "no longer"),
        lambda: push.push(col, address),
        lambda: col.withdraw(keys(50, 60), "no longer"),
    ):
        change()
        negatives.let_go()  # an index that a push made anew is of the same version
        for s in LEVELS:
            alike(asked(negatives, s), asked(col, s))
        x = torch.cat([noised(fresh()[:3], 0.1, seed=3), rows(COUNT)[:5].double()])
        for limits in ({"k": 3}, {"radius": 2.0}, {"radius": 0.0}):
            same_rows(negatives.near(x, **limits), col.near(x, **limits))
    assert push.check(col, address) == (630, 0, 10, 0)
    assert push.check(col, address, repair=True).wrong == 10
    assert push.check(col, address).wrong == 0
    negatives.close()


def test_lost_rows_raise_and_a_repair_brings_them_back(own):
    col, address = own
    negatives = MilvusNegatives(col, address, cache_rows=0)
    delete(address, table_of(col, address), list(range(1, COUNT, 2)))
    until_it_raises(lambda: alike(asked(negatives, 10.0), asked(col, 10.0)))
    until_it_raises(lambda: same_rows(negatives.near(fresh()[:1], k=1), col.near(fresh()[:1], k=1)))
    run("check", col.path, code=13)
    run("check", col.path, "--repair")
    alike(asked(negatives, 10.0), asked(col, 10.0))


def test_an_erasure_drops_what_the_server_holds(own):
    col, _ = own
    col.erase(["row-1"], "it goes for good")
    col.settle()
    assert [one for one in col.outstanding() if one.what == "engine"] == []
    assert push.status(col)[0][1:] == ("", 0, 0, (), "")


def test_a_server_killed_in_the_middle_raises_and_comes_back_whole(own, server):
    """kill -9 while one asks and another pushes; every look-up before it is right, and every one after it raises."""
    col, address = own
    negatives = MilvusNegatives(Collection.open(col.path), address, timeout=3.0, cache_rows=0)
    held, right, told, stop = negatives.pin(), {s: asked(col, s) for s in LEVELS}, [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                for s in LEVELS:
                    alike(asked(held, s), right[s])
                told.append("right")
            except (Unreachable, EngineBehind) as error:
                told.append(type(error).__name__)
                return
            except AssertionError as wrong:
                told.append(f"wrong: {wrong}")
                return

    def repaired():
        """A server that was killed says that it is ready some time before it takes in anything."""
        end = time.monotonic() + 240
        while CliRunner().invoke(main, ["engine", "check", str(col.path), "--repair"]).exit_code:
            assert time.monotonic() < end
            time.sleep(2)

    asking = threading.Thread(target=ask)
    asking.start()
    while "right" not in told:
        time.sleep(0.05)

    def tell():
        with suppress(Unreachable, EngineBehind):  # it may be done before the server is
            push.push(Collection.open(col.path), address)

    pushing = threading.Thread(target=tell)
    col.withdraw(keys(0, 200), "no longer")
    pushing.start()
    time.sleep(0.3)
    server.kill()
    asking.join(120)
    stop.set()
    pushing.join(300)
    assert not asking.is_alive()
    assert told[-1] in ("Unreachable", "EngineBehind")
    assert set(told[:-1]) == {"right"}
    with pytest.raises(Unreachable):
        asked(negatives)
    with pytest.raises(Unreachable):
        negatives.near(fresh()[:1], k=1)
    run("status", col.path, code=3)

    server.start()
    repaired()
    assert push.check(col, address).wrong == 0
    assert asked(negatives).mean.isfinite().all()  # by the index that it holds, whose table stays as long
    negatives.let_go()
    col.let_go()
    for s in LEVELS:
        alike(asked(negatives, s), asked(col, s))
    same_rows(negatives.near(fresh()[:2], k=3), col.near(fresh()[:2], k=3))
    negatives.close()


def test_a_guarded_pipeline_stops_when_the_server_is_killed(own, server):
    """An image without its correction is a safety failure: no step goes on as if nothing were near."""
    col, address = own
    negatives = MilvusNegatives(col, address, timeout=3.0, cache_rows=0)
    reference = Exact(rows(100, seed=9))
    pipe = ClosedForm(rows(50, seed=8).double(), DDIMScheduler(clip_sample=False))
    with guard(pipe, negatives, reference, gate=Ratio(reference, prior=0.1), copies=None):
        pipe(steps=3)
        server.kill()
        with pytest.raises(Unreachable):
            pipe(steps=3)
    server.start()
    assert learned().kernel == negatives.default_kernel
    assert negatives.shape == SHAPE

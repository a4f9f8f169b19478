"""A set that a service holds keeps the laws of the contract, and says when it cannot."""

import socket
import threading

import numpy as np
import pytest
import torch
from serving import serving
from small_sets import SHAPE, rows

from negindex import Collection, Exact, Kernel, NoiseLevel, RemoteNegatives, Snapshot, Union
from negindex.errors import (
    Damaged,
    EmptySet,
    Erased,
    InvalidInput,
    NotAllowed,
    NotThere,
    OutOfRange,
    UnknownKey,
    UnknownVersion,
    Unreachable,
)
from negindex.testing import NegativesTests

LEVEL = NoiseLevel(0.7, 0.7)
X = torch.ones(2, *SHAPE)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    with serving(root, rate=1e6, burst=1e6) as url:
        yield root, url


class Served(NegativesTests):
    """The sets are made once each: no law changes one."""

    stored = torch.float16

    @pytest.fixture(autouse=True)
    def _service(self, service):
        self.root, self.url = service
        self.opened = []
        yield
        for remote in self.opened:
            remote.close()

    def served(self, given, label=None):
        name = f"{type(self).__name__}-{len(given)}-{abs(float(given.sum())):.6f}"
        if not (self.root / name).exists():
            kind = str(self.stored).removeprefix("torch.")
            made = Collection.create(self.root / name, given.shape[1:], "pixels", dtype=kind)
            made.add(given, [f"row-{i}" for i in range(len(given))], label=label)
            if label is not None:
                made.add(torch.ones(2, *given.shape[1:]), ["other-1", "other-2"], label="other")
            made.close()
        return name

    def remote(self, *args, **kwargs):
        self.opened.append(RemoteNegatives(self.url, *args, **kwargs))
        return self.opened[-1]

    def make(self, given):
        return self.remote(self.served(given))

    def row_of(self, negatives, origin, row_id):
        return row_id - 1  # a collection counts from 1


class TestRemote(Served):
    pass


class TestRemoteLabel(Served):
    """Rows under a label, of a set that holds others too."""

    stored = torch.float32

    def make(self, given):
        return self.remote(self.served(given, label="ours"), label="ours")


class TestUnionOfRemoteAndExact(Served):
    def make(self, given):
        half = (len(given) + 1) // 2
        ids = np.arange(half, len(given)) + 1
        return Union([self.remote(self.served(given[:half])), Exact(given[half:].half(), ids)])


@pytest.fixture
def root(tmp_path):
    return tmp_path


@pytest.fixture
def col(root):
    return Collection.create(root / "a.set", SHAPE, "pixels")


@pytest.fixture
def three(col):
    col.add(rows(3), ["a", "b", "c"])
    return col


@pytest.fixture
def url(root):
    with serving(root) as address:
        yield address


def same(one, other):
    return torch.equal(one.mean, other.mean) and torch.equal(one.log_norm, other.log_norm)


def test_a_pin_is_answered_exactly_for_its_version_whatever_came_since(three, url):
    remote = RemoteNegatives(url, "a.set")
    pinned, before = remote.pin(), three.snapshot()
    three.add(rows(5, seed=1), list("defgh"))
    three.withdraw(["a"], "no longer meant")
    assert same(pinned.posterior(X, LEVEL), before.posterior(X, LEVEL))
    assert pinned.posterior(X, LEVEL).origins == before.origins
    assert same(remote.posterior(X, LEVEL), three.posterior(X, LEVEL))
    assert same(remote.at(1).posterior(X, LEVEL), before.posterior(X, LEVEL))


def test_pinning_gives_the_same_object_while_nothing_changes(three, url):
    remote = RemoteNegatives(url, "a.set")
    assert remote.pin() is remote.pin()
    before = remote.pin()
    three.withdraw(["a"], "no longer meant")
    assert remote.pin() is not before
    assert (len(before), len(remote)) == (3, 2)


def test_a_version_whose_rows_were_erased_is_gone_and_its_files_with_it(three, url):
    remote = RemoteNegatives(url, "a.set")
    pinned = remote.pin()
    pinned.posterior(X, LEVEL)
    remote.where(label="none")
    three.erase(["a"], "asked for")
    with pytest.raises(Erased, match="version 1 held rows that were erased"):
        pinned.posterior(X, LEVEL)
    with pytest.raises(Erased):
        remote.at(1)
    assert same(remote.posterior(X, LEVEL), three.posterior(X, LEVEL))
    deadline = threading.Event()
    for _ in range(100):
        if three.settle() == []:
            break
        deadline.wait(0.1)
    assert three.outstanding() == []


def test_versions_that_never_were_are_named(three, url):
    with pytest.raises(UnknownVersion, match="version 7; the collection has versions 0 to 1"):
        RemoteNegatives(url, "a.set").at(7)
    with pytest.raises(UnknownVersion, match=r"at version 1, and at least 2 is asked for"):
        RemoteNegatives(url, "a.set", min_version=2)
    assert RemoteNegatives(url, "a.set", min_version=1).pin().version == 1


def test_a_set_that_is_not_served_is_not_there(root, url):
    for name in ("nothing", "..", "a/b", "ä", "keys"):
        with pytest.raises(NotThere):
            RemoteNegatives(url, name)


def test_an_empty_set_says_so_and_answers_once_it_has_rows(col, url):
    remote = RemoteNegatives(url, "a.set")
    with pytest.raises(EmptySet, match="no row in force"):
        remote.posterior(X, LEVEL)
    col.add(rows(1), ["a"])
    assert remote.posterior(X, LEVEL).count == 1


def test_fewer_digits_on_the_wire_are_put_on_the_stated_error(three, url):
    exact, three_rows = three.posterior(X, LEVEL), three.moments()
    for wire in ("float32", "float16"):
        told = RemoteNegatives(url, "a.set", wire=wire).posterior(X, LEVEL)
        off = (told.mean - exact.mean).flatten(1).norm(dim=1) / three_rows.rms
        assert torch.equal(told.log_norm, exact.log_norm)
        assert torch.equal(told.heaviest.log_weight, exact.heaviest.log_weight)
        assert 0 < off.max() < 1e-3
        assert (off <= told.error * (1 + 1e-12)).all()
        assert torch.equal(told.mean.to(getattr(torch, wire)).double(), told.mean)
    with pytest.raises(InvalidInput, match="wire = 'float8'"):
        RemoteNegatives(url, "a.set", wire="float8")


def test_values_that_float16_cannot_hold_are_refused(root, url):
    made = Collection.create(root / "wide", SHAPE, "pixels", dtype="float32")
    made.add(torch.full((1, *SHAPE), 1e6), ["a"])
    with pytest.raises(OutOfRange, match=r"beyond float16; ask for float64"):
        RemoteNegatives(url, "wide", wire="float16").posterior(X, LEVEL)


def test_a_calibrated_kernel_is_the_services_own_and_others_are_sent_once(root, url):
    made = Collection.create(root / "many", SHAPE, "pixels", dtype="float32")
    made.add(torch.randn(300, *SHAPE, generator=torch.Generator().manual_seed(1)), [str(i) for i in range(300)])
    made.calibrate()
    remote = RemoteNegatives(url, "many")
    assert remote.default_kernel == made.default_kernel
    assert remote.default_kernel.name != "literal"
    assert same(remote.posterior(X, LEVEL), made.posterior(X, LEVEL))
    sent = []
    ask = remote._set.line.ask
    remote._set.line.ask = lambda *given: sent.append(sum(map(len, given[2:3]))) or ask(*given)
    other, pinned = Kernel(projection=torch.randn(4, 6, generator=torch.Generator().manual_seed(2))), remote.pin()
    del sent[:]
    for _ in range(3):
        assert same(pinned.posterior(X, LEVEL, kernel=other), made.posterior(X, LEVEL, kernel=other))
    assert len(sent) == 4  # by its name, whole, and then by its name
    assert sent[1] > sent[0] == sent[2] == sent[3]


def test_large_batches_go_in_parts(three, root):
    x = torch.randn(50, *SHAPE, generator=torch.Generator().manual_seed(3))
    level = NoiseLevel(torch.linspace(0.1, 0.9, 50), 0.5)
    with serving(root, samples=7) as address:
        remote = RemoteNegatives(address, "a.set")
        assert torch.allclose(remote.posterior(x, level).mean, three.posterior(x, level).mean, atol=1e-12)
        near, local = remote.near(x, 2.0), three.near(x, 2.0)
        assert torch.equal(near.ids, local.ids)
        assert torch.equal(near.distances, local.distances)


def test_what_noise_a_sample_carries_goes_along_in_parts_too(three, root, monkeypatch):
    seen, nearest = [], Snapshot.nearest
    monkeypatch.setattr(Snapshot, "nearest", lambda self, reach: seen.append(reach.noise) or nearest(self, reach))
    x, noise = torch.randn(9, *SHAPE, generator=torch.Generator().manual_seed(3)), torch.linspace(0, 1, 9).double()
    with serving(root, samples=4) as address:
        remote = RemoteNegatives(address, "a.set")
        near = remote.near(x, 2.0, 1, noise=noise)
        assert torch.equal(torch.cat(seen), noise)
        assert torch.equal(near.ids, three.near(x, 2.0, 1, noise=noise).ids)
        remote.near(x[:2], 2.0)
        assert not seen[-1].any()


def test_rows_by_id_are_those_in_force(three, root, url):
    from negindex.service.access import create_key

    text, _ = create_key(root, ["curator"])
    remote = RemoteNegatives(url, "a.set", text)
    assert torch.equal(remote.rows([3, 1]), torch.from_numpy(rows(3)[[2, 0]]).double())
    assert remote.pin().source_keys([1, 2, 9]) == {1: "a", 2: "b"}
    three.withdraw(["b"], "no longer meant")
    with pytest.raises(UnknownKey, match=r"rows \[2\] are not in force at version 2"):
        remote.rows([1, 2])
    assert remote.pin().source_keys([1, 2]) == {1: "a"}


# -- when the service is not there ---------------------------------------------------------


def test_a_service_that_went_away_is_an_error_and_never_nothing_near(three, root):
    with serving(root) as address:
        remote = RemoteNegatives(address, "a.set", timeout=5, retries=1)
        pinned = remote.pin()
        pinned.posterior(X, LEVEL)
    for ask in (remote.pin, lambda: pinned.posterior(X, LEVEL), lambda: pinned.near(X, k=1), lambda: pinned.moments()):
        with pytest.raises(Unreachable, match=r"cannot be reached .* 2 tries"):
            ask()
    with pytest.raises(Unreachable):
        RemoteNegatives(address, "a.set", retries=0)


def test_a_service_that_came_back_is_asked_again_over_new_connections(three, root):
    with serving(root) as address:
        remote = RemoteNegatives(address, "a.set")
        first = remote.posterior(X, LEVEL)
    with serving(root, port=int(address.rpartition(":")[2])):
        assert same(remote.posterior(X, LEVEL), first)


@pytest.fixture
def impostor():
    """A server that answers with what it is told to, one connection after the other."""
    said = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    connection.recv(65536)
                    answer = said.pop(0) if said else b""
                    if answer is None:
                        threading.Event().wait(0.5)
                        continue
                    connection.sendall(answer)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield said, f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def answer(body, status="200 OK", length=None):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def test_only_broken_connections_are_tried_again(impostor):
    said, address = impostor
    said[:] = [b"", answer(b"[]", length=9), answer(b"{}", "500 Oh")]
    with pytest.raises(Unreachable, match="HTTP 500"):
        RemoteNegatives(address, "a", retries=2)
    assert said == []
    said[:] = [None, answer(b"{}")]
    with pytest.raises(Unreachable, match=r"did not answer within 0\.2 s"):
        RemoteNegatives(address, "a", timeout=0.2)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (answer(b"not json"), Damaged),
        (answer(b'{"shape": [2]}'), Damaged),
        (answer(b"{" * 100_000), Damaged),
        (answer(b"x", length=1 << 40), Unreachable),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Unreachable),
        (b"SSH-2.0-OpenSSH\r\n\r\n", Unreachable),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", Unreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}", Unreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", Unreachable),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            Unreachable,
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: " + b"x" * 70_000 + b"\r\n\r\n{}", Unreachable),
        (b"HTTP/1.1 101 Other\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", Unreachable),
        (answer(b"{}") + answer(b"{}"), Unreachable),
        (answer(b'{"code": "EmptySet", "detail": "x"}', "100 Go\r\n\r\nHTTP/1.1 409 No"), EmptySet),
        (answer(b'{"code": "SystemExit", "detail": "x"}', "409 No"), Unreachable),
        (answer(b'{"code": "EmptySet", "detail": "x"}', "409 No"), EmptySet),
        (answer(b"<html>", "401 No"), NotAllowed),
        (answer(b"", "302 Found"), Unreachable),
        (answer(b"", "429 Slow"), Unreachable),
    ],
)
def test_answers_that_cannot_be_trusted_are_errors(impostor, sent, error):
    said, address = impostor
    said[:] = [sent]
    with pytest.raises(error):
        RemoteNegatives(address, "a", retries=0)


@pytest.mark.parametrize("url", ["ftp://a", "a.set", "http://", "http://u:p@127.0.0.1", "http://127.0.0.1/?a=1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InvalidInput, match="no address of a service"):
        RemoteNegatives(url, "a")


def test_a_key_does_not_travel_in_the_clear():
    with pytest.raises(NotAllowed, match=r"use https, or say insecure=True"):
        RemoteNegatives("http://negatives.invalid:8321", "a", "key")
    with pytest.raises(InvalidInput, match="characters that none has"):
        RemoteNegatives("http://127.0.0.1:1", "a", "key\r\nHost: other")

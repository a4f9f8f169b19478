"""Images for sets of latents: their rows are made by the set's own VAE in a process of its own, or not at all."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Client, Listener

import httpx
import numpy as np
import pytest
import torch
from browsing import NOTICE, Browser, browsers, png
from PIL import Image
from serving import figure, processes, serving
from test_vae import kl
from worlds import diffusers_on_numpy_2

from negindex import Collection, NoiseLevel, RemoteNegatives
from negindex.errors import InvalidInput, NotThere, SpaceMismatch, Unreachable
from negindex.sampler.encode import space_of
from negindex.sampler.for_pages import ForPages
from negindex.sampler.vae import VaeEncoder, parts_in
from negindex.service.access import create_key
from negindex.service.encoding import Channel, Desk, Encoders
from negindex.service.limits import Turns
from negindex.service.metrics import Metrics
from negindex.service.settings import read_settings
from negindex.service.state import Handed
from negindex.service.wire import packed, unpacked

pytestmark = diffusers_on_numpy_2
SIDE, SHAPE = 64, (4, 32, 32)
ART = "/pages/sets/art"
SECRET = b"of this run"
LEVEL = NoiseLevel(0.7, 0.7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A real VAE, saved by itself."""
    made = tmp_path_factory.mktemp("models")
    kl(0, latent_channels=4).save_pretrained(made / "vae")
    kl(1, latent_channels=4).save_pretrained(made / "other")
    return made


@pytest.fixture
def root(tmp_path, folder):
    """A set of latents and one of pixels, and the key of somebody who may do all."""
    root = tmp_path / "sets"
    root.mkdir()
    with Collection.create(root / "art", SHAPE, space_of(parts_in(folder / "vae")), dtype="float32") as art:
        art.add(torch.zeros(1, *SHAPE).numpy(), ["flat.png"])
    Collection.create(root / "plain", (3, 16, 16), "pixels").close()
    return root


class Slow:
    """A maker that waits until it is let."""

    def __init__(self, maker):
        self.maker, self.begun, self.let = maker, threading.Event(), threading.Event()
        self.size, self.channels, self.shape, self.space = maker.size, maker.channels, maker.shape, maker.space

    def rows(self, pixels):
        self.begun.set()
        assert self.let.wait(60)
        return self.maker.rows(pixels)


@pytest.fixture
def maker(root, folder):
    with Collection.open(root / "art") as art:
        return ForPages().load(art, folder / "vae")


@pytest.fixture
def desk(tmp_path, maker):
    """Gives what a worker is handed, and has the maker answer in a thread; at the end of the file it is a process."""
    address = str(tmp_path / "encoder")
    slow = Slow(maker)
    slow.let.set()
    metrics = Metrics()
    with Listener(address, "AF_UNIX", 16, authkey=SECRET) as listener:
        desk = Desk({"art": slow}, metrics)
        hears = threading.Thread(target=desk.serve, args=(listener,))
        hears.start()
        yield Handed(channel=Channel(address, SECRET)), slow, metrics
        slow.let.set()
        desk.end(address)
        hears.join()


@pytest.fixture
def office(root, folder, desk):
    key, _ = create_key(root, ["admin"])
    with browsers(root, handed=desk[0], encoder={"art": folder / "vae"}) as browser:
        yield browser(key)


def row_of(vae, content):
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return VaeEncoder(vae, SIDE, SIDE).row(image, "x")


def test_a_claim_on_an_image_holds_the_row_that_the_vae_makes(root, folder, office):
    number = office.open_claim("art", [("a.png", png(1))])
    assert office.send(f"{ART}/claims/{number}/accept").status_code == 303
    expected = row_of(parts_in(folder / "vae").vae, png(1))
    with Collection.open(root / "art") as art:
        (row,) = art.claims.show(number).rows
        assert row in art.in_force()
        assert np.array_equal(art.stored([row]).rows[0], expected)
    shown = office.send(f"{ART}/claims/{number}/attach", {"prefix": ""}, [("b.png", png(2))])
    assert office.confirm(shown, "attach-now").status_code == 303
    with Collection.open(root / "art") as art:
        assert len(art.claims.show(number).rows) == 2


def test_search_by_image_looks_in_the_models_own_space(root, office):
    for seed in (1, 2):
        number = office.open_claim("art", [(f"{seed}.png", png(seed))])
        office.send(f"{ART}/claims/{number}/accept")
    text = office.send(f"{ART}/search", None, [("x.png", png(2))]).text
    first = re.search(r"own space.*?rms (\S+)</strong>.*?<a href=\"[^\"]*/rows/(\d+)\">", text, re.S)
    with Collection.open(root / "art") as art:
        assert art.row(int(first[2])).source_key == "2.png"
    assert float(first[1]) == 0


def test_without_an_encoder_pages_say_so_and_hashes_still_go(root):
    key, _ = create_key(root, ["admin"])
    with browsers(root) as browser:
        ann = browser(key)
        for page in ("new-claim?regime=dmca", "search"):
            text = ann.get(f"{ART}/{page}").text
            assert "this service has no encoder for them" in text
            assert "no encoder" not in ann.get(f"/pages/sets/plain/{page}").text
        refused = ann.send(f"{ART}/new-claim", {"regime": "dmca", "prefix": "", **NOTICE}, [("a.png", png(1))])
        assert refused.status_code == 422
        assert "--encoder art=FOLDER" in refused.text
        found = ann.send(f"{ART}/search", None, [("a.png", png(1))])
        assert found.status_code == 200
        assert "Not by space: this service makes no rows of this set" in found.text
        told = ann.send(f"{ART}/new-claim", {"regime": "hash-only", "hashes": "sha256:" + "ab" * 32})
        assert ann.confirm(told, "open-claim").status_code == 303


def test_another_vae_is_refused_by_name(root, folder):
    with Collection.open(root / "art") as art, Collection.open(root / "plain") as plain:
        with pytest.raises(SpaceMismatch, match=r"art holds rows of space|art"):
            ForPages().load(art, folder / "other")
        with pytest.raises(InvalidInput, match="holds pixels, which need no encoder"):
            ForPages().load(plain, folder / "vae")
        with pytest.raises(NotThere):
            ForPages().load(art, folder / "none")


def test_a_set_that_was_replaced_by_one_of_another_space_is_refused(root, office):
    (root / "art").rename(root / "old")
    with Collection.create(root / "art", SHAPE, "vae 0123456789abcdef scaling_factor=0.5") as art:
        art.add(torch.zeros(1, *SHAPE).numpy(), ["flat.png"])
    told = office.send(f"{ART}/new-claim", {"regime": "dmca", "prefix": "", **NOTICE}, [("a.png", png(1))])
    assert told.status_code == 422
    assert "0123456789abcdef" in told.text


def test_an_encoder_that_is_gone_is_told_and_nothing_is_changed(root, folder, tmp_path):
    key, _ = create_key(root, ["admin"])
    handed = Handed(channel=Channel(str(tmp_path / "nobody"), SECRET))
    with browsers(root, handed=handed, encoder={"art": folder / "vae"}) as browser:
        ann = browser(key)
        told = ann.send(f"{ART}/new-claim", {"regime": "dmca", "prefix": "", **NOTICE}, [("a.png", png(1))])
        assert told.status_code == 503
        assert "is not up" in told.text
    with Collection.open(root / "art") as art:
        assert art.newest().version == 1


def test_samplers_do_not_wait_for_the_encoder_and_the_queue_has_an_end(root, folder, desk):
    handed, slow, _ = desk
    slow.let.clear()
    key, _ = create_key(root, ["admin"])
    how = {"keyless": False, "images": ForPages(), "handed": handed, "encoder": {"art": folder / "vae"}, "uploads": 2}
    with serving(root, **how) as url, httpx.Client(base_url=url, timeout=60) as client:
        ann = Browser(client)
        ann.login(key)
        token, cookies, told = ann.token, dict(client.cookies), []

        def look():
            data = {"token": token, "regime": "dmca", "prefix": "", **NOTICE}
            files = [("files", ("a.png", png(1)))]
            told.append(
                httpx.post(f"{url}{ART}/new-claim", data=data, files=files, cookies=cookies, timeout=60).status_code
            )

        def queue():
            text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}).text
            return figure(text, "negindex_encoder_queue")

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert slow.begun.wait(60)
        end = time.monotonic() + 60
        while queue() < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
        with RemoteNegatives(url, "art", key) as remote:
            assert remote.posterior(torch.zeros(1, *SHAPE), LEVEL).count == 1
        assert told == []
        look()
        assert told == [503]  # a third one has no place
        slow.let.set()
        for thread in threads:
            thread.join()
        assert told == [503, 200, 200]
        assert queue() == 0


def test_a_stranger_and_a_broken_question_stop_nothing(desk, root, folder):
    handed, _, _ = desk
    with pytest.raises(Exception, match="digest"), Client(handed.channel.address, "AF_UNIX", authkey=b"other"):
        pass
    for body in (b"", b"nothing", packed({"other": torch.zeros(1)}, {}), packed({}, {"set": "none"})):
        with Client(handed.channel.address, "AF_UNIX", authkey=SECRET) as connection:
            connection.send_bytes(body)
            _, said = unpacked(bytearray(connection.recv_bytes()), {})
        assert said["problem"]["code"] in ("InvalidInput", "NotThere")
    encoders = Encoders(handed.channel, {"art": folder / "vae"})
    assert encoders.of("art").shape == SHAPE
    assert encoders.of("plain") is None
    assert ("art" in encoders, "plain" in encoders) == (True, False)


def test_turns_are_taken_one_by_one_and_bounded():
    seen, at_once, most, let = [], [0], [], threading.Event()
    turns = Turns(3, seen.append)

    def take():
        with turns.take():
            at_once[0] += 1
            most.append(at_once[0])
            assert let.wait(60)
            at_once[0] -= 1

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not (seen and max(seen) == 3):
        time.sleep(0.005)
    with pytest.raises(Unreachable, match="3 uploads wait already, at most 3"), turns.take():
        pass
    let.set()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    assert seen[-1] == 0


def test_an_error_inside_a_turn_gives_it_back():
    turns = Turns(1, lambda waiting: None)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), turns.take():
            raise ZeroDivisionError


# -- as it is run --------------------------------------------------------------------------


def test_the_command_encodes_in_a_process_that_is_replaced_when_it_dies(root, folder):
    key, _ = create_key(root, ["admin"])
    words = ("--encoder", f"art={folder / 'vae'}", "--workers", 2)
    with processes(root, *words) as (url, service), httpx.Client(base_url=url, timeout=120) as client:
        ann = Browser(client)
        assert ann.login(key).status_code == 303
        first = ann.open_claim("art", [("a.png", png(1))])
        (encoder,) = pids_of(service, "encoder-started")
        os.kill(encoder, signal.SIGKILL)
        end = time.monotonic() + 200
        while len(pids_of(service, "encoder-started")) < 2:
            assert time.monotonic() < end, service.lines
            time.sleep(0.1)
        second = ann.open_claim("art", [("b.png", png(2))])
    expected = [row_of(parts_in(folder / "vae").vae, png(seed)) for seed in (1, 2)]
    with Collection.open(root / "art") as art:
        for number, row in zip((first, second), expected, strict=True):
            assert np.array_equal(art.stored(list(art.claims.show(number).rows)).rows[0], row)


def pids_of(service, event):
    return [int(re.search(r'"process": (\d+)', line)[1]) for line in list(service.lines) if f'"{event}"' in line]


def test_the_command_refuses_another_vae_before_it_listens(root, folder):
    words = [sys.executable, "-m", "negindex.tools", "serve", str(root), "--port", "0"]
    done = subprocess.run(
        [*words, "--encoder", f"art={folder / 'other'}"], capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == InvalidInput.exit_code, done.stderr
    assert space_of(parts_in(folder / "vae")) in done.stderr
    assert '"listening"' not in done.stderr


def test_encoders_come_from_flags_environment_and_file(tmp_path, monkeypatch):
    file = tmp_path / "service.toml"
    file.write_text('[encoder]\n"a.set" = "/models/a"\n')
    assert read_settings({}, file)[0].encoder["a.set"].as_posix() == "/models/a"
    monkeypatch.setenv("NEGINDEX_ENCODER", '{"a.set": "/models/b"}')
    settings, origins = read_settings({}, file)
    assert settings.encoder["a.set"].as_posix() == "/models/b"
    assert origins["encoder"] == "environment NEGINDEX_ENCODER"

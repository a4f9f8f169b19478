"""Nothing is fetched unless its host was named, from public addresses alone, and what was looked up is asked."""

import http.server
import ipaddress
import json
import threading

import pytest
from corpora import ledger, png, run

from negindex import Collection
from negindex.errors import ImageRefused, InvalidInput
from negindex.sampler.encode import PixelEncoder
from negindex.sampler.fetch import HOPS, Fetcher, addresses_of, is_public
from negindex.sampler.ingest import chosen, ingest
from negindex.sampler.sources import sources_of

PARTLY, USAGE = 3, 2
DRIPS = 200  # bytes of a slow answer, a twentieth of a second apart
LOOPBACK = ipaddress.ip_address("127.0.0.1")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path, and notes what it was asked."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        name, _, more = self.path[1:].partition("/")
        if name == "to":
            self.send_response(302)
            self.send_header("Location", "/" + more if "://" not in more else more)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name == "slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(DRIPS):
                if self.server.over.wait(0.05):
                    return
                try:
                    self.wfile.write(b"x")
                    self.server.dripped += 1
                except OSError:
                    return
        elif name == "packed":
            self._send(b"x", **{"Content-Encoding": "gzip"})
        elif name == "gone":
            self.send_error(404)
        else:
            self._send(png(int(name.partition(".")[0]), (20, 20), "RGB"))

    def _send(self, content, **headers):
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server of this machine's own, that names what it was asked."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.over, made.dripped = [], threading.Event(), 0
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.over.set()
    made.shutdown()
    made.server_close()
    thread.join()


def fetcher(server, **options):
    """One that may ask the server, as photos.example."""
    given = {"max_bytes": 1 << 20, "allowed": lambda address: address == LOOPBACK, "look_up": lambda *_: [LOOPBACK]}
    return Fetcher([f"photos.example:{server.server_port}"], **given | options)


def url(server, path, host="photos.example"):
    return f"http://{host}:{server.server_port}/{path}"


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
        ),
        *("168.63.129.16", "100.100.100.200", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:1:2:3:4:5:6"),
    ],
)
def test_addresses_that_are_not_public_are_told(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_told(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_refused_though_it_was_named(server, host):
    given = Fetcher([f"{host}:{server.server_port}"], max_bytes=1 << 20)
    with pytest.raises(ImageRefused, match="which is not public"):
        given(url(server, "1.png", host))
    assert server.asked == []


def test_one_address_that_is_not_public_bars_the_host(server):
    mixed = [ipaddress.ip_address("1.1.1.1"), LOOPBACK]
    with pytest.raises(ImageRefused, match=r"127\.0\.0\.1, which is not public"):
        fetcher(server, allowed=is_public, look_up=lambda *_: mixed)(url(server, "1.png"))


def test_a_name_is_looked_up_once_a_hop_and_that_address_is_asked(server):
    looked = []

    def look_up(host, port):
        looked.append(host)
        return [LOOPBACK] if len(looked) == 1 else [ipaddress.ip_address("10.0.0.1")]

    assert fetcher(server, look_up=look_up)(url(server, "1.png")) == png(1, (20, 20), "RGB")
    assert looked == ["photos.example"], "a name that changes its mind afterwards changes nothing"
    assert server.asked == [("/1.png", f"photos.example:{server.server_port}")]
    with pytest.raises(ImageRefused, match="not public"):
        fetcher(server, look_up=look_up)(url(server, "1.png"))


# -- hosts and hops --------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["http://other.example/1", "http://photos.example/1", "http://x@photos.example/1"])
def test_only_the_named_host_and_port_are_asked(server, address):
    with pytest.raises(ImageRefused, match=r"was not named|password"):
        fetcher(server)(address)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://photos.example/1", "http:///1", "http://[::1/"])
def test_other_kinds_of_url_are_refused(server, address):
    with pytest.raises(ImageRefused):
        fetcher(server)(address)


@pytest.mark.parametrize(
    "host", ["", "*", "*.example.org", "http://example.org", "example.org/a", "a@b", "a:b", "exämple"]
)
def test_what_is_no_hosts_name_is_refused(host):
    with pytest.raises(InvalidInput, match="no host's name"):
        Fetcher([host], max_bytes=1)


def test_redirects_are_followed_and_each_hop_is_checked_anew(server):
    assert fetcher(server)(url(server, "to/to/2.png")) == png(2, (20, 20), "RGB")
    for target in (
        f"http://127.0.0.1:{server.server_port}/1.png",
        "file:///etc/passwd",
        "http://169.254.169.254/latest",
    ):
        with pytest.raises(ImageRefused, match=r"was not named|only http"):
            fetcher(server)(url(server, f"to/{target}"))
    server.asked.clear()
    with pytest.raises(ImageRefused, match=f"more than {HOPS} redirects"):
        fetcher(server)(url(server, "to/" * 20 + "1.png"))
    assert len(server.asked) == HOPS + 1


# -- limits ----------------------------------------------------------------------------------------


def test_a_host_that_speaks_no_tls_is_named_and_not_asked_in_the_open(server):
    with pytest.raises(OSError, match=r"no answer|not here after|record|SSL"):
        fetcher(server, seconds=0.5)(f"https://photos.example:{server.server_port}/1.png")
    assert server.asked == []


def test_size_and_time_are_limited(server):
    with pytest.raises(ImageRefused, match="more than 100 bytes"):
        fetcher(server, max_bytes=100)(url(server, "1.png"))
    with pytest.raises(OSError, match=r"not here after 0\.3 seconds"):
        fetcher(server, seconds=0.3)(url(server, "slow"))
    assert server.dripped < DRIPS, "a drip does not hold it up"
    with pytest.raises(ImageRefused, match="packed"):
        fetcher(server)(url(server, "packed"))
    with pytest.raises(OSError, match="404"):
        fetcher(server)(url(server, "gone"))


def test_a_host_that_is_not_there_may_be_there_another_time(server):
    port = server.server_port + 0
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="refused"):
        fetcher(server)(f"http://photos.example:{port}/1.png")


# -- lists -----------------------------------------------------------------------------------------


def test_urls_of_a_list_go_in_under_themselves_and_what_fails_is_named(tmp_path, server):
    names = [url(server, "1.png"), url(server, "gone"), "http://other.example/x.png"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    collection = Collection.create(tmp_path / "a.set", (3, 8, 8), "pixels")
    told = []
    items = chosen(sources_of([f"@{tmp_path}/list.txt"], fetch=fetcher(server)), (3, 8, 8))
    ingest(collection, items, PixelEncoder(8, 8, 3), tell=told.append)
    assert [(entry.key, entry.outcome) for entry in sorted(told, key=lambda entry: names.index(entry.key))] == [
        (names[0], "in"),
        (names[1], "failed"),
        (names[2], "refused"),
    ]


def test_without_the_option_a_url_is_refused_by_name_and_nothing_is_asked(tmp_path, server):
    line = f"http://127.0.0.1:{server.server_port}/1.png"
    (tmp_path / "list.txt").write_text(f"{line}\n")
    words = ["build", tmp_path / "a.set", f"@{tmp_path}/list.txt", "--size", 8, "--channels", 3]
    done = run(*words, "--ledger", tmp_path / "run.jsonl")
    assert done.exit_code == PARTLY
    _, entries = ledger(tmp_path / "run.jsonl")
    assert "allow its host (--allow-fetch)" in entries[line]["reason"]
    done = run(*words, "--allow-fetch", f"127.0.0.1:{server.server_port}", "--json")
    assert (done.exit_code, json.loads(done.stdout)["refused"]) == (PARTLY, 1)
    assert "which is not public" in done.stderr
    assert server.asked == []
    assert run(*words, "--allow-fetch", "*").exit_code == USAGE


def test_this_systems_own_names_are_looked_up():
    assert LOOPBACK in addresses_of("localhost", 80) or ipaddress.ip_address("::1") in addresses_of("localhost", 80)

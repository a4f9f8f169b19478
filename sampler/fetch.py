"""Files from named hosts: the one way in which anything is ever fetched, off unless somebody names the hosts.

A list of URLs is somebody else's text. So a host is asked only if it was named; its name is looked up once a hop, every
address that it has must be public, and the connection goes to one of those very addresses, whatever the name says a
moment later. Redirects are new hops, held to the same. Size and time are limited; nothing is unpacked, no proxy asked.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from urllib.parse import SplitResult, urljoin, urlsplit

from negindex.errors import ImageRefused, InvalidInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SECONDS = 30.0  # for one file, redirects included
HOPS = 5  # redirects that are followed
PORTS = {"http": 80, "https": 443}
_PIECE = 1 << 16
_MOVED = (301, 302, 303, 307, 308)
_EMBEDDED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 behind a translator
_METADATA = {ipaddress.ip_address("168.63.129.16")}  # a cloud's own, among public addresses
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(line: str) -> bool:
    """Whether a line of a list is a URL rather than a path.

    >>> is_url("https://example.org/a.png"), is_url("a/b.png")
    (True, False)
    """
    return _URL.match(line) is not None


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet: not private, loopback, link-local, shared, or metadata.

    >>> [is_public(ipaddress.ip_address(a)) for a in ("1.1.1.1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1")]
    [True, False, False, False]
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _EMBEDDED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.is_site_local:
            return False
    odd = address.is_multicast or address.is_reserved or address.is_unspecified or address in _METADATA
    return address.is_global and not odd


def addresses_of(host: str, port: int) -> list[Address]:
    """What a host's name stands for now. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(str(where[0]).partition("%")[0]) for *_, where in found))


class Fetcher:
    """Reads URLs of named hosts under limits."""

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        max_bytes: int,
        seconds: float = SECONDS,
        allowed: Callable[[Address], bool] = is_public,
        look_up: Callable[[str, int], list[Address]] = addresses_of,
    ) -> None:
        """hosts: names such as example.org, for ports 80 and 443, or with a port, example.org:8080.

        allowed: which addresses may be connected to; a caller who means a host of an own network says so here.
        Raises InvalidInput for what is no host's name.
        """
        self._hosts = {_host(text) for text in hosts}
        self._max_bytes, self._seconds, self._allowed, self._look_up = max_bytes, seconds, allowed, look_up

    def __call__(self, url: str) -> bytes:
        """The file at a URL.

        Raises ImageRefused for what is not allowed, by name, and OSError for what may go better another time.
        """
        ends = time.monotonic() + self._seconds
        for _ in range(HOPS + 1):
            content, url = self._hop(url, ends)
            if content is not None:
                return content
        raise ImageRefused(f"more than {HOPS} redirects; give the file's own URL")

    def _hop(self, url: str, ends: float) -> tuple[bytes | None, str]:
        """The file, or where the answer sends on to."""
        parts, port = self._named(url)
        connection = self._connected(parts, port, ends)
        streams = [connection.sock]  # the connection lets go of it before the answer is read
        watch = threading.Timer(max(0.0, ends - time.monotonic()), _cut, [streams])
        watch.daemon = True
        watch.start()
        try:
            if parts.scheme == "https":
                _secure(connection, parts.hostname or "", streams)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"Accept-Encoding": "identity", "User-Agent": "negindex"})
            answer = connection.getresponse()
            if answer.status in _MOVED and answer.headers.get("Location"):
                return None, urljoin(url, answer.headers["Location"])
            return self._content(answer, ends), url
        except ImageRefused:
            raise
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(self._late(ends) or f"no answer that can be read: {error!r}") from error
        except OSError as error:
            raise OSError(self._late(ends) or str(error)) from error
        finally:
            watch.cancel()
            connection.close()

    def _named(self, url: str) -> tuple[SplitResult, int]:
        """The URL's parts and port. Raises ImageRefused unless its host was named."""
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise ImageRefused(f"no URL that can be read ({error}); correct the list") from error
        if parts.scheme not in PORTS or not parts.hostname:
            raise ImageRefused(f"a URL of kind {parts.scheme!r}; only http and https are fetched")
        if parts.username or parts.password or re.search(r"[^!-~]", url):
            raise ImageRefused("a URL with a password, a space or a sign beyond ASCII; write it without")
        usual = port in PORTS.values() and (parts.hostname, 0) in self._hosts
        if not usual and (parts.hostname, port) not in self._hosts:
            raise ImageRefused(
                f"its host {parts.hostname}:{port} was not named; allow it (--allow-fetch), or leave it out"
            )
        return parts, port

    def _connected(self, parts: SplitResult, port: int, ends: float) -> http.client.HTTPConnection:
        """A connection to an address of the host, all of whose addresses are allowed."""
        host = parts.hostname or ""
        found = self._look_up(host, port)
        barred = [address for address in found if not self._allowed(address)]
        if barred or not found:
            raise ImageRefused(
                f"{host} stands for {barred[0] if barred else 'no address'}, which is not public; leave it out"
            )
        left = ends - time.monotonic()
        if left <= 0:
            raise OSError(self._late(ends))
        connection = http.client.HTTPConnection(host, port, timeout=left)
        connection.sock = _first_of(found, port, left)
        return connection

    def _content(self, answer: http.client.HTTPResponse, ends: float) -> bytes:
        if answer.status != 200:
            raise OSError(f"the host answers {answer.status} {answer.reason}")
        packed = answer.headers.get("Content-Encoding", "identity")
        if packed != "identity":
            raise ImageRefused(f"the host sends it packed ({packed}); give a URL of the file as it is")
        content = bytearray()
        while piece := answer.read(_PIECE):
            content += piece
            if len(content) > self._max_bytes:
                raise ImageRefused(f"more than {self._max_bytes:,} bytes; make it smaller, or allow more (--max-bytes)")
        if late := self._late(ends):
            raise OSError(late)
        return bytes(content)

    def _late(self, ends: float) -> str:
        return f"not here after {self._seconds:g} seconds" if time.monotonic() >= ends else ""


def _host(text: str) -> tuple[str, int]:
    """(name, port) as it was named; port 0 for the usual ones."""
    try:
        parts = urlsplit(f"//{text}")
        named = (parts.hostname or "", parts.port or 0)
    except ValueError:
        named = ("", 0)
    if not named[0] or parts.path or parts.query or parts.username or not text.isascii() or "*" in text:
        raise InvalidInput(f"{text!r} is no host's name; give one such as example.org, or example.org:8080")
    return named


def _first_of(addresses: list[Address], port: int, seconds: float) -> socket.socket:
    """A connection to the first address that takes one."""
    last: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((str(address), port), timeout=seconds / len(addresses))
        except OSError as error:
            last = error
    raise last or OSError("no address")


def _secure(connection: http.client.HTTPConnection, host: str, streams: list[socket.socket]) -> None:
    """Speak TLS, with a certificate that this system trusts for the host's name."""
    context = ssl.create_default_context()
    secured = context.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
    connection.sock = secured
    streams[:] = [secured]  # before anything is said, so that a handshake that drips is cut, too
    secured.do_handshake()


def _cut(streams: list[socket.socket]) -> None:
    """End a connection whose time is over, however slowly it goes on."""
    for stream in streams:
        with suppress(OSError):
            stream.shutdown(socket.SHUT_RDWR)

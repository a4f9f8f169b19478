"""Connections to a service, kept open and used again. Nothing here knows what is asked."""

from __future__ import annotations

import os
import ssl
import time
import weakref
from collections import deque
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from negindex.errors import InvalidInput, NotAllowed, Unreachable
from negindex.traced import trace_headers

RETRY_AFTER = (0.0, 0.05, 0.2, 0.5, 1.0)  # seconds before each further try
ANSWER_BYTES = 1 << 30


class Answer(NamedTuple):
    """What came back, whole."""

    status: int
    body: bytearray


class Line:
    """One service's address. Usable from several threads: each request has a connection for itself.

    A request is sent again where the connection broke, and only then: everything that is asked here changes nothing.
    Redirects and proxies are not followed.
    """

    def __init__(
        self, url: str, key: str | None, *, timeout: float, retries: int, certificate: Path | None, insecure: bool
    ) -> None:
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or parts.username
        ):
            raise InvalidInput(f"{url!r} is no address of a service; give one like https://negatives.example:8321")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InvalidInput("the key holds characters that none has; give it as `negindex apikey create` printed it")
        if parts.scheme == "http" and not (insecure or _is_local(parts.hostname)):
            raise NotAllowed(
                f"{parts.hostname} is another machine, and http shows it and all between the key and the samples; "
                "use https, or say insecure=True"
            )
        if timeout <= 0 or not 0 <= retries < len(RETRY_AFTER):
            raise InvalidInput(
                f"timeout {timeout}, retries {retries}; give seconds > 0 and 0 to {len(RETRY_AFTER) - 1}"
            )
        self.where = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port, self._base = parts.hostname, parts.port, parts.path.rstrip("/")
        self._timeout, self._retries = timeout, retries
        self._tls = None if parts.scheme == "http" else ssl.create_default_context(cafile=certificate)
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._idle: deque[HTTPConnection] = deque()
        weakref.finalize(self, _close, self._idle)
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<Line {self.where}>"

    def ask(self, method: str, path: str, body: bytes | None = None, media_type: str = "") -> Answer:
        """Send one request and read its answer. Raises Unreachable when there is none in time."""
        headers = self._headers | trace_headers() | ({} if body is None else {"Content-Type": media_type})
        for number in range(self._retries + 1):
            connection = self._connection()
            try:
                connection.request(method, self._base + path, body, headers)
                return self._answer(connection)
            except TimeoutError as error:
                connection.close()
                raise Unreachable(
                    f"{self.where} did not answer within {self._timeout:g} s; see to the service"
                ) from error
            except ConnectionError as error:
                connection.close()
                self.close()  # the others are most likely broken as well
                if number == self._retries:
                    tries = f"{number + 1} tries"
                    raise Unreachable(f"{self.where} cannot be reached ({error}), {tries}; see to it") from error
                time.sleep(RETRY_AFTER[number])
            except (OSError, HTTPException) as error:
                connection.close()
                raise Unreachable(f"{self.where} cannot be asked ({type(error).__name__}: {error})") from error
        raise AssertionError("not reached")

    def close(self) -> None:
        """Close the connections that nobody uses; the next request opens one."""
        _close(self._idle)

    def _connection(self) -> HTTPConnection:
        if self._process != os.getpid():  # a fork has the parent's connections: leave them to it
            self._idle.clear()
            self._process = os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            if self._tls is None:
                return HTTPConnection(self._host, self._port, timeout=self._timeout)
            return HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)

    def _answer(self, connection: HTTPConnection) -> Answer:
        got = connection.getresponse()
        length = got.length
        if length is None or length > ANSWER_BYTES:
            connection.close()
            raise Unreachable(
                f"{self.where} sent an answer of {length} bytes, at most {ANSWER_BYTES} of a stated length"
            )
        body = bytearray(length)
        view, place = memoryview(body), 0
        while place < length:
            count = got.readinto(view[place:])
            if not count:
                raise ConnectionError(f"the answer broke off after {place} of {length} bytes")
            place += count
        got.read()  # to its end, so that the connection can be used again
        if got.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return Answer(got.status, body)


def _close(idle: deque[HTTPConnection]) -> None:
    while idle:
        try:
            idle.pop().close()
        except IndexError:  # another thread was quicker
            return


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""Connections to a service, kept open and used again. Nothing here knows what is asked."""

from __future__ import annotations

import os
import re
import ssl
import time
import weakref
from collections import deque
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from negindex.errors import InvalidInput, NotAllowed, Unreachable
from negindex.exchange import Answer, Connection
from negindex.traced import trace_headers

_WORD = re.compile(r"[!-~]*")  # what may stand between the blanks of a request's first line
RETRY_AFTER = (0.0, 0.05, 0.2, 0.5, 1.0)  # seconds before each further try


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
            or not _WORD.fullmatch(parts.path)
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
        self._host, self._base = parts.hostname, parts.path.rstrip("/")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._timeout, self._retries = timeout, retries
        self._tls = None if parts.scheme == "http" else ssl.create_default_context(cafile=certificate)
        self._lines = [f"Host: {_host_header(parts)}", "Accept-Encoding: identity"]
        if key is not None:
            self._lines.append(f"Authorization: Bearer {key}")
        self._idle: deque[Connection] = deque()
        weakref.finalize(self, _close, self._idle)
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<Line {self.where}>"

    def ask(self, method: str, path: str, body: bytes | None = None, media_type: str = "") -> Answer:
        """Send one request and read its answer. Raises Unreachable when there is none in time."""
        head = self._head(method, path, body, media_type)
        for number in range(self._retries + 1):
            connection = self._connection()
            try:
                answer = connection.ask(head, body or b"")
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
            except (OSError, Unreachable) as error:
                connection.close()
                raise Unreachable(f"{self.where} cannot be asked ({type(error).__name__}: {error})") from error
            except BaseException:  # what is left of the answer is nobody's
                connection.close()
                raise
            else:
                if connection.reusable:
                    self._idle.append(connection)
                else:
                    connection.close()
                return answer
        raise AssertionError("not reached")

    def _head(self, method: str, path: str, body: bytes | None, media_type: str) -> bytes:
        lines = [f"{method} {self._base}{path} HTTP/1.1", *self._lines]
        lines += [f"{name}: {value}" for name, value in trace_headers().items()]
        if body is not None:
            lines += [f"Content-Length: {len(body)}", f"Content-Type: {media_type}"]
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    def close(self) -> None:
        """Close the connections that nobody uses; the next request opens one."""
        _close(self._idle)

    def _connection(self) -> Connection:
        if self._process != os.getpid():  # a fork has the parent's connections: leave them to it
            self._idle.clear()
            self._process = os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return Connection(self._host, self._port, self._timeout, self._tls)


def _close(idle: deque[Connection]) -> None:
    while idle:
        try:
            idle.pop().close()
        except IndexError:  # another thread was quicker
            return


def _host_header(parts: SplitResult) -> str:
    """Whom a request names: the address without what is only of this machine."""
    host = (parts.hostname or "").partition("%")[0]
    named = f"[{host}]" if ":" in host else host if host.isascii() else host.encode("idna").decode()
    return named if parts.port is None else f"{named}:{parts.port}"


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

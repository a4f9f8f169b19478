"""One connection over HTTP/1.1: a request leaves in one piece, and its answer is read by a parser in C.

``http.client`` sends head and body apart, so that the service wakes twice, and reads the answer's head as if it were
an e-mail: together a millisecond of a step of a few.
"""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from negindex.errors import Unreachable

ANSWER_BYTES = 1 << 30
_HEAD_BYTES = 1 << 16
_PIECE = 1 << 18  # bytes read at once


class Answer(NamedTuple):
    """What came back, whole."""

    status: int
    body: bytearray


class Connection:
    """Asks one question after the other; opened by the first. For one thread at a time."""

    def __init__(self, host: str, port: int, timeout: float, tls: ssl.SSLContext | None) -> None:
        """timeout: seconds for each part of an answer to come."""
        self._address, self._timeout, self._tls = (host, port), timeout, tls
        self._socket: socket.socket | None = None
        self._piece = bytearray(_PIECE)
        self.reusable = False

    def ask(self, head: bytes, body: bytes) -> Answer:
        """Send a request and read the answer. Raises OSError where the connection breaks or nothing comes in time, and
        Unreachable for an answer that is none.
        """
        self.reusable = False
        opened = self._socket = self._socket or self._open()
        _send(opened, head, body)
        reading, view = _Reading(), memoryview(self._piece)
        while not reading.ended:
            count = opened.recv_into(view)
            if not count:
                raise ConnectionResetError(reading.broken_off())
            reading.take(view[:count])
        self.reusable = reading.stays
        return Answer(reading.status, reading.body)

    def close(self) -> None:
        """Close it; the next question opens it again."""
        self.reusable = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> socket.socket:
        plain = socket.create_connection(self._address, self._timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return plain
        try:
            return self._tls.wrap_socket(plain, server_hostname=self._address[0])
        except BaseException:
            plain.close()
            raise


class _Reading:
    """An answer while it comes. The parser calls what begins with ``on_``; what these raise, it raises as its own."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._length: int | None = None
        self._beside = 0  # bytes that are no body
        self.status, self.body, self.ended, self.stays = 0, bytearray(), False, False

    def take(self, piece: memoryview) -> None:
        """What came. Raises Unreachable where it is no answer, or one of no stated length."""
        self._beside += len(piece)
        try:
            self._parser.feed_data(piece)
        except (HttpParserError, HttpParserUpgrade) as error:
            cause = error.__context__ if isinstance(error.__context__, Unreachable) else None
            raise cause or Unreachable(f"no answer of a service, but {bytes(piece[:40])!r}") from error
        if self._beside > _HEAD_BYTES:
            raise Unreachable(f"an answer with a head of more than {_HEAD_BYTES} bytes")

    def broken_off(self) -> str:
        """What to say of an answer that does not come to its end."""
        if self.body:
            return f"the answer broke off after {len(self.body)} of {self._length} bytes"
        return "the answer's head broke off" if self._beside else "closed without an answer"

    def on_message_begin(self) -> None:
        if self.ended:
            raise Unreachable("more than one answer to one question")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-length" and value.isdigit():
            self._length = int(value)

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and status not in (204, 304) and (self._length is None or self._length > ANSWER_BYTES):
            raise Unreachable(f"an answer of {self._length} bytes, at most {ANSWER_BYTES} of a stated length")

    def on_body(self, some: bytes) -> None:
        self._beside -= len(some)
        self.body += some

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status >= 200:  # what comes before is no answer yet
            self.ended, self.stays = True, self._parser.should_keep_alive()


def _send(opened: socket.socket, head: bytes, body: bytes) -> None:
    """Head and body in one system call, if the system takes them at once."""
    if isinstance(opened, ssl.SSLSocket):
        opened.sendall(head + body)
        return
    sent = opened.sendmsg([head, body])
    if sent < len(head) + len(body):
        opened.sendall((head + body)[sent:])

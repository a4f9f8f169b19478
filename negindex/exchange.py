"""One connection over HTTP/1.1: a request leaves in one piece, and its answer is read into the memory it stays in.

``http.client`` sends head and body apart, so that the service wakes twice, and reads the answer's head as if it were
an e-mail: together a millisecond of a step of a few. What is read here is what is needed: a status and a length.
"""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple

from negindex.errors import Unreachable

ANSWER_BYTES = 1 << 30
_HEAD_BYTES = 1 << 16
_PIECE = 1 << 13  # read at once while the head is not there: what it holds of the body is copied


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
        self.reusable = False

    def ask(self, head: bytes, body: bytes) -> Answer:
        """Send a request and read the answer. Raises OSError where the connection breaks or nothing comes in time, and
        Unreachable for an answer that is none.
        """
        self.reusable = False
        opened = self._socket = self._socket or self._open()
        _send(opened, head, body)
        status, length, stays, begun = _read_head(opened)
        answer = bytearray(length)
        answer[: len(begun)] = begun
        view, place = memoryview(answer), len(begun)
        while place < length:
            count = opened.recv_into(view[place:])
            if not count:
                raise ConnectionResetError(f"the answer broke off after {place} of {length} bytes")
            place += count
        self.reusable = stays
        return Answer(status, answer)

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


def _send(opened: socket.socket, head: bytes, body: bytes) -> None:
    """Head and body in one system call, if the system takes them at once."""
    if isinstance(opened, ssl.SSLSocket):
        opened.sendall(head + body)
        return
    sent = opened.sendmsg([head, body])
    if sent < len(head) + len(body):
        opened.sendall((head + body)[sent:])


def _read_head(opened: socket.socket) -> tuple[int, int, bool, bytes]:
    """Status, length of the body, whether the connection stays, and what came of the body already."""
    came, read = b"", 0
    while True:
        while (end := came.find(b"\r\n\r\n")) < 0:
            piece = opened.recv(_PIECE)
            if not piece:
                raise ConnectionResetError("the answer's head broke off" if came else "closed without an answer")
            came, read = came + piece, read + len(piece)
            if read > _HEAD_BYTES:
                raise Unreachable(f"an answer with a head of more than {_HEAD_BYTES} bytes")
        status, length, stays = _parsed(came[:end])
        came = came[end + 4 :]
        if status >= 200:  # what comes before is no answer yet
            break
    if len(came) > length:
        raise Unreachable(f"an answer of more than the {length} bytes that it was said to have")
    return status, length, stays, came


def _parsed(head: bytes) -> tuple[int, int, bool]:
    """Status, length, and whether the connection stays open. Raises Unreachable for a head that says none of it."""
    line, *fields = head.split(b"\r\n")
    version, _, status = line[:12].partition(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not (status.isdigit() and len(status) == 3):
        raise Unreachable(f"no answer of a service, but {line[:40]!r}")
    stays, length = version == b"HTTP/1.1", b""
    for field in fields:
        name, _, value = field.partition(b":")
        name, value = name.lower(), value.strip()
        if name == b"content-length":
            length = value if length in (b"", value) else b"several"
        elif name == b"transfer-encoding":
            length = b"several"  # whatever length is told beside it
        elif name == b"connection":
            said = value.lower()
            stays = b"keep-alive" in said or (stays and b"close" not in said)
    return int(status), _length(int(status), length), stays


def _length(status: int, said: bytes) -> int:
    if status < 200 or status in (204, 304):
        return 0
    if not said.isdigit() or len(said) > 18 or int(said) > ANSWER_BYTES:
        named = said.decode("latin-1")[:40] or "unstated"
        raise Unreachable(f"an answer of {named} bytes, at most {ANSWER_BYTES} of a stated length")
    return int(said)

"""HTTP/1.1 read by a parser in C, within this service's limits, which uvicorn leaves to whoever uses that parser."""

from __future__ import annotations

from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PIPELINED = 16  # requests of one connection that wait for the answer to the one before


class Limited(HttpToolsProtocol):
    """One connection. What is no body (heads, and whatever chunks and trailers have besides) has a limit, and so has
    what waits: memory grows with the bodies that are read, and with nothing else.
    """

    def __init__(self, most: int, config: Config, *args: Any, **kwargs: Any) -> None:
        """most: bytes of a request that are no body."""
        super().__init__(config, *args, **kwargs)
        self._most, self._beside = most, 0

    def data_received(self, data: bytes) -> None:
        """What came; the connection ends where a request is beyond the limits."""
        self._beside += len(data)
        super().data_received(data)
        if self._beside > self._most and not self.transport.is_closing():
            self.send_400_response("a request of more headers than are read")

    def on_message_begin(self) -> None:
        """Raises ValueError, which the parser turns into the answer 400."""
        if len(self.pipeline) >= PIPELINED:
            raise ValueError(f"more than {PIPELINED} requests that wait")
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """Some of a body."""
        self._beside -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request; what follows it is of the next one."""
        self._beside = 0
        super().on_message_complete()

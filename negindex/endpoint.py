"""One set at a service: what is sent and what comes back, whole and of the right kind, or an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from torch import Tensor

from negindex.errors import Damaged, InvalidInput
from negindex.exchange import Answer
from negindex.kernel import LITERAL, Kernel
from negindex.line import Line
from negindex.service import bodies, wire
from negindex.service.bodies import NUMBERS, kernel_of
from negindex.service.problems import SAY_ALL, error_from
from negindex.service.wire import Arrays, packed, unpacked


class Endpoint:
    """A set's address, and how numbers travel. Usable from several threads."""

    def __init__(self, line: Line, name: str, label: str | None, numbers: str) -> None:
        """numbers: of means and rows: float64, float32 or float16."""
        if numbers not in NUMBERS:
            raise InvalidInput(f"wire = {numbers!r}; give one of {', '.join(NUMBERS)}")
        self.line, self.name, self.label, self.numbers = line, name, label, numbers
        self.where = f"set {name!r} at {line.where}"
        self.path = f"/v1/sets/{quote(name, safe='')}"
        self.query = "" if label is None else f"?{urlencode({'label': label})}"
        self._kernels: dict[str, Kernel] = {LITERAL.fingerprint: LITERAL}

    def under(self, label: str) -> Endpoint:
        """The rows under a label, over the same connections."""
        return Endpoint(self.line, self.name, label, self.numbers)

    def get_json(self, path: str) -> Any:
        """What the service says of the set; raises the error that it answers with."""
        told = self.line.ask("GET", self.path + path)
        if told.status != 200:
            raise error_from(told.status, told.body, self.where)
        return self._json(told.body)

    def _json(self, body: bytearray) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{self.where} sent what is no JSON; see to the service") from error

    def get(self, path: str, wanted: Arrays) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Arrays that the service holds."""
        return self._read(self.line.ask("GET", self.path + path), wanted)

    def post(
        self,
        question: str,
        arrays: Mapping[str, Tensor],
        said: Mapping[str, Any],
        wanted: Arrays,
        whole: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The answer to a question. whole: what it names, and is sent where the service does not know the name."""
        told = self.line.ask("POST", f"{self.path}/{question}", packed(arrays, said), wire.MEDIA_TYPE)
        if told.status == 409 and whole and self._json(told.body).get("code") == SAY_ALL:
            body = packed({**arrays, **whole}, said)
            told = self.line.ask("POST", f"{self.path}/{question}", body, wire.MEDIA_TYPE)
        return self._read(told, wanted)

    def post_json(self, question: str, arrays: Mapping[str, Tensor], said: Mapping[str, Any]) -> Any:
        """The answer to a question whose answer is words."""
        told = self.line.ask("POST", f"{self.path}/{question}", packed(arrays, said), wire.MEDIA_TYPE)
        if told.status != 200:
            raise error_from(told.status, told.body, self.where)
        return self._json(told.body)

    def _read(self, told: Answer, wanted: Arrays) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if told.status != 200:
            raise error_from(told.status, told.body, self.where)
        try:
            return unpacked(told.body, wanted)
        except InvalidInput as error:
            raise Damaged(f"{self.where} sent an answer that cannot be read ({error}); see to the service") from error

    def kernel(self, version: int, fingerprint: str) -> Kernel:
        """The set's own kernel, which has this fingerprint; fetched once."""
        if fingerprint not in self._kernels:
            arrays, _ = self.get(f"/versions/{version}/kernel", bodies.KERNEL)
            self._kernels[fingerprint] = kernel_of(arrays, fingerprint)
        return self._kernels[fingerprint]

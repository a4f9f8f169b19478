"""A span for each question and for the stages of its answer. Needs OpenTelemetry; imported where it is asked for.

Attributes are routes, statuses, sets, versions and numbers of samples: no addresses, no keys, no labels, no words of
errors.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import negindex
from negindex.stages import Stage

TRACED = "/v1/"  # what lies under this; health and figures are asked for too often
_CARRIED = (b"traceparent", b"tracestate")
_METHODS = ("GET", "POST")


def exporting() -> TracerProvider:
    """A provider that sends spans where the environment says (OTEL_EXPORTER_OTLP_ENDPOINT and the like)."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    named = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "negindex"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """Makes spans of what requests leave in ``scope["state"]["stages"]``, under the trace that the caller names."""

    def __init__(self, app: Any, provider: trace.TracerProvider) -> None:
        self._app, self._reader = app, TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("negindex", negindex.__version__)

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(TRACED):
            await self._app(scope, receive, send)
            return
        status = 0

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        carried = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _CARRIED}
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        with self._tracer.start_as_current_span(
            method, self._reader.extract(carried, Context()), SpanKind.SERVER, record_exception=False,
            set_status_on_exception=False,
        ) as span:  # fmt: skip
            try:
                await self._app(scope, receive, noted)
            finally:
                self._tell(span, scope, method, status or 500)

    def _tell(self, span: trace.Span, scope: MutableMapping[str, Any], method: str, status: int) -> None:
        route, state = getattr(scope.get("route"), "path", "none"), scope.get("state", {})
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        if "version" in state:  # then the set is there, and its name no word of the caller's
            said = {"set": scope["path_params"]["name"], "version": state["version"], "samples": state["samples"]}
            span.set_attributes({f"negindex.{name}": value for name, value in said.items()})
        self._tell_stages(state.get("stages", []))

    def _tell_stages(self, stages: list[Stage]) -> None:
        above: dict[str, Context] = {}
        for one in sorted(stages, key=lambda one: bool(one.within)):
            made = self._tracer.start_span(f"negindex.{one.name}", above.get(one.within), start_time=one.began)
            above[one.name] = trace.set_span_in_context(made)
            made.end(one.ended)

"""The trace that the caller is in, for questions that leave this process. Imports nothing that the caller has not."""

from __future__ import annotations

import sys


def trace_headers() -> dict[str, str]:
    """W3C trace context (traceparent, tracestate) of the span that is open here; {} where nobody traces.

    >>> trace_headers()
    {}
    """
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carried)
    return carried

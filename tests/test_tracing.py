"""Spans: a question's stages, under the caller's own trace, with nothing in them that is private."""

import http.client
import http.server
import subprocess
import sys
import threading
import time

import pytest
import torch
from mixtures import kernel
from mixtures import rows as grouped
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from serving import processes, serving
from small_sets import SHAPE, rows

from negindex import Collection, Exact, Mixture, NoiseLevel, RemoteNegatives
from negindex.errors import InvalidInput, UnknownVersion
from negindex.service.access import create_key
from negindex.service.run import check
from negindex.service.settings import Settings
from negindex.stages import listening
from negindex.traced import trace_headers

ASKED = "POST /v1/sets/{name}/posterior"
LEVEL = NoiseLevel(0.5, 0.5)


def spans_of(sampler=None):
    """A provider of spans, and what it was told."""
    told, provider = InMemorySpanExporter(), TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(told))
    return provider, told


def finished(told, count):
    """The spans that there are, once there are so many: one ends a moment after its answer."""
    end = time.monotonic() + 30
    while len(told.get_finished_spans()) < count and time.monotonic() < end:
        time.sleep(0.005)
    return told.get_finished_spans()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    with Collection.create(root / "a", SHAPE, "pixels") as made:
        made.add(rows(3), ["key-of-a", "key-of-b", "key-of-c"], label="a-label")
    key, kept = create_key(root, ["sampler"])
    provider, told = spans_of()
    with serving(root, spans=provider) as url:
        yield url, key, kept.id, told


@pytest.fixture
def told(service):
    service[3].clear()
    return service[3]


def test_a_question_is_a_span_of_the_callers_trace_with_its_stages_in_order(service, told):
    url, key, _, _ = service
    mine, own = spans_of()
    remote = RemoteNegatives(url, "a", key).pin()
    assert len(finished(told, 2)) == 2
    told.clear()
    with mine.get_tracer("a sampler").start_as_current_span("step") as step:
        remote.posterior(torch.ones(2, *SHAPE), LEVEL)
    named = {span.name: span for span in finished(told, 5)}
    assert named.keys() == {ASKED, *(f"negindex.{one}" for one in ("read", "wait", "search", "encode"))}
    asked = named.pop(ASKED)
    assert asked.kind == SpanKind.SERVER
    assert (asked.parent.span_id, asked.parent.is_remote) == (step.get_span_context().span_id, True)
    assert {span.context.trace_id for span in told.get_finished_spans()} == {step.get_span_context().trace_id}
    assert {span.parent.span_id for span in named.values()} == {asked.context.span_id}
    times = [(named[f"negindex.{one}"].start_time, named[f"negindex.{one}"].end_time) for one in ("search", "encode")]
    assert times[0][0] <= times[0][1] <= times[1][0] <= times[1][1]
    assert all(asked.start_time <= span.start_time <= span.end_time <= asked.end_time for span in named.values())
    assert dict(asked.attributes) == {
        "http.request.method": "POST", "http.route": "/v1/sets/{name}/posterior", "http.response.status_code": 200,
        "negindex.set": "a", "negindex.version": 1, "negindex.samples": 2,
    }  # fmt: skip
    assert [span.name for span in own.get_finished_spans()] == ["step"]


def test_a_caller_who_does_not_trace_sends_nothing_and_gets_a_trace_of_the_services_own(service, told):
    url, key, _, _ = service
    assert trace_headers() == {}
    RemoteNegatives(url, "a", key)
    (pinned,) = finished(told, 1)
    assert (pinned.name, pinned.parent) == ("GET /v1/sets/{name}", None)


def test_a_trace_that_is_not_kept_is_kept_nowhere(service, told):
    url, key, _, _ = service
    provider, _ = spans_of(ALWAYS_OFF)
    with provider.get_tracer("a sampler").start_as_current_span("step"):
        assert not int(trace_headers()["traceparent"].rpartition("-")[2], 16) & 1
        remote = RemoteNegatives(url, "a", key)
        remote.posterior(torch.ones(1, *SHAPE), LEVEL)
    remote.pin()
    (pinned,) = finished(told, 1)
    assert pinned.parent is None


@pytest.mark.parametrize(
    "hostile",
    ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-" + "a" * 32 + "-" + "b" * 16 + "-01", "x" * 9000],
)
def test_a_trace_that_is_none_is_not_taken_over(service, told, hostile):
    url, key, _, _ = service
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    headers = {"Authorization": f"Bearer {key}", "traceparent": hostile, "tracestate": "a=b", "baggage": "user=jane"}
    connection.request("GET", "/v1/sets/a", headers=headers)
    assert connection.getresponse().status == 200
    connection.close()
    (span,) = finished(told, 1)
    assert span.parent is None
    assert "jane" not in span.to_json()


def test_spans_hold_nothing_private_whatever_comes_of_the_question(service, told):
    url, key, number, _ = service
    remote = RemoteNegatives(url, "a", key)
    remote.where(label="a-label").posterior(torch.ones(1, *SHAPE), LEVEL)
    with pytest.raises(UnknownVersion):
        remote.at(99)
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    for path in ("/v1/sets/jane-roe", "/v1/sets/jane-roe/versions/x?label=jane-roe", "/v1/jane-roe", "/health/live"):
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        connection.getresponse().read()
    connection.request("PATCH", "/v1/sets")
    connection.getresponse().read()
    connection.request("JANE-ROE", "/v1/sets")  # no method that there is: no request either
    assert connection.getresponse().status == 400
    connection.close()
    spans = finished(told, 8 + 4)
    statuses = [span.attributes["http.response.status_code"] for span in spans if "http.route" in span.attributes]
    assert sorted(statuses) == [200, 200, 200, 404, 404, 404, 405, 422]
    words = " ".join(span.to_json() for span in spans)
    for private in ("jane-roe", "JANE-ROE", "a-label", "key-of", key, number, "127.0.0.1"):
        assert private not in words
    assert all(not span.events and span.status.description is None for span in spans)


def test_a_fault_of_the_service_is_marked(service, told, monkeypatch):
    url, key, _, _ = service

    def broken(*_):
        raise RuntimeError("key-of-a")

    monkeypatch.setattr("negindex.service.routes._about", broken)
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request("GET", "/v1/sets/a", headers={"Authorization": f"Bearer {key}"})
    assert connection.getresponse().status == 500
    connection.close()
    (span,) = finished(told, 1)
    assert span.status.status_code == StatusCode.ERROR
    assert "key-of-a" not in span.to_json()


def test_reading_rows_is_a_stage_within_the_search():
    given = grouped(400)
    mixture, heard = Mixture.build(Exact(given), kernel(given), scan_elements=0), []
    with listening(heard):
        mixture.posterior(given[:2].double(), NoiseLevel(1.0, 1.0), kernel=mixture.kernel)
    assert [(one.name, one.within) for one in heard] == [("gather", "search")]
    mixture.posterior(given[:2].double(), NoiseLevel(1.0, 1.0), kernel=mixture.kernel)
    assert len(heard) == 1


def test_without_being_asked_for_nothing_of_it_is_imported():
    """FastAPI loads OpenTelemetry's interface itself; what makes and sends spans it does not, and a client neither."""
    code = "import sys, negindex.client; assert 'opentelemetry' not in sys.modules; "
    code += "from negindex.service.app import make_app; from negindex.service.settings import Settings; "
    code += "make_app(Settings()); made = {'opentelemetry.sdk', 'opentelemetry.exporter', 'negindex.service.tracing'}; "
    code += "sys.exit(bool(made & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_its_packages_it_is_refused_before_anything_listens(tmp_path, monkeypatch):
    monkeypatch.setattr("negindex.service.run.find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"negindex\[otel\]"):
        check(Settings(root=tmp_path, traces=True))
    assert check(Settings(root=tmp_path)) is True


class _Sink(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.seen.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.timeout(600)
def test_the_command_sends_its_spans_where_the_environment_says(tmp_path):
    with Collection.create(tmp_path / "a", SHAPE, "pixels") as made:
        made.add(rows(3), ["a", "b", "c"])
    sink = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    sink.seen = []
    thread = threading.Thread(target=sink.serve_forever, daemon=True)
    thread.start()
    where = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.server_address[1]}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    }
    try:
        with processes(tmp_path, "--traces", **where) as (url, _):
            RemoteNegatives(url, "a", timeout=200).posterior(torch.ones(1, *SHAPE), LEVEL)
    finally:
        sink.shutdown()
        sink.server_close()
        thread.join(10)
    assert {path for path, _ in sink.seen} == {"/v1/traces"}
    sent = b"".join(body for _, body in sink.seen)
    assert b"negindex.search" in sent
    assert b"negindex.encode" in sent

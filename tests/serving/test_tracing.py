"""Traces: what a collector gets, and that one which is away costs no request."""

import http.client
import http.server
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from houses import BODY, HOUSE, JSON
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from processes import free_port, until
from servers import Server
from talk import post, running

from housing_mlops import __version__
from housing_mlops.config import Settings
from housing_mlops.serving.api import create_app
from housing_mlops.serving.tracing import open_tracing

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHOSEN = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@dataclass
class Collector:
    """What speaks OTLP over HTTP, and keeps what it is told."""

    port: int
    paths: list[str] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        for one in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(values(one.resource))
            self.spans += [span for scope in one.scope_spans for span in scope.spans]


def values(told: Any) -> dict[str, Any]:
    """Attributes by name."""
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in told.attributes
    }


@pytest.fixture
def collector() -> Iterator[Collector]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.take(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_collector_gets_a_span_for_each_request(
    home: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, collector.url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    with TestClient(create_app(Settings(home=home, max_body_bytes=2000))) as api:
        named = api.post("/predict", json=HOUSE, headers=CHOSEN).headers["x-request-id"]
        api.app.prices.fast_path = None
        answers = [api.post("/predict", json=HOUSE), api.post("/predict/batch", json=[HOUSE])]
        answers += [api.post("/predict", json={}), api.post("/predict", content=b" " * 3000)]
        api.app.service.model = None
        answers += [api.post("/predict", json=HOUSE), api.get("/livez"), api.get("/health")]
    assert [a.status_code for a in answers] == [200, 200, 422, 413, 503, 200, 503]
    assert {*collector.paths} == {"/v1/traces"}
    [resource] = {tuple(sorted(one.items())) for one in collector.resources}
    assert dict(resource).items() >= {
        *(("service.name", "housing-mlops"), ("service.version", __version__)),
        ("deployment.environment.name", "staging"),
    }
    first, *others = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, CALLER)
    assert first.name == "POST /predict" and first.kind == first.SPAN_KIND_SERVER
    assert values(first).items() >= {
        *(("http.route", "/predict"), ("http.response.status_code", 200)),
        *(("housing.model_version", "1"), ("housing.request_id", named)),
    }
    told = ("http.response.status_code", "housing.model_version", "housing.reason")
    assert [(s.name, *(values(s).get(key) for key in told)) for s in others] == [
        ("POST /predict", 200, "1", None),
        ("POST /predict/batch", 200, "1", None),
        ("POST /predict", 422, None, "invalid"),
        ("POST", 413, None, "too_large"),  # no route was asked
        ("POST /predict", 503, None, "no_model"),
    ]
    assert [s.status.code == s.status.STATUS_CODE_ERROR for s in others] == [False] * 4 + [True]
    assert not any(s.parent_span_id for s in others)


def test_a_price_at_the_socket_is_traced_too_and_the_caller_chooses(
    home: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, collector.url)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with running(home) as api:
        chosen = f"traceparent: 00-{TRACE}-{CALLER}-01".encode()
        for more in ([], [chosen], [b"traceparent: nonsense"]):
            assert [status for status, *_ in api.talk(post(BODY, *more))] == [200]
    [span] = collector.spans
    assert span.trace_id.hex() == TRACE and span.name == "POST /predict"


def test_nobody_is_told_where_nobody_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    app = create_app(Settings(home=home))
    assert app.service.tracing is None and type(app.gateway).__name__ == "StandardHeaders"


def test_an_extra_that_is_missing_is_told_and_stops_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.ERROR):
        assert open_tracing() is None
    assert "housing_mlops[otel]" in caplog.text


@pytest.mark.fault
def test_a_collector_that_is_away_costs_no_request(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with TestClient(create_app(Settings(home=home))) as api:
        assert {api.post("/predict", json=HOUSE).status_code for _ in range(50)} == {200}
    assert "Failed to export" in caplog.text


@pytest.mark.fault
@pytest.mark.process
def test_a_collector_that_says_nothing_holds_up_neither_requests_nor_the_end(
    serve: Callable[..., Server],
) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # it takes connections, and never says a word
        where = f"http://127.0.0.1:{listening.getsockname()[1]}"
        small = {"OTEL_BSP_MAX_QUEUE_SIZE": "320", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8"}
        small |= {"OTEL_EXPORTER_OTLP_TIMEOUT": "2", "OTEL_BSP_SCHEDULE_DELAY": "100"}
        server = serve(**{ENDPOINT: where}, **small)
        connection, statuses = http.client.HTTPConnection("127.0.0.1", server.port), set()
        for _ in range(400):
            connection.request("POST", "/predict", BODY, JSON)
            answer = connection.getresponse()
            answer.read()
            statuses.add(answer.status)
        connection.close()
        assert statuses == {200}
        until(lambda: server.get("/metrics")["log"]["stored"] == 400, what="all are stored")
        assert server.process is not None
        server.kill(15)
        assert server.process.returncode == 0, server.output.read_text()

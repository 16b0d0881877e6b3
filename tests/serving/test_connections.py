"""What clients that misbehave can do to the others: nothing."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from houses import BODY, HOUSE
from processes import until
from talk import Api, answers, post, running

from housing_mlops.serving.connections import SPARE

pytestmark = pytest.mark.fault
PROBE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def hurried(home: Path) -> Iterator[Api]:
    """An API that gives its clients half a second."""
    with running(home, log="off", deadline_s=0.5, max_connections=80) as api:
        yield api


def connect(api: Api) -> socket.socket:
    port = api.server.servers[0].sockets[0].getsockname()[1]
    return socket.create_connection(("127.0.0.1", port), timeout=20)


@pytest.mark.parametrize("part", [b"", b"POST /pre", post()[:90], post()[:-1]])
def test_half_sent_requests_keep_nobody_out(hurried: Api, part: bytes) -> None:
    hurried.service.settings.__dict__["max_in_progress"] = 5
    with ExitStack() as stack:
        lines = [stack.enter_context(connect(hurried)) for _ in range(60)]
        for line in lines:
            line.sendall(part)
        until(lambda: len(hurried.app.connections.lines) == 60)
        assert hurried.talk(post())[0][0] == 200
        assert hurried.talk(PROBE)[0][0] == 200
        for line in lines:  # each is told, and let go
            [(status, _, body)] = answers(b"".join(iter(lambda line=line: line.recv(4096), b"")))
            assert status == 408 and "too long" in json.loads(body)["detail"]
    until(lambda: not hurried.app.connections.lines and not hurried.app.reader.waiting)
    assert hurried.service.in_progress == 0


def test_beyond_the_bound_probes_are_answered_and_nothing_else(hurried: Api) -> None:
    with ExitStack() as stack:
        for _ in range(80):
            stack.enter_context(connect(hurried))
        until(lambda: len(hurried.app.connections.lines) == 80)
        assert hurried.talk(PROBE)[0][0] == 200
        [(status, headers, body)] = hurried.talk(post())
        assert status == 503 and headers[b"retry-after"] == b"1" and b"connections" in body
        assert hurried.service.counters.errors["connections"] == 1
        assert headers[b"x-request-id"] and headers[b"cache-control"] == b"no-store"
    until(lambda: not hurried.app.connections.lines)
    assert hurried.talk(post())[0][0] == 200


def test_one_address_has_a_bound_of_its_own_beyond_which_its_probes_are_answered(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "housing_mlops")
    with running(home, log="off", max_connections_of_one=3) as api, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(api)).sendall(PROBE)
        until(lambda: len(api.app.connections.lines) == 3)
        assert api.talk(PROBE)[0][0] == 200
        assert api.talk(post())[0][0] == 503
        assert api.service.counters.errors == {"connections": 1}
        assert api.service.counters.requests["other", 503].count == 1
        until(lambda: len(api.app.connections.lines) == 3)
        for _ in range(SPARE):
            stack.enter_context(connect(api)).sendall(PROBE)
        until(lambda: len(api.app.connections.lines) == 3 + SPARE)
        assert api.talk(PROBE)[0][0] == 503, "and not without end"
    lines = [json.loads(r.message) for r in caplog.records if r.name.endswith(".access")]
    told = [(line["path"], line["status"], line["client"], line["reason"]) for line in lines]
    assert told == [(path, 503, "127.0.0.1", "connections") for path in ("/predict", "")]
    began = [r for r in caplog.records if r.levelname == "ERROR"]
    assert len(began) == 1 and "HOUSING_MAX_CONNECTIONS" in began[0].getMessage()


def test_a_client_that_does_not_read_is_cut_off(hurried: Api) -> None:
    with connect(hurried) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        until(lambda: hurried.service.counters.errors.get("slow"))
    until(lambda: not hurried.app.connections.lines)
    assert hurried.talk(post())[0][0] == 200


@pytest.mark.parametrize("path", [b"/predict", b"/predict/batch", b"/nowhere"])
@pytest.mark.parametrize("http", ["1.1", "1.0"])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("half_closed", [False, True])
def test_the_headers_are_the_same_whichever_way(
    hurried: Api, path: bytes, http: str, split: bool, half_closed: bool
) -> None:
    body = BODY if path == b"/predict" else json.dumps([HOUSE]).encode()
    request = post(body, path=path, http=http)
    with connect(hurried) as line:
        line.sendall(request[:-9] if split else request)
        if split:
            time.sleep(0.02)
            line.sendall(request[-9:])
        if half_closed:
            line.shutdown(socket.SHUT_WR)
        received = b""
        while not (found := answers(received)) and (more := line.recv(4096)):
            received += more
    [(status, headers, _)] = found
    assert status == (404 if path == b"/nowhere" else 200)
    wanted = {b"content-type", b"content-length", b"date", b"x-request-id", b"cache-control"}
    wanted |= {b"x-content-type-options", b"x-frame-options", b"referrer-policy"}
    assert headers.keys() - {b"connection", b"server"} == wanted

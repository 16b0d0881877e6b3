"""What is answered at the socket: the same as elsewhere, and HTTP as uvicorn speaks it."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from test_api import HOUSE, bodies
from uvicorn.server import ServerState

from housing_mlops.config import Settings
from housing_mlops.prediction_log.journal import JournalError
from housing_mlops.prediction_log.queries import read_page
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.serving import api as serving
from housing_mlops.serving.fast_path import HousingAPI
from housing_mlops.serving.protocol import HousingProtocol
from housing_mlops.serving.service import Asked, Service

BODY = json.dumps(HOUSE).encode()
Answer = tuple[int, dict[bytes, bytes], bytes]


class Api:
    """An application behind uvicorn and its protocol; counts what became a task of the loop."""

    def __init__(self, app: HousingAPI) -> None:
        self.app, self.tasks = app, 0
        config = uvicorn.Config(
            self, http=HousingProtocol, port=0, log_level="warning", access_log=False
        )
        self.server = uvicorn.Server(config)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.tasks += scope["type"] == "http"
        await self.app(scope, receive, send)

    @property
    def service(self) -> Service:
        return self.app.service

    def talk(self, *parts: bytes, between: Callable[[], bool] | None = None) -> list[Answer]:
        """The answers to `parts`, each sent once `between` holds, on one connection."""
        port = self.server.servers[0].sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            end = time.monotonic() + 20
            for i, part in enumerate(parts):
                while i and between and not between():
                    assert time.monotonic() < end
                    time.sleep(0.001)
                line.sendall(part)
            said, wanted = b"", sum(p.count(b" HTTP/1.") for p in parts)
            while len(found := answers(said)) < wanted and (more := line.recv(1 << 16)):
                said += more
        return found


def answers(said: bytes) -> list[Answer]:
    """The whole answers in what a server sent; one that goes on (100) is none."""
    found = []
    while match := re.match(rb"HTTP/1.1 (\d+) .*?\r\n(.*?\r\n)??\r\n", said, re.DOTALL):
        lines = [line.split(b": ", 1) for line in (match[2] or b"").split(b"\r\n") if line]
        headers = {name.lower(): value for name, value in lines}
        length, said = int(headers.get(b"content-length", 0)), said[match.end() :]
        if match[1] != b"100":
            if len(said) < length:
                break
            found.append((int(match[1]), headers, said[:length]))
        said = said[length:]
    return found


def post(
    body: bytes = BODY, *headers: bytes, path: bytes = b"/predict", http: str = "1.1"
) -> bytes:
    first = b"POST %b HTTP/%b" % (path, http.encode())
    own = [b"Host: x", b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([first, *own, *headers, b"", body])


@contextmanager
def running(home: Path, **values: Any) -> Iterator[Api]:
    api = Api(serving.create_app(Settings(home=home, **values)))
    thread = threading.Thread(target=api.server.run)
    thread.start()
    try:
        while not api.server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield api
    finally:
        api.server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def home(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    install_bundle(bundles["Ridge"], "1", Settings(home=folder))
    return folder


@pytest.fixture(scope="module")
def shared(home: Path) -> Iterator[Api]:
    with running(home, max_batch=3, max_body_bytes=2_000) as api:
        yield api


@pytest.fixture
def api(shared: Api) -> Api:
    shared.tasks = 0
    return shared


def told(answer: Answer) -> tuple[int, Any]:
    said = json.loads(answer[2])
    for name in ("prediction_id", "latency_ms"):
        said.pop(name, None)
    return answer[0], said


def test_a_plain_request_needs_no_task_and_is_kept(api: Api) -> None:
    before = api.service.traffic.histogram("/predict", 200).count
    [(status, headers, body)] = api.talk(post())
    assert status == 200 and api.tasks == 0
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"date"] and b"connection" not in headers
    assert api.service.traffic.histogram("/predict", 200).count == before + 1
    assert api.service.log is not None and api.service.log.flush(5)
    assert (
        read_page(api.service.log.engine, limit=1).rows[0].id == json.loads(body)["prediction_id"]
    )


@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(body=bodies)
def test_the_answer_is_that_of_the_ordinary_route(api: Api, body: bytes) -> None:
    quick = api.service.quick
    [at_once] = api.talk(post(body))
    api.service.quick = None
    try:
        [ordinary] = api.talk(post(body))
    finally:
        api.service.quick = quick
    assert told(at_once) == told(ordinary)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(b"{"), 422),
        (post(BODY, path=b"/predict/batch"), 422),
        (post(b" " * 2_001), 413),
        (post(BODY, b"Origin: https://elsewhere.example"), 200),
        (post(BODY, b"Expect: 100-continue"), 200),
        (post().replace(b"application/json", b"application/json; charset=utf-8"), 200),
        (post().replace(b"POST", b"PUT"), 405),
    ],
)
def test_what_is_unusual_becomes_a_task(api: Api, request_: bytes, status: int) -> None:
    assert [a[0] for a in api.talk(request_)] == [status]
    assert api.tasks == 1


def test_a_body_that_comes_later_is_waited_for_by_a_task(api: Api) -> None:
    whole = post()
    for cut in (whole.index(b"\r\n\r\n") + 4, len(whole) - 1):
        api.tasks = 0
        parts = whole[:cut], whole[cut:]
        assert [a[0] for a in api.talk(*parts, between=lambda: api.tasks == 1)] == [200]
        assert api.tasks == 1
    api.tasks = 0
    assert [a[0] for a in api.talk(whole[:30], whole[30:])] == [200]
    assert api.tasks == 0  # the headers came late, and the body with them


def test_requests_in_a_row_are_answered_in_their_order(api: Api) -> None:
    houses = [HOUSE | {"RM": 5.0 + i} for i in range(3)]
    asked = [post(json.dumps(h).encode()) for h in houses]
    alone = [told(api.talk(a)[0]) for a in asked]
    assert [told(a) for a in api.talk(b"".join(asked))] == alone
    get = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    mixed = api.talk(asked[0] + get + post(b"{") + asked[1] + get)
    assert [a[0] for a in mixed] == [200, 200, 422, 200, 200]
    assert (told(mixed[0]), told(mixed[3])) == (alone[0], alone[1])
    cut = len(asked[1]) - 20  # the second is not whole when its turn comes
    late = api.talk(asked[0] + asked[1][:cut], asked[1][cut:] + asked[2])
    assert [told(a) for a in late] == alone
    late = api.talk(get + asked[1][:cut], asked[1][cut:] + asked[2])
    assert [told(a) for a in late[1:]] == alone[1:]


@pytest.mark.parametrize(
    "request_", [post(BODY, b"Connection: close"), post(http="1.0")], ids=["close", "1.0"]
)
def test_a_connection_that_is_to_end_ends(api: Api, request_: bytes) -> None:
    [(status, headers, _)] = api.talk(request_)
    assert (status, headers[b"connection"], api.tasks) == (200, b"close", 0)


def test_a_chunked_body_is_priced(api: Api) -> None:
    length = b"Content-Length: %d" % len(BODY)
    head = post().split(b"\r\n\r\n")[0].replace(length, b"Transfer-Encoding: chunked")
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (BODY[:50], BODY[50:]))
    assert [a[0] for a in api.talk(head + b"\r\n\r\n" + chunks + b"0\r\n\r\n")] == [200]
    refused = api.talk(head + b"\r\n\r\n" + b"5\r\n{\r\nno chunk")
    assert refused[0][0] == 400


def test_the_identifier_of_a_request_comes_back(api: Api) -> None:
    [(_, headers, _)] = api.talk(post(BODY, b"X-Request-ID: a b\tc\xffd"))
    assert headers[b"x-request-id"] == b"abcd"


def test_what_the_journal_refuses_is_a_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(records: list[bytes]) -> None:
        raise JournalError("the disk is full")

    assert api.service.log is not None
    monkeypatch.setattr(api.service.log.journal, "append_many", full)
    assert [a[0] for a in api.talk(post())] == [503]
    assert api.service.in_progress == 0


def test_requests_of_one_turn_are_priced_together(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, sizes = api.service.quick, []

    def slowly(asked: list[Asked]) -> list[bytes | None]:
        assert quick is not None
        sizes.append(len(asked))
        time.sleep(0.05)  # the others arrive meanwhile
        return quick(asked)

    monkeypatch.setattr(api.service, "quick", slowly)
    threads = [threading.Thread(target=api.talk, args=[post() * 3]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sizes) == 18 and max(sizes) > 1


@pytest.mark.parametrize(
    ("values", "headers", "statuses"),
    [
        ({"api_keys": "one,two"}, [], [401, 401]),
        ({"api_keys": "one,two"}, [b"X-API-Key: two"], [200, 200]),
        ({"rate_limit": "1/hour"}, [], [200, 429]),
        ({"max_in_progress": 1}, [], [503]),
        ({"log": "off", "access_log": "all"}, [], [200, 200]),
    ],
)
def test_guards_hold_here_too(
    home: Path,
    values: dict[str, Any],
    headers: list[bytes],
    statuses: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with running(home, **{"log": "off", **values}) as api:
        api.service.in_progress += statuses == [503]
        named = [b"X-Request-ID: request-%d" % i for i in range(len(statuses))]
        got = [api.talk(post(BODY, *headers, name))[0][0] for name in named]
        assert got == statuses
        assert (api.tasks == 0) is (statuses == [200, 200])
    # the other application of this process writes its lines too: the same request, told twice
    access = [r.getMessage() for r in caplog.records if r.name == "housing_mlops.access"]
    lines = {json.loads(line)["request_id"] for line in access}
    assert len(lines) == (2 if "access_log" in values or 401 in statuses else 0)


# --- what no client can be made to do on time: a transport of our own ----------------------------


class Transport:
    """What a protocol writes, kept."""

    def __init__(self) -> None:
        self.written, self.closed = b"", False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> None:
        return None

    def pause_reading(self) -> None:
        """There is nothing to read."""

    def resume_reading(self) -> None:
        """There is nothing to read."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers as the ordinary route would: with its own mark."""
    await receive()
    headers = [(b"content-length", b"8")]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": b"ordinary"})


@pytest.mark.parametrize(
    "event", ["nothing", "stop", "leave", "full", "no service", "no price", "crowd"]
)
def test_what_happens_in_the_turn_of_a_request(tmp_path: Path, event: str) -> None:
    """The server is told to stop, the client leaves or does not read, in that very turn."""
    service, transport = Service(Settings(home=tmp_path, log="off")), Transport()
    service.quick = lambda asked: [None if event == "no price" else b"{}" for _ in asked]
    most = 1 if event == "crowd" else None
    config = uvicorn.Config(app, log_level="error", access_log=False, limit_concurrency=most)
    state = {} if event == "no service" else {"service": service}

    async def scenario() -> None:
        line = HousingProtocol(config, ServerState(), state)
        line.connection_made(cast("asyncio.Transport", transport))
        if event == "full":
            line.pause_writing()
        line.data_received(post())
        if event == "stop":
            line.shutdown()
        elif event == "leave":
            line.connection_lost(None)
        await asyncio.sleep(0)
        line.resume_writing()
        await asyncio.sleep(0.01)
        line.timeout_keep_alive_task and line.timeout_keep_alive_task.cancel()

    asyncio.run(scenario())
    service.pool.shutdown()
    ordinary = event in ("full", "no service", "no price")
    said = {"leave": b"", "crowd": b"Service Unavailable"}.get(event)
    said = said if said is not None else b"ordinary" if ordinary else b"{}"
    assert transport.written.endswith(said) and bool(transport.written) is bool(said)
    assert (b"connection: close" in transport.written) is (event in ("stop", "crowd"))
    assert transport.closed is (event in ("stop", "crowd", "leave"))
    assert service.in_progress == 0


def test_the_date_of_an_answer_goes_on(tmp_path: Path) -> None:
    service, transport = Service(Settings(home=tmp_path, log="off")), Transport()
    service.quick = lambda asked: [b"{}" for _ in asked]
    config, server = uvicorn.Config(app, access_log=False), ServerState()

    async def scenario() -> None:
        line = HousingProtocol(config, server, {"service": service})
        line.connection_made(cast("asyncio.Transport", transport))
        for date in (b"yesterday", b"today", b"today"):
            server.default_headers = [(b"date", date)]
            line.data_received(post())
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert line.timeout_keep_alive_task is not None
        line.timeout_keep_alive_task.cancel()

    asyncio.run(scenario())
    service.pool.shutdown()
    assert re.findall(rb"date: (\w+)", transport.written) == [b"yesterday", b"today", b"today"]


def test_a_request_whose_turn_comes_before_its_end_is_waited_for_by_a_task(tmp_path: Path) -> None:
    service, transport, server = (
        Service(Settings(home=tmp_path, log="off")),
        Transport(),
        ServerState(),
    )
    service.quick = lambda asked: [b"{}" for _ in asked]

    async def scenario() -> None:
        line = HousingProtocol(uvicorn.Config(app), server, {"service": service})
        line.connection_made(cast("asyncio.Transport", transport))
        line.data_received(post() + post()[:-5])
        assert not server.tasks
        await asyncio.sleep(0)
        assert transport.written.endswith(b"{}") and len(server.tasks) == 1
        line.data_received(post()[-5:])
        await asyncio.gather(*server.tasks)
        assert transport.written.endswith(b"ordinary")
        assert line.timeout_keep_alive_task is not None
        line.timeout_keep_alive_task.cancel()

    asyncio.run(scenario())
    service.pool.shutdown()

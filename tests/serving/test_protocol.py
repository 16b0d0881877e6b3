"""What is answered at the socket: the same as elsewhere, and HTTP as uvicorn speaks it."""

import asyncio
import errno
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from houses import BODY, HOUSE, bodies, comparable
from hypothesis import HealthCheck, given, settings
from processes import until
from talk import Answer, Api, post, running
from uvicorn.server import ServerState

from housing_mlops.config import Settings
from housing_mlops.prediction_log.journal import JournalError
from housing_mlops.prediction_log.queries import read_page
from housing_mlops.serving.fast_path import PriceQueue, PriceRequest, Turn
from housing_mlops.serving.protocol import HEAD_BYTES, KNOWN_HEADS, HousingProtocol
from housing_mlops.serving.server import http_protocol
from housing_mlops.serving.service import Service


@pytest.fixture(scope="module")
def shared(home: Path) -> Iterator[Api]:
    with running(home, max_batch=3, max_body_bytes=2_000) as api:
        yield api


@pytest.fixture
def api(shared: Api) -> Api:
    shared.tasks = 0
    return shared


def content(answer: Answer) -> tuple[int, Any]:
    """What two answers can be compared by."""
    return answer[0], comparable(answer[2])


def test_a_request_for_a_price_needs_no_task_and_is_logged(api: Api) -> None:
    before = api.service.counters.histogram("/predict", 200).count
    [(status, headers, body)] = api.talk(post())
    assert status == 200 and api.tasks == 0
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"date"] and b"connection" not in headers
    assert api.service.counters.histogram("/predict", 200).count == before + 1
    assert api.service.log is not None and api.service.log.flush(5)
    assert (
        read_page(api.service.log.engine, limit=1).rows[0].id == json.loads(body)["prediction_id"]
    )


on_many_bodies = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@on_many_bodies
@given(body=bodies)
def test_the_answer_is_that_of_the_fallback_route(api: Api, body: bytes) -> None:
    fast_path = api.prices.fast_path
    [at_once] = api.talk(post(body))
    api.prices.fast_path = None
    try:
        [fallback] = api.talk(post(body))
    finally:
        api.prices.fast_path = fast_path
    assert content(at_once) == content(fallback)


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


def padded(length: int) -> bytes:
    """A body of that length, if there can be one, which is priced."""
    return json.dumps(HOUSE, separators=(",", ":")).encode().ljust(length)


@pytest.fixture
def past_parser(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each of the requests that arrived whole went past the parser."""
    found: list[bool] = []
    price_known = HousingProtocol.price_known

    def noting(line: HousingProtocol, data: bytes, head: bytes, body: bytes) -> bool:
        found.append(price_known(line, data, head, body))
        return found[-1]

    monkeypatch.setattr(HousingProtocol, "price_known", noting)
    return found


@on_many_bodies
@given(body=bodies)
def test_a_known_head_changes_no_answer(api: Api, body: bytes) -> None:
    good = post(padded(len(body)))
    before, known, after = api.talk(good, post(body), good, in_turn=True)
    fast_path, api.prices.fast_path = api.prices.fast_path, None
    try:
        [fallback] = api.talk(post(body))
    finally:
        api.prices.fast_path = fast_path
    assert content(known) == content(fallback)
    assert content(before) == content(after) and before[0] == 200


def test_a_known_head_goes_past_the_parser(api: Api, past_parser: list[bool]) -> None:
    bodies_ = [padded(300), padded(300).replace(b"6", b"7"), b"{".ljust(300), padded(300)]
    got = api.talk(*(post(body) for body in bodies_), in_turn=True)
    assert [a[0] for a in got] == [200, 200, 422, 200] and api.tasks == 1
    assert past_parser == [False, True, True, True]
    assert len({a[1][b"x-request-id"] for a in got}) == 4
    assert got[0][2] != got[1][2] and content(got[0]) == content(got[3])
    good = post(padded(300))
    assert [a[0] for a in api.talk(good, good + good, good, in_turn=True)] == [200] * 4
    assert past_parser[4:] == [False, False, True]


@pytest.mark.parametrize(
    "headers",
    [
        [b"X-Request-ID: mine"],
        [b"Expect: 100-continue"],
        [b"Upgrade: h2c"],
        [b"X-Long: " + b"a" * HEAD_BYTES],
    ],
    ids=lambda headers: headers[0][:8].decode(),
)
def test_a_particular_head_is_read_each_time(
    api: Api, past_parser: list[bool], headers: list[bytes]
) -> None:
    got = api.talk(post(BODY, *headers), post(BODY, *headers), in_turn=True)
    assert [a[0] for a in got] == [200, 200] and not any(past_parser)


@pytest.mark.parametrize("cut", [9, -9], ids=["head", "body"])
def test_what_comes_in_pieces_is_not_remembered(
    state: dict[str, Any], past_parser: list[bool], cut: int
) -> None:
    transport, whole = Transport(), post()

    async def scenario() -> None:
        with connected(state, ServerState(), transport) as line:
            for parts in ([whole[:cut], whole[cut:]], [whole], [whole]):
                for part in parts:
                    line.data_received(part)
                await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert transport.written.count(b"HTTP/1.1 20") == 3
    assert past_parser == [False] * (1 + (cut < 0)) + [True]


def test_a_key_that_is_taken_back_opens_nothing_on_a_known_head(
    home: Path, past_parser: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(home, log="off", api_keys="one") as api:
        keyed = post(BODY, b"X-API-Key: one")

        def taken_back() -> bool:
            api.service.keys._holders = {}
            return True

        got = api.talk(keyed, keyed, in_turn=True)
        assert [a[0] for a in got] == [200, 200] and past_parser == [False, True]
        got = api.talk(keyed, keyed, between=taken_back, in_turn=True)
        assert [a[0] for a in got] == [200, 401] and past_parser[2:] == [False, False]


def test_what_comes_before_an_answer_waits_its_turn(state: dict[str, Any]) -> None:
    """Three requests in one turn, on a connection that knows the head."""
    transport = Transport()
    state["prices"].fast_path = lambda requests: Turn(
        [None if b"none" in r.body else r.body[:2] for r in requests]
    )
    bodies_ = [b"%b%b" % (name, b" " * 8) for name in (b"{}", b"[]", b"none", b"()")]
    posts = [post(body[:10].ljust(10)) for body in bodies_]

    async def scenario() -> None:
        with connected(state, ServerState(), transport) as line:
            line.data_received(posts[0])
            await asyncio.sleep(0.01)
            line.data_received(posts[1])
            line.data_received(posts[2][:40])
            line.data_received(posts[2][40:] + posts[3])
            await asyncio.sleep(0.05)

    asyncio.run(scenario())
    told = re.findall(rb"\r\n\r\n(\{\}|\[\]|\(\)|fallback)", transport.written)
    assert told == [b"{}", b"[]", b"fallback", b"()"]


@pytest.mark.parametrize("priced", [True, False])
def test_what_a_client_sent_before_it_left_is_not_read(state: dict[str, Any], priced: bool) -> None:
    transport, asked, faults = Transport(), [], []

    def price(requests: list[PriceRequest]) -> Turn:
        asked.append(len(requests))
        return Turn([b"{}" if priced or len(asked) == 1 else None for _ in requests])

    state["prices"].fast_path = price

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: faults.append(told))
        with connected(state, ServerState(), transport) as line:
            line.data_received(post())
            await asyncio.sleep(0.01)
            line.data_received(post())
            line.data_received(post())
            line.connection_lost(None)
            await asyncio.sleep(0.05)

    asyncio.run(scenario())
    assert asked == [1, 1] and transport.written.count(b"HTTP/1.1 200") == 1 and not faults


def test_a_connection_remembers_few_heads(api: Api, past_parser: list[bool]) -> None:
    odd = [post(BODY, b"X-Client-Id: %d" % i) for i in range(KNOWN_HEADS + 1)]
    got = api.talk(*odd, odd[0], odd[-1], in_turn=True)
    assert {a[0] for a in got} == {200} and past_parser[-2:] == [False, True]


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
    posts = [post(json.dumps(h).encode()) for h in houses]
    alone = [content(api.talk(a)[0]) for a in posts]
    assert [content(a) for a in api.talk(b"".join(posts))] == alone
    get = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    mixed = api.talk(posts[0] + get + post(b"{") + posts[1] + get)
    assert [a[0] for a in mixed] == [200, 200, 422, 200, 200]
    assert (content(mixed[0]), content(mixed[3])) == (alone[0], alone[1])
    cut = len(posts[1]) - 20  # the second is not whole when its turn comes
    late = api.talk(posts[0] + posts[1][:cut], posts[1][cut:] + posts[2])
    assert [content(a) for a in late] == alone
    late = api.talk(get + posts[1][:cut], posts[1][cut:] + posts[2])
    assert [content(a) for a in late[1:]] == alone[1:]


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
    fast_path, sizes = api.prices.fast_path, []

    def slowly(requests: list[PriceRequest]) -> Turn:
        assert fast_path is not None
        sizes.append(len(requests))
        time.sleep(0.05)  # the others arrive meanwhile
        return fast_path(requests)

    monkeypatch.setattr(api.prices, "fast_path", slowly)
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
    errors = sum(status >= 400 for status in statuses)
    assert len(lines) == (2 if "access_log" in values else errors)


def test_uvicorn_serves_the_same_by_a_protocol_of_its_own(home: Path, api: Api) -> None:
    [ours] = api.talk(post())
    assert http_protocol("0.1") == "auto"
    with running(home, http="auto", log="off") as plain:
        answered = plain.talk(post(BODY, b"X-Request-ID: named"), post(b"{"))
        assert content(answered[0]) == content(ours) and answered[1][0] == 422
        assert answered[0][1][b"x-request-id"] == b"named" and plain.tasks == 2


# --- what no client can be made to do on time: a transport of our own ----------------------------


class Transport:
    """Collects what a protocol writes."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.written, self.closed, self.address = b"", False, address

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return (self.address, 8000) if name == "sockname" else None

    def pause_reading(self) -> None:
        """There is nothing to read."""

    def resume_reading(self) -> None:
        """There is nothing to read."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers as the fallback route would: with its own mark."""
    await receive()
    headers = [(b"content-length", b"8")]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": b"fallback"})


@pytest.fixture
def state(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What the lifespan of an application hands over; every price is an empty object."""
    service, prices = Service(Settings(home=tmp_path, log="off")), PriceQueue()
    prices.fast_path = lambda requests: Turn([b"{}" for _ in requests])
    yield {"service": service, "prices": prices}
    assert service.in_progress == 0
    service.pool.shutdown()


@contextmanager
def connected(
    state: dict[str, Any], server: ServerState, transport: Transport, **options: Any
) -> Iterator[HousingProtocol]:
    """A protocol with a client; to be used in an event loop."""
    config = uvicorn.Config(app, log_level="error", access_log=False, **options)
    line = HousingProtocol(config, server, state)
    line.connection_made(cast("asyncio.Transport", transport))
    yield line
    if line.timeout_keep_alive_task is not None:
        line.timeout_keep_alive_task.cancel()


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize(
    "event", ["nothing", "stop", "leave", "full", "no service", "no price", "crowd"]
)
def test_what_happens_in_the_turn_of_a_request(
    state: dict[str, Any], event: str, known: bool
) -> None:
    """The server is told to stop, the client leaves or does not read, in that very turn."""
    transport, most = Transport(), 1 if event == "crowd" else None
    left = {} if event == "no service" else state

    async def scenario() -> None:
        with connected(left, ServerState(), transport, limit_concurrency=most) as line:
            if known and event not in ("crowd", "no service"):
                line.data_received(post())
                await asyncio.sleep(0.01)
                assert transport.written.endswith(b"{}") and len(line._known) == 1
                transport.written = b""
            if event == "no price":
                state["prices"].fast_path = lambda requests: Turn([None] * len(requests))
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

    asyncio.run(scenario())
    fallback = event in ("full", "no service", "no price")
    end = {"leave": b"", "crowd": b"Service Unavailable"}.get(event)
    end = end if end is not None else b"fallback" if fallback else b"{}"
    assert transport.written.endswith(end) and bool(transport.written) is bool(end)
    assert (b"connection: close" in transport.written) is (event in ("stop", "crowd"))
    assert transport.closed is (event in ("stop", "crowd", "leave"))


@pytest.mark.parametrize(("address", "end"), [("127.0.0.1", b"{}"), ("192.0.2.1", b"fallback")])
def test_where_anyone_could_ask_the_gateway_decides(
    state: dict[str, Any], address: str, end: bytes
) -> None:
    transport = Transport(address)

    async def scenario() -> None:
        with connected(state, ServerState(), transport) as line:
            line.data_received(post())
            await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert transport.written.endswith(end)


def test_the_date_of_an_answer_goes_on(state: dict[str, Any]) -> None:
    transport, server = Transport(), ServerState()

    async def scenario() -> None:
        with connected(state, server, transport) as line:
            for date in (b"yesterday", b"today", b"today"):
                server.default_headers = [(b"date", date)]
                line.data_received(post())
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert re.findall(rb"date: (\w+)", transport.written) == [b"yesterday", b"today", b"today"]


def test_a_request_whose_turn_comes_before_its_end_is_waited_for_by_a_task(
    state: dict[str, Any],
) -> None:
    transport, server = Transport(), ServerState()

    async def scenario() -> None:
        with connected(state, server, transport) as line:
            line.data_received(post() + post()[:-5])
            assert not server.tasks
            await asyncio.sleep(0)
            assert transport.written.endswith(b"{}") and len(server.tasks) == 1
            line.data_received(post()[-5:])
            await asyncio.gather(*server.tasks)
            assert transport.written.endswith(b"fallback")

    asyncio.run(scenario())


@pytest.mark.fault
@pytest.mark.parametrize("http", ["", "httptools"])
def test_at_level_always_a_price_leaves_when_it_is_on_disk(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, http: str
) -> None:
    place = {"journal_dir": tmp_path / "journal", "database_url": f"sqlite:///{tmp_path}/p.db"}
    with running(home, http, durability="always", **place) as api:
        log = api.service.log
        assert log is not None
        flushes: list[int] = []
        real = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", lambda fd: (flushes.append(fd), real(fd)))
        batch = post(b"[%b,%b]" % (BODY, BODY), path=b"/predict/batch")
        fallback = post(BODY, b"Origin: https://elsewhere.example")
        for request in (post(), fallback, batch):
            before = len(flushes)
            assert [a[0] for a in api.talk(request)] == [200]
            segment = log.journal.rotation.active
            assert len(flushes) > before and segment and segment.flushed == segment.size
        with monkeypatch.context() as patched:

            def broken(fd: int) -> None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            patched.setattr(os, "fdatasync", broken)
            counters = api.service.counters
            prices, latencies = counters.version("1"), counters.histogram("/predict", 200)
            before = prices.count, latencies.count
            for request in (post(), post(), fallback, batch):
                [(status, _, body)] = api.talk(request)
                assert status == 503 and b"flushed to disk" in body
            assert (prices.count, latencies.count) == before
            [(status, _, body)] = api.talk(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status == 503 and b"flushed to disk" in body
        until(lambda: [a[0] for a in api.talk(post())] == [200])
        assert api.service.in_progress == 0
        assert [a[0] for a in api.talk(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")] == [200]

"""A page of history over a real connection: sent while it is read, cut off when that ends, never whole in memory."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from houses import HOUSE
from processes import until
from talk import Api, running

from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.record import LogUnavailable, Record, encode_record, new_id
from housing_mlops.serving import history

ROWS = 1_000


def priced(at: int) -> bytes:
    """A record of a house that was priced at a time in microseconds."""
    told = (20.0, 16.0, 24.0, 0.2, "/predict", "", json.dumps(HOUSE))
    return encode_record(Record(new_id(), at, "Ridge", "1", *told))


@pytest.fixture
def api(home: Path, tmp_path: Path) -> Iterator[Api]:
    own = f"sqlite:///{tmp_path / 'predictions.db'}"
    with running(home, database_url=own, registry_poll_s=0) as api:
        until(lambda: api.service.log.state.connected)
        now = time.time_ns() // 1000
        insert(api.service.log.engine, [priced(now - i * 10**6) for i in range(1, ROWS + 1)])
        yield api


def connect(api: Api, room: int = 0) -> socket.socket:
    """A line with a request for everything on its way; `room`: bytes that the client's side holds."""
    line = socket.socket()
    if room:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    line.settimeout(20)
    line.connect(api.server.servers[0].sockets[0].getsockname())
    line.sendall(b"GET /monitoring/predictions?limit=10000 HTTP/1.1\r\nHost: x\r\n\r\n")
    return line


def receive(line: socket.socket) -> bytes:
    """All that comes until the answer or the connection ends."""
    received = b""
    while not received.endswith(b"0\r\n\r\n") and (more := line.recv(1 << 16)):
        received += more
    return received


class Reads:
    """`read_part`, which notes when it is called, and may do something before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.before: dict[int, Any] = {}  # what to do before the n-th call
        self.read = history.read_part
        monkeypatch.setattr(history, "read_part", self)

    def __call__(self, *asked: Any) -> history.Part:
        self.before.get(len(self.sizes), int)()
        part = self.read(*asked)
        self.sizes.append(len(part.rows))
        return part


def test_a_page_is_read_in_parts(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    with connect(api) as line:
        head, _, _ = receive(line).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head and b"content-length" not in head
    assert reads.sizes == [history.PAGE_PART] * (ROWS // history.PAGE_PART)


def test_a_page_whose_database_goes_away_is_cut_off(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)

    def away() -> None:
        raise LogUnavailable("away")

    reads.before[3] = away
    with connect(api) as line:
        received = receive(line)
    assert received.startswith(b"HTTP/1.1 200") and reads.sizes == [history.PAGE_PART] * 3
    assert not received.endswith(b"0\r\n\r\n"), "whoever reads it knows that something is missing"
    reads.before.clear()
    with connect(api) as line:
        assert receive(line).endswith(b"0\r\n\r\n")


def test_a_client_that_does_not_read_holds_no_turn_and_no_page(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty of them: more than may ask the database at once."""
    reads = Reads(monkeypatch)
    api.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    lines = [connect(api, room=4096) for _ in range(20)]
    try:
        until(lambda: len(reads.sizes) >= 20)
        seen = -1
        while seen != (seen := sum(reads.sizes)):  # the system's own buffers are full
            time.sleep(0.2)
        assert seen < 20 * ROWS / 2
        with connect(api) as other:
            assert receive(other).endswith(b"0\r\n\r\n")
        assert "slow" not in api.service.counters.errors, "nobody had to be cut off for that"
    finally:
        for line in lines:
            line.close()
    until(lambda: not api.service.asking.locked())


def test_a_price_that_is_adopted_meanwhile_hides_no_other(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, middle = Reads(monkeypatch), time.time_ns() // 1000 - 200 * 10**6 + 5
    engine = api.service.log.engine
    reads.before[2] = lambda: insert(engine, [priced(middle + i) for i in range(70)])
    with connect(api) as line:
        _, _, body = receive(line).partition(b"\r\n\r\n")
    chunks, rest = [], body
    while size := int(rest.split(b"\r\n", 1)[0], 16):
        at = rest.index(b"\r\n") + 2
        chunks.append(rest[at : at + size])
        rest = rest[at + size + 2 :]
    page = json.loads(b"".join(chunks))
    times = [row["time"] for row in page["predictions"]]
    assert len(times) == ROWS + 70 and times == sorted(times, reverse=True)
    assert page["next"] is None

"""The API under what clients do: odd bodies, attacks, load, a new champion, and being told to stop."""

import asyncio
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from housing_mlops.config import Settings
from housing_mlops.data.table import load_table
from housing_mlops.model.inference import Model
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.schema import load_dataset
from housing_mlops.serving import api as serving
from housing_mlops.serving.service import Asked
from housing_mlops.training.candidates import candidates
from housing_mlops.training.export import export_bundle

BOSTON = load_dataset("boston")
HOUSE = BOSTON.example
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small models that price the same house differently."""
    table = load_table(BOSTON, Settings(data_path=None))
    X, y = model_input(BOSTON, table.features), table.prices
    found = {}
    for version, factor in (("1", 1.0), ("2", 2.0)):
        folder = tmp_path_factory.mktemp("bundles") / version
        model = candidates(["Ridge"])[0].build(BOSTON, 0).fit(X, y * factor)
        margin = {"coverage": 0.9, "half_width": 7.0}
        about = {"model": "Ridge", "parameters": {}, "metrics": {}, "interval": margin}
        export_bundle(folder, model, table, np.zeros(1), about)
        found[version] = folder
    return found


@pytest.fixture(scope="module")
def home(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    install_bundle(bundles["1"], "1", Settings(home=folder))
    return folder


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[TestClient]:
    app = serving.create_app(Settings(home=home, max_batch=3, max_body_bytes=2_000))
    with TestClient(app, raise_server_exceptions=False) as api:
        yield api


# --- the short way and the ordinary one ---------------------------------------------------------


def told(answer: httpx.Response) -> Any:
    said = answer.json()
    for name in ("prediction_id", "latency_ms"):
        said.pop(name, None)
    return said


def both(client: TestClient, body: bytes, headers: dict[str, str]) -> tuple[Any, Any, bool]:
    """Status and JSON by the short way, by the ordinary one, and whether the first was taken."""
    service = client.app.state.service
    quick, priced = service.quick, []

    def watched(asked: list[Asked]) -> list[bytes | None]:
        answers = quick(asked)
        priced.extend(a for a in answers if a is not None)
        return answers

    service.quick = watched
    short = client.post("/predict", content=body, headers=headers)
    service.quick = None
    long = client.post("/predict", content=body, headers=headers)
    service.quick = quick
    return (short.status_code, told(short)), (long.status_code, told(long)), bool(priced)


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([10**400, 1e308, -0.0, 5e-324, [], {}, [1], {"a": 1}]),
)
within = {
    f.name: st.floats(
        f.minimum if f.minimum is not None else -1e3, f.maximum if f.maximum is not None else 1e3
    ).map(round if f.type == "integer" else float)
    for f in BOSTON.used
}
house = st.fixed_dictionaries(within)
spoilt = st.tuples(house, st.dictionaries(st.sampled_from([*HOUSE, "POOL", ""]), odd, max_size=3))
text = st.builds(
    lambda said, indent, ascii_only: json.dumps(said, indent=indent, ensure_ascii=ascii_only),
    st.one_of(house, spoilt.map(lambda pair: {**pair[0], **pair[1]}), odd),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)


def broken(pair: tuple[str, int]) -> bytes:
    body, at = pair[0].encode("utf-8", "surrogatepass"), pair[1]
    return body[: at % (len(body) + 1)]


bodies = st.one_of(
    house.map(lambda h: json.dumps(h).encode()),
    text.map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.tuples(text, st.integers(0, 400)).map(broken),
    st.binary(max_size=40),
    st.sampled_from([*HOUSE]).map(  # a key that stands twice
        lambda name: json.dumps(HOUSE).encode()[:-1] + b', "%b": 1}' % name.encode()
    ),
)


@settings(
    max_examples=250,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    body=bodies,
    kind=st.sampled_from(["application/json"] * 8 + ["application/json; charset=utf-8", "text/x"]),
)
def test_both_ways_answer_alike(client: TestClient, body: bytes, kind: str) -> None:
    short, long, _ = both(client, body, {"Content-Type": kind})
    assert short == long


@pytest.mark.parametrize(
    ("body", "status", "quick"),
    [
        (json.dumps(HOUSE), 200, True),
        (json.dumps(HOUSE, indent="\t"), 200, True),
        (json.dumps(dict(reversed(HOUSE.items()))), 200, True),
        (json.dumps(HOUSE).replace("{", "{  ", 1), 200, True),
        (json.dumps(HOUSE)[:-1] + ', "RM": 6}', 422, False),
        (json.dumps(HOUSE).replace("6.5", "1e400", 1), 422, False),
        (json.dumps(HOUSE | {"RM": float("nan")}), 422, False),
        ("[" * 900, 422, False),
        (b'{"RM": "\xff"}', 422, False),
        (" " * 2_001, 413, False),
    ],
)
def test_the_short_way_is_taken_by_plain_houses(
    client: TestClient, body: str | bytes, status: int, quick: bool
) -> None:
    content = body if isinstance(body, bytes) else body.encode()
    short, long, taken = both(client, content, JSON)
    assert short == long and short[0] == status
    assert taken is quick


def test_many_at_once_are_answered_as_one_by_one(client: TestClient) -> None:
    service = client.app.state.service
    rng = random.Random(0)
    contents = [json.dumps(HOUSE | {"RM": 4 + rng.random()}).encode() for _ in range(40)]
    contents[3], contents[17] = b"{", json.dumps(HOUSE | {"RM": "six"}).encode()
    before = service.log.journal.rows_in
    asked = [Asked(c, b"r%d" % i, time.perf_counter()) for i, c in enumerate(contents)]
    together = service.quick(asked)
    assert service.log.journal.rows_in - before == 38
    assert [i for i, a in enumerate(together) if a is None] == [3, 17]
    identifiers = set()
    for one, answer in zip(asked, together, strict=True):
        [alone] = service.quick([one])
        if answer is None:
            assert alone is None
            continue
        mine, other = json.loads(answer), json.loads(alone)
        identifiers.add(mine["prediction_id"])
        assert mine["prediction"] == pytest.approx(other["prediction"], abs=1e-4)
    assert len(identifiers) == 38
    assert service.quick([asked[3]]) == [None]


def test_requests_of_one_turn_are_priced_together(client: TestClient) -> None:
    service, sizes = client.app.state.service, []
    quick = service.quick

    def counting(asked: list[Asked]) -> list[bytes | None]:
        sizes.append(len(asked))
        return quick(asked)

    async def ask() -> int:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": json.dumps(HOUSE).encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
        await client.app(scope, receive, send)
        return int(sent[0]["status"])

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(ask() for _ in range(10)))

    service.quick = counting
    try:
        assert asyncio.run(all_of_them()) == [200] * 10
    finally:
        service.quick = quick
    assert sizes == [10]


def test_a_failing_short_way_leaves_the_ordinary_one(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(asked: list[Asked]) -> list[bytes | None]:
        raise RuntimeError("made up")

    monkeypatch.setattr(client.app.state.service, "quick", fails)
    assert client.post("/predict", json=HOUSE).status_code == 200


def test_request_ids_come_back_on_both_ways(client: TestClient) -> None:
    given = JSON | {"X-Request-ID": "abc-1 <script>"}
    for body in (json.dumps(HOUSE), "{"):
        answer = client.post("/predict", content=body, headers=given)
        assert answer.headers["x-request-id"] == "abc-1script"
        assert answer.headers["x-content-type-options"] == "nosniff"


# --- keys, limits ---------------------------------------------------------------------------------


def test_keys_hold_on_both_ways(home: Path) -> None:
    with TestClient(serving.create_app(Settings(home=home, api_keys="old,new"))) as api:
        for headers, status in (
            ({}, 401),
            ({"X-API-Key": "bad"}, 401),
            ({"X-API-Key": "new"}, 200),
        ):
            body = json.dumps(HOUSE).encode()
            short, long, _ = both(api, body, JSON | headers)
            assert short == long and short[0] == status
            assert api.get("/monitoring/predictions", headers=headers).status_code == status
        assert api.get("/readyz").status_code == 200
        assert api.post("/admin/reload", headers={"X-API-Key": "new"}).status_code == 403
    with TestClient(serving.create_app(Settings(home=home, admin_keys="root"))) as api:
        assert api.post("/admin/reload", headers={"X-API-Key": "root"}).status_code == 200


def test_a_client_that_asks_too_often_waits(home: Path) -> None:
    pytest.importorskip("limits")
    limited = Settings(home=home, rate_limit="3/hour", api_keys="mine")
    with TestClient(serving.create_app(limited)) as api:
        mine = {"X-API-Key": "mine"}
        answers = [api.post("/predict", json=HOUSE, headers=mine) for _ in range(5)]
        assert [a.status_code for a in answers] == [200] * 3 + [429] * 2
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 3600
        guesses = [
            api.post("/predict", json=HOUSE, headers={"X-API-Key": f"k{i}"}) for i in range(5)
        ]
        assert [a.status_code for a in guesses] == [401] * 3 + [429] * 2
        assert {api.get(path).status_code for path in ("/livez", "/readyz", "/metrics")} == {200}

        async def fails(*_: Any) -> bool:
            raise ConnectionError("made up")

        api.app.state.service.limiter.strategy.hit = fails
        assert api.post("/predict", json=HOUSE, headers=mine).status_code == 200


def test_too_many_in_progress_are_told_to_come_back(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = client.app.state.service
    monkeypatch.setattr(service, "in_progress", service.settings.max_in_progress)
    answer = client.post("/predict", json=HOUSE)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_browsers_of_other_origins_are_not_let_in_unless_configured(home: Path) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    for allowed, header in (("", None), (origin["Origin"], origin["Origin"])):
        with TestClient(serving.create_app(Settings(home=home, cors_origins=allowed))) as api:
            for answer in (
                api.get("/readyz", headers=origin),
                api.post("/predict", json=HOUSE, headers=origin),
            ):
                assert answer.status_code == 200
                assert answer.headers.get("access-control-allow-origin") == header


def test_the_access_log_is_written_aside(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with TestClient(serving.create_app(Settings(home=home, access_log="all"))) as api:
        api.post("/predict", json=HOUSE, headers={"X-Request-ID": "seen"})
        api.get("/livez")
    lines = [json.loads(r.message) for r in caplog.records if r.name.endswith(".access")]
    assert {line["path"] for line in lines} == {"/predict", "/livez"}
    assert lines[0]["request_id"] == "seen" and lines[0]["status"] == 200


# --- a real server --------------------------------------------------------------------------------


@contextmanager
def server(home: Path, **env: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server in its own process, ready to price."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-c", "from housing_mlops.cli import app; app()", "serve"]
    told = {"HOUSING_HOME": str(home)} | {f"HOUSING_{k.upper()}": v for k, v in env.items()}
    process = subprocess.Popen([*command, "--port", str(port)], env=os.environ | told)
    try:
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None
            time.sleep(0.05)
        yield process, port
    finally:
        process.terminate()  # an end like any other, so that coverage is told of it
        try:
            process.wait(30)
        finally:
            process.kill()


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def framed(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


@asynccontextmanager
async def line(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def request(port: int, body: bytes, pause: float = 0) -> tuple[int, bytes]:
    """Status and body of one answer, on a connection of its own; `pause` after every byte."""
    async with line(port) as (reader, writer):
        if not pause:
            writer.write(framed(body))
            return await answer(reader)
        said = asyncio.create_task(answer(reader))
        start = len(framed(body)) - len(body)
        writer.write(framed(body)[:start])
        for i in range(len(body)):
            if said.done():
                break
            writer.write(body[i : i + 1])
            await asyncio.sleep(pause)
        return await said


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


@pytest.mark.process
def test_the_others_are_served_meanwhile(home: Path) -> None:
    body = json.dumps(HOUSE).encode()
    attacks = [
        (b"x" * 10_000_000, {413}),
        (b"[" * 10_000, {422}),
        (b'{"RM": "\xff\xfe"}', {422}),
        (body[:-1] + b', "RM": 6}', {422}),
        (json.dumps(HOUSE).replace("6.5", "1e400", 1).encode(), {422}),
        (json.dumps(HOUSE | {"RM": float("nan")}).encode(), {422}),
    ]

    async def all_of_them(port: int) -> None:
        slow = asyncio.create_task(request(port, body, pause=0.3))
        for attack, statuses in attacks:
            bad, *good = await asyncio.gather(
                request(port, attack), *(request(port, body) for _ in range(5))
            )
            assert bad[0] in statuses, (attack[:30], bad)
            assert json.loads(bad[1])["detail"]
            assert {status for status, _ in good} == {200}
        status, said = await slow
        assert status == 408 and b"too long" in said

    with server(home, deadline_s="1.5") as (_, port):
        asyncio.run(asyncio.wait_for(all_of_them(port), 60))


def prices(bundles: dict[str, Path], houses: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What each version asks for each house."""
    rows = [[h[c] for c in BOSTON.columns] for h in houses]
    return {v: Model.open(b, v).quote(rows).prices.tolist() for v, b in bundles.items()}


@pytest.mark.process
def test_a_new_champion_under_load(bundles: dict[str, Path], tmp_path: Path) -> None:
    mine = Settings(home=tmp_path)
    install_bundle(bundles["1"], "1", mine)
    houses = [HOUSE | {"RM": 4.0 + i / 10} for i in range(20)]
    wanted = prices(bundles, houses)
    versions: set[str] = set()

    async def keep_asking(port: int, until: asyncio.Event, seed: int) -> None:
        rng = random.Random(seed)
        async with line(port) as (reader, writer):
            while not until.is_set():
                i = rng.randrange(len(houses))
                writer.write(framed(json.dumps(houses[i]).encode()))
                check(i, *await answer(reader))

    def check(i: int, status: int, text: bytes) -> None:
        assert status == 200, text
        said = json.loads(text)
        versions.add(said["model_version"])
        assert said["prediction"] == pytest.approx(wanted[said["model_version"]][i], rel=1e-5)

    async def serving_version(api: httpx.AsyncClient, version: str) -> None:
        while (await api.get("/readyz")).json()["model_version"] != version:
            await asyncio.sleep(0.02)

    async def all_of_it(port: int) -> None:
        until = asyncio.Event()
        load = [asyncio.create_task(keep_asking(port, until, i)) for i in range(32)]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as api:
            for n in range(10):
                version = "21"[n % 2]
                install_bundle(bundles[version], version, mine)
                await serving_version(api, version)
            pointer = tmp_path / "models" / "housing" / "champion.json"
            bad = pointer.parent / "3-bad"
            bad.mkdir()
            for file in bundles["2"].iterdir():
                (bad / file.name).write_bytes(file.read_bytes())
            with (bad / "model.onnx").open("ab") as file:
                file.write(b"tampered")
            pointer.write_text(json.dumps({"version": "3", "folder": bad.name}))
            while "damaged" not in (said := (await api.get("/health")).text):
                await asyncio.sleep(0.02)
            assert json.loads(said)["model_version"] == "1"
        until.set()
        await asyncio.gather(*load)

    with server(tmp_path, registry_poll_s="0.05") as (_, port):
        asyncio.run(asyncio.wait_for(all_of_it(port), 100))
    assert versions == {"1", "2"}


@pytest.mark.process
def test_told_to_stop_it_answers_what_it_accepted(bundles: dict[str, Path], tmp_path: Path) -> None:
    install_bundle(bundles["1"], "1", Settings(home=tmp_path))
    body, answered = json.dumps(HOUSE).encode(), []

    async def keep_asking(port: int) -> None:
        async with line(port) as (reader, writer):
            while True:
                try:
                    writer.write(framed(body))
                    first = await reader.read(1)
                except ConnectionError:
                    return
                if not first:  # closed between two requests: this one was never accepted
                    return
                status, text = await answer(reader)  # an answer that was begun is whole
                assert status == 200
                answered.append(json.loads(text)["prediction_id"])

    async def all_of_it(process: subprocess.Popen[bytes], port: int) -> None:
        load = [asyncio.create_task(keep_asking(port)) for _ in range(16)]
        await asyncio.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        await asyncio.gather(*load)

    with server(tmp_path) as (process, port):
        asyncio.run(asyncio.wait_for(all_of_it(process, port), 60))
        assert process.wait(30) == 0
    with closing(sqlite3.connect(tmp_path / "predictions.db")) as database:
        kept = {i for (i,) in database.execute("SELECT id FROM predictions")}
    assert answered and len(set(answered)) == len(answered)
    assert set(answered) <= kept
    assert len(kept) - len(answered) <= 16  # accepted, and the client was gone before the answer


# --- the OpenAPI document is kept to --------------------------------------------------------------


@pytest.mark.process
def test_every_answer_is_documented(home: Path) -> None:
    with server(home, max_body_bytes="20000") as (_, port):
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) >= 12
        for operation in operations:

            @settings(
                max_examples=15,
                derandomize=True,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def answers_as_documented(case: schemathesis.Case) -> None:
                case.call_and_validate(timeout=30)

            answers_as_documented()

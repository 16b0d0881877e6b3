"""A server in a process of its own: attacks, load, a new champion, and being told to stop."""

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from houses import BODY, BOSTON, HOUSE
from hypothesis import HealthCheck, given, settings
from processes import free_port
from servers import Server

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.model.inference import Model
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.training.candidates import candidates
from housing_mlops.training.export import export_bundle

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def versions(table: Table, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small models that price the same house differently, by version."""
    X, y = model_input(BOSTON, table.features), table.prices
    found = {}
    for version, factor in (("1", 1.0), ("2", 2.0)):
        folder = tmp_path_factory.mktemp("bundles") / version
        model = candidates(["Ridge"])[0].build(BOSTON, 0).fit(X, y * factor)
        interval = {"coverage": 0.9, "half_width": 7.0}
        about = {"model": "Ridge", "parameters": {}, "metrics": {}, "interval": interval}
        export_bundle(folder, model, table, np.zeros(1), about)
        found[version] = folder
    return found


@contextmanager
def running(home: Path, **environment: str) -> Iterator[Server]:
    """A server, ready to price, and ended as any other."""
    named = {f"HOUSING_{name.upper()}": value for name, value in environment.items()}
    server = Server(home, named)
    try:
        yield server.start()
    finally:
        server.kill(signal.SIGTERM)  # so that coverage is told of it


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
        answered = asyncio.create_task(answer(reader))
        start = len(framed(body)) - len(body)
        writer.write(framed(body)[:start])
        for i in range(len(body)):
            if answered.done():
                break
            writer.write(body[i : i + 1])
            await asyncio.sleep(pause)
        return await answered


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


def test_the_others_are_served_meanwhile(home: Path) -> None:
    attacks = [
        (b"x" * 10_000_000, {413}),
        (b"[" * 10_000, {422}),
        (b'{"RM": "\xff\xfe"}', {422}),
        (BODY[:-1] + b', "RM": 6}', {422}),
        (json.dumps(HOUSE).replace("6.5", "1e400", 1).encode(), {422}),
        (json.dumps(HOUSE | {"RM": float("nan")}).encode(), {422}),
    ]

    async def all_of_them(port: int) -> None:
        slow = asyncio.create_task(request(port, BODY, pause=0.3))
        for attack, statuses in attacks:
            bad, *good = await asyncio.gather(
                request(port, attack), *(request(port, BODY) for _ in range(5))
            )
            assert bad[0] in statuses, (attack[:30], bad)
            assert json.loads(bad[1])["detail"]
            assert {status for status, _ in good} == {200}
        status, text = await slow
        assert status == 408 and b"too long" in text

    with running(home, deadline_s="1.5") as server:
        asyncio.run(asyncio.wait_for(all_of_them(server.port), 60))


def prices(versions: dict[str, Path], houses: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What each version asks for each house."""
    rows = [[h[c] for c in BOSTON.columns] for h in houses]
    return {v: Model.open(b, v).quote(rows).prices.tolist() for v, b in versions.items()}


def test_a_new_champion_under_load(versions: dict[str, Path], tmp_path: Path) -> None:
    mine = Settings(home=tmp_path)
    install_bundle(versions["1"], "1", mine)
    houses = [HOUSE | {"RM": 4.0 + i / 10} for i in range(20)]
    wanted = prices(versions, houses)
    served: set[str] = set()

    async def keep_asking(port: int, until: asyncio.Event, seed: int) -> None:
        rng = random.Random(seed)
        async with line(port) as (reader, writer):
            while not until.is_set():
                i = rng.randrange(len(houses))
                writer.write(framed(json.dumps(houses[i]).encode()))
                check(i, *await answer(reader))

    def check(i: int, status: int, text: bytes) -> None:
        assert status == 200, text
        payload = json.loads(text)
        served.add(payload["model_version"])
        assert payload["prediction"] == pytest.approx(wanted[payload["model_version"]][i], rel=1e-5)

    async def serving_version(api: httpx.AsyncClient, version: str) -> None:
        while (await api.get("/readyz")).json()["model_version"] != version:
            await asyncio.sleep(0.02)

    async def all_of_it(port: int) -> None:
        until = asyncio.Event()
        load = [asyncio.create_task(keep_asking(port, until, i)) for i in range(32)]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as api:
            for n in range(10):
                version = "21"[n % 2]
                install_bundle(versions[version], version, mine)
                await serving_version(api, version)
            pointer = tmp_path / "models" / "housing" / "champion.json"
            bad = pointer.parent / "3-bad"
            bad.mkdir()
            for file in versions["2"].iterdir():
                (bad / file.name).write_bytes(file.read_bytes())
            with (bad / "model.onnx").open("ab") as file:
                file.write(b"tampered")
            pointer.write_text(json.dumps({"version": "3", "folder": bad.name}))
            while "damaged" not in (health := (await api.get("/health")).text):
                await asyncio.sleep(0.02)
            assert json.loads(health)["model_version"] == "1"
        until.set()
        await asyncio.gather(*load)

    with running(tmp_path, registry_poll_s="0.05") as server:
        asyncio.run(asyncio.wait_for(all_of_it(server.port), 100))
    assert served == {"1", "2"}


def test_told_to_stop_it_answers_what_it_accepted(
    versions: dict[str, Path], tmp_path: Path
) -> None:
    install_bundle(versions["1"], "1", Settings(home=tmp_path))
    answered: list[str] = []

    async def keep_asking(port: int) -> None:
        async with line(port) as (reader, writer):
            while True:
                try:
                    writer.write(framed(BODY))
                    first = await reader.read(1)
                except ConnectionError:
                    return
                if not first:  # closed between two requests: this one was never accepted
                    return
                status, text = await answer(reader)  # an answer that was begun is whole
                assert status == 200
                answered.append(json.loads(text)["prediction_id"])

    async def all_of_it(server: Server) -> None:
        load = [asyncio.create_task(keep_asking(server.port)) for _ in range(16)]
        while len(answered) < 500:
            await asyncio.sleep(0.01)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*load)

    with running(tmp_path) as server:
        asyncio.run(asyncio.wait_for(all_of_it(server), 60))
        assert server.process is not None and server.process.wait(30) == 0
    with closing(sqlite3.connect(tmp_path / "predictions.db")) as database:
        kept = {i for (i,) in database.execute("SELECT id FROM predictions")}
    assert answered and len(set(answered)) == len(answered)
    assert set(answered) <= kept
    assert len(kept) - len(answered) <= 16  # accepted, and the client was gone before the answer


def test_every_answer_is_documented(home: Path) -> None:
    with running(home, max_body_bytes="20000") as server:
        schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
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


def test_a_uvicorn_that_was_not_tried_serves_by_its_own_protocol() -> None:
    code = """
import uvicorn
from housing_mlops.cli import app
from housing_mlops.serving import server

server.TESTED = ("0.1",)
uvicorn.run = lambda *args, http, **options: print(http)
app()
"""
    command = [sys.executable, "-c", code, "serve", "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "auto\n"
    line = json.loads(done.stderr)
    assert line["level"] == "warning" and "was not tried" in line["message"]

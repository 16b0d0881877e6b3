"""What reasons cost, how near they come, and whether prices wait for them.

Fifty houses of the embedded table, over HTTP and to the last digit, judged by all 8,192 coalitions.
Then a steady stream of requests for prices to a server on one core, by turns alone and beside 64
explanations that are asked for at once, again and again; medians over the rounds are told.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from champion import BOSTON, houses, make
from serving import API, UVICORN, Server, start

from housing_mlops.config import Settings
from housing_mlops.model.explanation import as_told, basis_of, contributions, explain
from housing_mlops.model.inference import Model, to_tensors
from housing_mlops.registry.shelf import install_bundle

HEAD = "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


def check(model: Model, count: int) -> None:
    """Explain `count` houses in this process: their sums, their errors, their cost; printed."""
    rows = [[*house.values()] for house in houses()][:: 506 // count][:count]
    other = to_tensors(BOSTON, [[*basis_of(model).house.values()]])
    begun = time.process_time()
    told = [explain(model, row) for row in rows]
    each = 1e3 * (time.process_time() - begun) / count
    off, large, agree, order = [], 0, 0, 0
    for row, one in zip(rows, told, strict=True):
        parts = [Decimal(repr(r.contribution)) for r in one.reasons]
        assert sum(parts) == Decimal(repr(one.price)) - Decimal(repr(one.base)), one
        told_price = as_told(model.band, model.price)
        exact, _ = contributions(told_price, to_tensors(BOSTON, [row]), other, 2**13)
        judge = dict(zip(BOSTON.columns, exact.tolist(), strict=True))
        off.append(max(abs(r.contribution - judge[r.feature]) for r in one.reasons))
        mine = [r for r in one.reasons if abs(r.contribution) >= 0.5]
        large += len(mine)
        agree += sum(r.contribution * judge[r.feature] > 0 for r in mine)
        judged = sorted(judge, key=lambda name: -abs(judge[name]))[: len(mine)]
        order += [r.feature for r in mine] == judged
    calls = statistics.median(one.calls for one in told)
    print(f"{count} houses: every sum is exact to the last digit")
    print(f"processor time {each:.1f} ms each, {calls:.0f} calls of the model (median)")
    unit = BOSTON.target.unit
    print(f"largest error of a contribution ({unit}): {statistics.median(off):.3f} (median of the")
    print(f"houses), {max(off):.3f} (largest); the bundle says {basis_of(model).error}")
    print(f"of {large} contributions of .5 and more, {agree} have the sign of the exact ones;")
    print(f"in {order} of {count} houses these come in the exact order")


async def post(line: Any, path: str, body: bytes) -> None:
    """Ask once on a connection, and read the whole answer."""
    reader, writer = line
    writer.write(HEAD.format(path, len(body)).encode() + body)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = next(h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))


async def stream(port: int, seconds: float, per_s: float, bodies: list[bytes]) -> list[float]:
    """Milliseconds of each price of eight clients, from when it was due: none waits for another."""
    lines = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
    begun, took = time.perf_counter(), []

    async def client(which: int) -> None:
        for i in range(which, int(seconds * per_s), 8):
            due = begun + i / per_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await post(lines[which], "/predict", bodies[i % len(bodies)])
            took.append(1e3 * (time.perf_counter() - due))

    await asyncio.gather(*[client(i) for i in range(8)])
    for _, writer in lines:
        writer.close()
    return took


async def explain_again_and_again(port: int, bodies: list[bytes], done: list[int]) -> None:
    """Ask for an explanation on each of 64 connections, until cancelled."""

    async def client(which: int) -> None:
        line = await asyncio.open_connection("127.0.0.1", port)
        try:
            while True:
                await post(line, "/explain", bodies[(which + len(done)) % len(bodies)])
                done.append(which)
        finally:
            line[1].close()

    await asyncio.gather(*[client(i) for i in range(64)])


async def rounds(
    server: Server, bodies: list[bytes], count: int, seconds: float, per_s: float
) -> dict[str, list[tuple[float, float]]]:
    """p50 and p99 of each round, alone and beside explanations, in turn."""
    found: dict[str, list[tuple[float, float]]] = {"alone": [], "beside 64 explanations": []}
    for _ in range(count):
        for name, runs in found.items():
            done: list[int] = []
            beside = None
            if name != "alone":
                beside = asyncio.create_task(explain_again_and_again(server.port, bodies, done))
                await asyncio.sleep(0.3)
            took = await stream(server.port, seconds, per_s, bodies)
            if beside is not None:
                beside.cancel()
                await asyncio.gather(beside, return_exceptions=True)
                print(f"   {len(done) / (seconds + 0.3):.0f} explanations a second beside")
            runs.append(tuple(np.percentile(took, [50, 99])))
            await asyncio.to_thread(server.rest)
    return found


def main() -> None:
    """Measure, and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "housing-bench"
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=5)
    options.add_argument("--per-s", type=float, default=400, help="requests for prices a second")
    options.add_argument("--cores", type=int, default=1, help="cores of the server: 1 or 2")
    given = options.parse_args()
    bundle = make(given.cache)
    check(Model.open(bundle, "1"), 50)
    bodies = [json.dumps(house).encode() for house in houses()]
    with tempfile.TemporaryDirectory(prefix="housing-bench-") as home:
        install_bundle(bundle, "1", Settings(home=Path(home)))
        environment = {"HOUSING_HOME": home, "HOUSING_EXPLAIN_WAIT_S": "30"}
        core = max(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        server = start("this", "", [*UVICORN, API], environment, core)
        if given.cores > 1:
            for task in Path(f"/proc/{server.process.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), range(os.cpu_count() or 1))
        try:
            found = asyncio.run(rounds(server, bodies, given.rounds, given.seconds, given.per_s))
        finally:
            server.process.terminate()
            server.process.wait(30)
    print(
        f"\n{given.per_s:g} prices a second on one core, {given.rounds} rounds of {given.seconds:g} s"
    )
    for name, runs in found.items():
        p50, p99 = (statistics.median(run[i] for run in runs) for i in (0, 1))
        print(f"{name:24} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms")
    alone, beside = (statistics.median(run[1] for run in runs) for runs in found.values())
    print(f"p99 beside / alone: {beside / alone:.2f} (aim: 2 or less)")


if __name__ == "__main__":
    main()

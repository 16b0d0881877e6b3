"""Requests a second, latency and processor time of the API beside three other servers.

One core serves and one sends (wrk). The servers take turns within every round, so that what else
the machine does meets all of them; medians over the rounds are told. `make bench`.
"""

import argparse
import http.client
import itertools
import json
import os
import platform
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import joblib
import matplotlib.pyplot as plt
import numpy as np
from champion import BOSTON, houses, make
from tqdm import tqdm

from housing_mlops.config import Settings
from housing_mlops.model.inference import Model
from housing_mlops.registry.shelf import install_bundle

HERE = Path(__file__).parent
REACH = [
    # what, at least (or at most), aim
    ("throughput / (f) FastAPI that does nothing", 1.5, 3.0),
    ("throughput / (e) bare ASGI constant", 0.40, 0.60),
    ("throughput / (a) the usual way", 100, 250),
    ("p99 / (f)'s p99", 1.0, 0.5),
]
QUIET = ["-m", "uvicorn", "--loop", "uvloop", "--no-access-log", "--log-level", "warning"]
UVICORN = [*QUIET, "--http", "httptools"]
API = "housing_mlops.serving.api:app"
COLOURS = {"e": "#999999", "f": "#ddaa33", "a": "#cc6677", "asgi": "#88bbdd", "this": "#4477aa"}


@dataclass
class Server:
    """A server under test, running."""

    name: str
    about: str
    port: int
    process: subprocess.Popen[bytes]

    def cpu(self) -> float:
        """Seconds of processor time that its process took so far, all threads together."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rest(self) -> None:
        """Return when it is idle: what clients left it with is not the next server's burden."""
        for _ in range(200):
            before = self.cpu()
            time.sleep(0.05)
            if self.cpu() - before < 0.02:
                return
        raise TimeoutError(f"{self.name} does not come to rest")

    def ask(self, body: str) -> dict[str, Any]:
        """What it answers to one house."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as line:
            line.request("POST", "/predict", body, {"Content-Type": "application/json"})
            answer = line.getresponse()
            said = answer.read()
        assert answer.status == 200, f"{self.name}: {answer.status} {said!r}"
        return json.loads(said)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(name: str, about: str, target: list[str], env: dict[str, str], core: int) -> Server:
    """A server on one core, which answers already."""
    port = free_port()
    command = ["taskset", "-c", str(core), sys.executable, *target, "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **env}, cwd=HERE)
    example = json.dumps(BOSTON.example)
    for _ in range(600):
        try:
            server = Server(name, about, port, process)
            server.ask(example)
            return server
        except (OSError, AssertionError):
            assert process.poll() is None, f"{name} ended with {process.returncode}"
            time.sleep(0.1)
    raise TimeoutError(name)


def load(
    server: Server, connections: int, seconds: float, bodies: Path, core: int
) -> dict[str, Any]:
    """One run of wrk against `server`."""
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s"]
    command += ["--timeout", "20s", "-s", str(HERE / "load.lua"), f"http://127.0.0.1:{server.port}"]
    before = server.cpu()
    done = subprocess.run(
        command, env={**os.environ, "BODIES": str(bodies)}, capture_output=True, text=True
    )
    spent = server.cpu() - before
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    assert line, f"wrk: {done.stdout}{done.stderr}"
    said = json.loads(line.removeprefix("RESULT "))
    assert said["not_2xx"] == said["broken"] == 0, f"{server.name}: {said}"
    n = max(said["requests"], 1)
    return {
        "server": server.name,
        "connections": connections,
        "requests": n,
        "per_s": n / said["us"] * 1e6,
        "cpu_us": spent / n * 1e6,
        "p50_ms": said["p50"] / 1e3,
        "p99_ms": said["p99"] / 1e3,
    }


def take_turns(
    servers: list[Server],
    rounds: int,
    connections: list[int],
    seconds: float,
    bodies: Path,
    core: int,
) -> list[dict[str, Any]]:
    """The runs of all servers, which take turns at each number of connections."""
    runs: list[dict[str, Any]] = []
    with tqdm(total=rounds * len(connections) * len(servers), unit="run") as bar:
        for n, count in itertools.product(range(rounds), connections):
            first = n % len(servers)
            for server in servers[first:] + servers[:first]:
                bar.set_postfix_str(f"({server.name}) at {count}")
                runs.append(load(server, count, seconds, bodies, core))
                server.rest()
                bar.update()
    return runs


@contextmanager
def ending() -> Iterator[list[Server]]:
    """A list of servers, which all end with the block."""
    servers: list[Server] = []
    try:
        yield servers
    finally:
        for server in servers:
            server.process.terminate()
        for server in servers:
            server.process.wait(30)


def check_answers(server: Server, rows: list[dict[str, float | None]], wanted: np.ndarray) -> float:
    """The largest difference between a server's prices and those of its model, asked in process."""
    got = [server.ask(json.dumps(row))["prediction"] for row in rows]
    worst = float(np.abs(np.array(got) - wanted).max())
    assert worst < 1e-3, f"{server.name} is off by {worst}"
    return worst


def check_log(home: Path, accepted: int, rows: list[Any], wanted: np.ndarray) -> dict[str, int]:
    """Whether every answer of "this" was kept, once, with the right price."""
    price = {json.dumps(row): float(p) for row, p in zip(rows, wanted, strict=True)}
    with closing(sqlite3.connect(home / "predictions.db")) as database:
        count, unique = database.execute(
            "SELECT count(*), count(DISTINCT id) FROM predictions"
        ).fetchone()
        kept = database.execute("SELECT DISTINCT features, price FROM predictions").fetchall()
    wrong = [f for f, p in kept if not abs(p - price[json.dumps(json.loads(f))]) < 1e-3]
    # wrk leaves at the end of a run without waiting for what is in progress: those are kept too
    assert unique == count >= accepted and not wrong, (count, unique, accepted, wrong[:1])
    return {"answers": accepted, "kept": count, "wrong": len(wrong)}


def table(
    runs: list[dict[str, Any]], servers: list[Server]
) -> dict[tuple[str, int], dict[str, float]]:
    """Medians over the rounds, by server and number of connections; printed."""
    medians: dict[tuple[str, int], dict[str, float]] = {}
    print(
        f"\n{'':6}{'connections':>12}{'requests/s':>12}{'µs cpu each':>13}{'p50 ms':>9}{'p99 ms':>9}"
    )
    for connections in sorted({r["connections"] for r in runs}):
        for server in servers:
            mine = [
                r for r in runs if (r["server"], r["connections"]) == (server.name, connections)
            ]
            if not mine:
                continue
            m = {
                k: statistics.median(r[k] for r in mine)
                for k in ("per_s", "cpu_us", "p50_ms", "p99_ms")
            }
            medians[server.name, connections] = m
            print(
                f"{server.name:6}{connections:12}{m['per_s']:12,.0f}{m['cpu_us']:13,.1f}"
                f"{m['p50_ms']:9.2f}{m['p99_ms']:9.2f}"
            )
    return medians


def ratios(
    runs: list[dict[str, Any]], medians: dict[tuple[str, int], dict[str, float]]
) -> list[dict[str, Any]]:
    """The figures to reach, at each number of connections, beside what was reached; printed."""
    found = []
    print(
        f"\n{'':46}{'at least':>9}{'aim':>6}"
        + "".join(f"{c:>9}" for c in sorted({c for _, c in medians}))
    )
    for (what, least, aim), rival in zip(REACH, ("f", "e", "a", "f"), strict=True):
        worse = what.startswith("p99")
        row: dict[str, Any] = {
            "what": what,
            "at_least": least,
            "aim": aim,
            "reached": {},
            "cpu": {},
        }
        for connections in sorted({c for _, c in medians}):
            mine, other = medians["this", connections], medians.get((rival, connections))
            if other is None:
                continue
            key = "p99_ms" if worse else "per_s"
            row["reached"][connections] = mine[key] / other[key]
            if not worse:
                row["cpu"][connections] = other["cpu_us"] / mine["cpu_us"]
        bound = f"<= {least:g}" if worse else f"{least:g}"
        print(
            f"{what:46}{bound:>9}{aim:6g}" + "".join(f"{v:9.2f}" for v in row["reached"].values())
        )
        if row["cpu"]:
            print(
                f"{'  the same by processor time a request':61}"
                + "".join(f"{v:9.2f}" for v in row["cpu"].values())
            )
        found.append(row)
    return found


def plot(
    medians: dict[tuple[str, int], dict[str, float]], servers: list[Server], path: Path
) -> None:
    """A chart of processor time a request and of the latencies, by server."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    counts = sorted({c for _, c in medians})
    shown = [s for s in servers if s.name != "a"]
    for i, server in enumerate(shown):
        at = np.arange(len(counts)) + (i - 1.5) * 0.2
        values = [medians[server.name, c] for c in counts]
        bars = left.bar(
            at, [v["per_s"] for v in values], 0.19, color=COLOURS[server.name], label=server.about
        )
        left.bar_label(bars, fmt="{:,.0f}", fontsize=7)
        right.bar(at, [v["p99_ms"] for v in values], 0.19, color=COLOURS[server.name])
        right.scatter(at, [v["p50_ms"] for v in values], color="black", s=12, zorder=3)
    for axis, label in (
        (left, "requests a second, one core"),
        (right, "ms: p99 (bar), median (dot)"),
    ):
        axis.set(xticks=range(len(counts)), xticklabels=counts, xlabel="connections", ylabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    right.set_yscale("log")
    left.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run everything and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of each run of wrk")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--quick", action="store_true", help="three rounds of one second: a minute")
    parser.add_argument("--bundle", type=Path, help="another bundle than the default champion")
    parser.add_argument(
        "--members", default="GaussianProcess,GradientBoosting", help="of the champion"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 3, 1
    out = args.out.resolve()
    bundle = args.bundle or make(out / "models", tuple(args.members.split(",")))
    make(out / "models")
    rows = houses()
    model = Model.open(bundle, "1")
    prices = model.quote([[row[c] for c in BOSTON.columns] for row in rows]).prices
    forest = joblib.load(out / "models" / "naive.joblib")
    numbers = np.array([[row[c] for c in BOSTON.columns] for row in rows], dtype=float)
    constant = np.full(len(rows), 24.0)
    wanted = {"e": constant, "f": constant, "asgi": prices, "this": prices}
    naive_env = {
        "NAIVE_MODEL": str(out / "models" / "naive.joblib"),
        "NAIVE_COLUMNS": ",".join(BOSTON.columns),
    }
    cores = sorted(os.sched_getaffinity(0))
    serving, sending = cores[0], cores[-1]
    with tempfile.TemporaryDirectory(prefix="housing-bench-") as name:
        home = Path(name)
        bodies = home / "bodies"
        bodies.write_text("".join(json.dumps(row) + "\n" for row in rows[:: len(rows) // 64]))
        ours = {}
        for key in ("asgi", "this"):
            install_bundle(bundle, "1", Settings(home=home / key))
            ours[key] = {"HOUSING_HOME": str(home / key), "HOUSING_DRIFT_INTERVAL_S": "3600"}
        factory = [*UVICORN, "--factory"]
        with ending() as servers:
            for key, about, target, env in (
                ("e", "(e) bare ASGI, a constant", [*UVICORN, "rivals:bare"], {}),
                ("f", "(f) FastAPI, validated, a constant", [*factory, "rivals:framework"], {}),
                ("a", "(a) FastAPI, pandas, joblib", [*factory, "rivals:naive"], naive_env),
                ("asgi", "this API as an ASGI application", [*UVICORN, API], ours["asgi"]),
                (
                    "this",
                    "this API with its protocol, as `make serve` runs it",
                    [*QUIET, "--http", "housing_mlops.serving.protocol:HousingProtocol", API],
                    ours["this"],
                ),
            ):
                servers.append(start(key, about, target, env, serving))
            asked = 1  # by `start`
            off = {}
            for server in servers:
                few = slice(0, None, 10) if server.name == "a" else slice(None)
                if server.name == "a":
                    wanted["a"] = forest.predict(numbers)
                off[server.name] = check_answers(server, rows[few], wanted[server.name][few])
            asked += len(rows)
            runs = take_turns(servers, args.rounds, args.connections, args.seconds, bodies, sending)
        accepted = asked + sum(r["requests"] for r in runs if r["server"] == "this")
        kept = check_log(
            home / "this",
            accepted,
            [*rows, BOSTON.example],
            np.append(prices, model.quote([list(BOSTON.example.values())]).prices),
        )
    medians = table(runs, servers)
    found = ratios(runs, medians)
    print(
        f"\nEvery answer checked: at most {off['this']:.1e} off in process; of {kept['answers']:,} answers "
        f"{kept['kept']:,} stand in the log, {kept['wrong']} with a wrong price."
    )
    out.mkdir(parents=True, exist_ok=True)
    plot(medians, servers, out / "serving.png")
    said = {
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        },
        "model": model.info.model,
        "ratios": found,
        "medians": [{"server": s, "connections": c, **m} for (s, c), m in medians.items()],
        "log": kept,
        "runs": runs,
    }
    (out / "serving.json").write_text(json.dumps(said, indent=1))
    print(f"{out / 'serving.png'}, {out / 'serving.json'}")


if __name__ == "__main__":
    main()

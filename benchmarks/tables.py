"""Tables that the project has never seen, each from a CSV to a served and explained price.

    python benchmarks/tables.py                # the three of them, some minutes each
    python benchmarks/tables.py large          # 20,000 rows of 80 columns

The commands are those of QUICKSTART.md, every one timed, with the largest memory that its processes
held at once (proportional set size, looked at twice a second). The tables are made, not real; each
function below states its formula.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

TOOL = [sys.executable, "-c", "from housing_mlops.cli import app; app()"]
HOUSES = 1_000  # priced and timed one by one


def flats(rows: int = 2_000) -> tuple[pd.DataFrame, str, str]:
    """log(Kaltmiete) = 6.2 + 0.8 log(area / 70) + district + condition + 0.1 x balcony + street + noise.

    12 districts N(0, 0.25), 5 conditions -0.2 to 0.2, 300 streets N(0, 0.08), noise 0.1. Names hold
    umlauts, spaces, commas and quotes; a tenth of the heatings is unknown; every flat has an id.
    """
    rng = np.random.default_rng(1)
    districts = np.array([f"Bezirk {n}, {'Süd' if n % 2 else 'Nord'}" for n in range(12)])
    streets = np.array([f'Straße "{n}"' if n % 50 == 0 else f"Gasse {n}" for n in range(300)])
    conditions = np.array(["needs work", "fair", "good", "very good", "new"])
    d, s, c = rng.integers(12, size=rows), rng.integers(300, size=rows), rng.integers(5, size=rows)
    area, balcony = rng.lognormal(np.log(70), 0.35, rows).round(1), rng.random(rows) < 0.4
    logs = 6.2 + 0.8 * np.log(area / 70) + rng.normal(0, 0.25, 12)[d] + 0.1 * (c - 2)
    logs += 0.1 * balcony + rng.normal(0, 0.08, 300)[s] + rng.normal(0, 0.1, rows)
    heating = rng.choice(np.array(["gas", "oil", "district", None], dtype=object), rows)
    columns = {"id": 10_000 + np.arange(rows), "District": districts[d], "Street": streets[s]}
    columns |= {"Condition": conditions[c], "Heating": heating, "Area m²": area, "balcony": balcony}
    columns |= {"floor": rng.integers(0, 8, rows), "Kaltmiete": np.exp(logs).round(2)}
    return pd.DataFrame(columns), "Kaltmiete", "EUR"


def sales(rows: int = 1_500) -> tuple[pd.DataFrame, str, str]:
    """log(price) = 12 + 0.7 log(living / 120) + 0.15 log(plot / 600) + 0.04 (year - 2015) + 0.1 garage
    - 0.003 (2025 - built) + noise of 0.12, in dollars.

    30 % of the plots and 10 % of the years built are unknown at random; a garage is unknown where there
    is none; a tenth of the listing dates is unknown; the day of the sale is always known.
    """
    rng = np.random.default_rng(2)
    living, plot = rng.lognormal(np.log(120), 0.3, rows), rng.lognormal(np.log(600), 0.6, rows)
    built, garage = rng.integers(1890, 2024, rows).astype(float), rng.integers(0, 3, rows)
    days = pd.Timestamp("2015-01-01") + pd.to_timedelta(rng.integers(0, 3650, rows), unit="D")
    logs = 12 + 0.7 * np.log(living / 120) + 0.15 * np.log(plot / 600) + 0.1 * garage
    logs += 0.04 * (days.year - 2015) - 0.003 * (2025 - built) + rng.normal(0, 0.12, rows)
    listed = pd.Series(days - pd.to_timedelta(rng.integers(5, 200, rows), unit="D"))
    columns = {
        "sold": days.strftime("%Y-%m-%d"),
        "listed": listed.dt.strftime("%Y-%m-%dT%H:%M:%S").where(rng.random(rows) > 0.1),
        "living": living.round(),
        "plot": np.where(rng.random(rows) < 0.3, np.nan, plot.round()),
        "built": np.where(rng.random(rows) < 0.1, np.nan, built),
        "garage": np.where(garage == 0, np.nan, garage),
        "notes": None,
        "price": np.exp(logs).round(-2),
    }
    return pd.DataFrame(columns), "price", "USD"


def suburbs(rows: int = 5_000, columns: int = 40) -> tuple[pd.DataFrame, str, str]:
    """log(price) = 13 + sum over j of 0.3 x log(x_j) / (1 + j) + postcode + 0.05 x grade + noise of 0.1.

    A postcode of 800 values N(0, 0.2), five digits of which some begin with 0; 5 grades A to E, two
    more categories and a constant that say nothing; the rest are lognormal numbers x_j with a sigma
    of 0.5 and 2 % gaps. `columns` counts all features but the constant.
    """
    rng = np.random.default_rng(3)
    places, grades = rng.integers(800, size=rows), rng.integers(5, size=rows)
    logs = rng.normal(0, 0.5, (rows, columns - 4))
    y = 13 + logs @ (0.3 / (1 + np.arange(columns - 4))) + rng.normal(0, 0.2, 800)[places]
    y += 0.05 * grades + rng.normal(0, 0.1, rows)
    found = {
        "postcode": [f"{600 + 97 * p:05}" for p in places],
        "grade": np.array([*"ABCDE"])[grades],
    }
    found |= {"agent": rng.choice(["North", "South"], rows), "country": "AU"}
    found["roof"] = rng.choice(["tile", "slate", "tin", "thatch"], rows)
    values = np.where(rng.random(logs.shape) < 0.02, np.nan, np.exp(logs).round(4))
    found |= {f"x{j}": values[:, j] for j in range(columns - 4)}
    return pd.DataFrame({**found, "price": np.exp(y).round()}), "price", "AUD"


def large(rows: int = 20_000) -> tuple[pd.DataFrame, str, str]:
    """`suburbs`, but 20,000 rows of 80 columns."""
    return suburbs(rows, 80)


TABLES: dict[str, Callable[..., tuple[pd.DataFrame, str, str]]] = {
    made.__name__: made for made in (flats, sales, suburbs, large)
}


class Peak(threading.Thread):
    """Watches the memory of a process and of all that it started."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.bytes, self.over = psutil.Process(pid), 0, threading.Event()

    def run(self) -> None:
        """Look until told to stop."""
        while not self.over.wait(0.5):
            held = 0
            with suppress(psutil.Error):
                for process in [self.process, *self.process.children(recursive=True)]:
                    with suppress(psutil.Error):
                        held += process.memory_full_info().pss
            self.bytes = max(self.bytes, held)


@contextmanager
def told(what: str) -> Iterator[dict[str, object]]:
    """Print what a step took, and what the block found out of it."""
    found: dict[str, object] = {}
    begun = time.perf_counter()
    yield found
    took = time.perf_counter() - begun
    print(f"  {what:28} {took:7.1f} s", *(f"{k} {v}" for k, v in found.items()), flush=True)


def run(what: str, words: list[str], home: Path, **how: str) -> str:
    """What a command printed; its time and memory are told."""
    environment = {**os.environ, "HOUSING_HOME": str(home), **how}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with told(what) as found, (home / "said.txt").open("a+") as said:
        command = [*TOOL, *words]
        with subprocess.Popen(
            command, cwd=home, env=environment, text=True, stdout=subprocess.PIPE, stderr=said
        ) as popen:
            peak = Peak(popen.pid)
            peak.start()
            out, _ = popen.communicate()
            peak.over.set()
        if popen.returncode:
            sys.exit(f"{' '.join(words)} failed:\n{(home / 'said.txt').read_text()[-3000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found |= {"of cpu": f"{used:.1f} s,", "MB": f"{peak.bytes / 2**20:.0f}"}
    return out


def ask(url: str, body: object = None) -> dict[str, object]:
    """The answer of the API, as JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer))


def serve_and_ask(home: Path, port: int, example: dict[str, object]) -> None:
    """`housing-mlops up`, a price, its reasons, the pages; the memory of all of it."""
    environment = {**os.environ, "HOUSING_HOME": str(home), "HOUSING_DATASET": "houses.toml"}
    words = [*TOOL, "up", "--port", str(port), "--mlflow-port", str(port + 1)]
    api = f"http://127.0.0.1:{port}"
    with (home / "up.txt").open("w") as said:
        popen = subprocess.Popen(words, cwd=home, env=environment, stdout=said, stderr=said)
    peak = Peak(popen.pid)
    peak.start()
    try:
        with told("up") as found:
            while True:
                with suppress(OSError):
                    ask(f"{api}/readyz")
                    break
                if popen.poll() is not None:
                    sys.exit(f"up ended:\n{(home / 'up.txt').read_text()}")
                time.sleep(0.2)
        with told("POST /predict") as found:
            priced = ask(f"{api}/predict", example)
            found |= {k: priced[k] for k in ("prediction", "unit", "model", "in_domain")}
        with told("POST /explain") as found:
            reasons = ask(f"{api}/explain", example)["explanation"]
            assert isinstance(reasons, dict)
            parts = reasons["reasons"]
            found["largest"] = parts[0]
            total = reasons["base"] + sum(p["contribution"] for p in parts)
            found["sum"] = f"{total:.2f}"
        with told(f"{HOUSES} prices, one by one") as found:
            took = [float(str(ask(f"{api}/predict", example)["latency_ms"])) for _ in range(HOUSES)]
            found["median ms in the server"] = f"{np.median(took):.3f}"
        for page in ("docs", "dashboard", "monitoring/drift", "metrics", "model/info"):
            urllib.request.urlopen(f"{api}/{page}", timeout=30).read()
    finally:
        popen.terminate()
        popen.wait()
        peak.over.set()
    print(f"  served with {peak.bytes / 2**20:.0f} MB (API and MLflow)")


def show(name: str, rows: list[int], port: int, train: list[str]) -> None:
    """One table, all the way."""
    frame, target, unit = TABLES[name](*rows)
    print(f"{name}: {len(frame)} rows, {frame.shape[1] - 1} columns beside {target}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        frame.to_csv(home / "houses.csv", index=False)
        words = ["schema", "--from", "houses.csv", "--target", target, "--unit", unit]
        (home / "houses.toml").write_text(run("schema", words, home), encoding="utf-8")
        example = json.loads(run("schema --example", ["schema", "houses.toml", "--example"], home))
        run("train", ["train", *train], home, HOUSING_DATASET="houses.toml")
        summary = json.loads(next(home.glob("runs/*/training.json")).read_text())
        wrong = {k: round(summary["metrics"][k], 3) for k in ("cv_rmse", "cv_r2", "test_r2")}
        print(f"    {summary['winner']}: {wrong}; promoted: {summary['promoted']}")
        for sentence in (home / "said.txt").read_text().splitlines():
            if "left out" in sentence or "WARN" in sentence or "arning" in sentence:
                print(f"    {sentence}")
        serve_and_ask(home, port, example)
        run("predict FILE", ["predict", "houses.csv", "priced.csv"], home)
        priced = pd.read_csv(home / "priced.csv")
        off = (priced["prediction"] / priced[target] - 1).abs().median()
        print(
            f"    {priced['prediction'].notna().sum()} priced, median error {off:.1%} (seen rows)"
        )


def main() -> None:
    """Show the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", default=["flats", "sales", "suburbs"])
    parser.add_argument("--rows", type=int, nargs=1, default=[], help="of each table")
    parser.add_argument("--train", default="", help='words for it, such as "-p folds 3"')
    parser.add_argument("--port", type=int, default=18400, help="and the one behind it")
    given = parser.parse_args()
    if strangers := [t for t in given.tables if t not in TABLES]:
        parser.error(f"no table {', '.join(strangers)}; there are {', '.join(TABLES)}")
    for name in given.tables:
        show(name, given.rows, given.port, shlex.split(given.train))


if __name__ == "__main__":
    main()

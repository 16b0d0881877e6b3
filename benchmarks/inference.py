"""Microseconds a row, scikit-learn against the bundle, from one house to a million.

Both run on one core, in turn; the best of the rounds is told, for what disturbs only ever adds.
Apart from that, the same rows as JSON to `/predict/batch`, validated, logged and answered.
"""

import argparse
import http.client
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from champion import BOSTON, houses, make
from serving import API, UVICORN, start

from housing_mlops.config import Settings
from housing_mlops.model.inference import Model
from housing_mlops.registry.shelf import install_bundle


def best(call: Callable[[], object], rounds: int, repeat: int) -> float:
    """Seconds of processor time of one call, the least of the rounds."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(repeat):
            call()
        seconds.append((time.process_time() - start) / repeat)
    return min(seconds)


def over_http(bundle: Path, rows: list[dict[str, float | None]], wanted: np.ndarray) -> float:
    """Seconds of one request to `/predict/batch`, the least of five, by the clock."""
    body = json.dumps(rows)
    with tempfile.TemporaryDirectory(prefix="housing-bench-") as home:
        install_bundle(bundle, "1", Settings(home=Path(home)))
        limits = {"HOUSING_MAX_BATCH": str(len(rows)), "HOUSING_MAX_BODY_BYTES": str(len(body) + 1)}
        environment = {"HOUSING_HOME": home, **limits}
        server = start("this", "", [*UVICORN, API], environment, max(os.sched_getaffinity(0)))
        try:
            seconds = []
            for _ in range(5):
                with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as line:
                    begun = time.perf_counter()
                    headers = {"Content-Type": "application/json"}
                    line.request("POST", "/predict/batch", body, headers)
                    answer = line.getresponse()
                    said = answer.read()
                    seconds.append(time.perf_counter() - begun)
                assert answer.status == 200, said
            got = [p["prediction"] for p in json.loads(said)["predictions"]]
            assert np.abs(np.array(got) - wanted).max() < 1e-3
        finally:
            server.process.terminate()
            server.process.wait(30)
    return min(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 100, 10_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    bundle = make(args.out / "models")
    model, pipeline = Model.open(bundle, "1"), joblib.load(f"{bundle}.joblib")
    rng = np.random.default_rng(0)
    known = pd.DataFrame(houses(), dtype="float64")[BOSTON.columns]
    found = []
    print(f"{'rows':>9}{'scikit-learn':>15}{'bundle':>10}{'ratio':>8}   µs a row")
    for size in args.sizes:
        frame = known.iloc[rng.integers(0, len(known), size)].reset_index(drop=True)
        numbers = frame.to_numpy(dtype=np.float32)
        rounds = 5 if size < 100_000 else 1
        repeat = max(1, 200 // size)
        # a million rows at once would take 4 GB for the distances: scikit-learn gets them in parts
        parts = [frame.iloc[i : i + 10_000] for i in range(0, size, 10_000)]
        theirs = best(lambda p=parts: [pipeline.predict(part) for part in p], rounds, repeat)
        ours = best(lambda n=numbers: model.price({"numbers": n}), rounds, repeat)
        off = np.abs(model.price({"numbers": numbers[:1000]}) - pipeline.predict(frame[:1000]))
        assert off.max() < 1e-3
        row = {"rows": size, "sklearn_us": theirs / size * 1e6, "bundle_us": ours / size * 1e6}
        found.append(row)
        print(f"{size:9,}{row['sklearn_us']:15,.2f}{row['bundle_us']:10,.2f}{theirs / ours:8.1f}")
        if size == 10_000:
            asked = frame.astype(object).where(frame.notna(), None).to_dict("records")
            capped = np.minimum(pipeline.predict(frame), BOSTON.target.cap)
            row["http_us"] = over_http(bundle, asked, capped) / size * 1e6
    for row in found:
        if "http_us" in row:
            times = row["http_us"] / row["sklearn_us"]
            print(
                f"{row['rows']:,} rows to /predict/batch, JSON both ways, validation and log "
                f"included: {row['http_us']:.2f} µs a row, {times:.1f} times scikit-learn in process"
            )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "inference.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

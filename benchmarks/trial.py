"""What a trial costs the requests: the API alone, with a challenger in the shadow, and with one that has a share.

The three servers take turns within every round, so that what else the machine does meets all of
them. Two servers that do the same differ by some per cent until they are started anew, so all are,
several times. Medians over all rounds, and their ratios to the server without a trial. One core
serves and one sends (wrk). The challenger is as large as the champion.
usage: python benchmarks/trial.py
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from champion import houses, make
from serving import QUIET, Server, ending, start, take_turns

from housing_mlops.config import Settings
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.registry.trial import Trial, keep_trial

API = ["--http", "housing_mlops.serving.protocol:HousingProtocol", "housing_mlops.serving.api:app"]
MOST = 1.05  # processor time a request with a share of a tenth, to that without a trial


def home_of(folder: Path, bundle: Path, share: float | None) -> dict[str, str]:
    """The environment of a server that has a champion and, unless None, a trial with a share."""
    settings = Settings(home=folder)
    challenger = install_bundle(bundle, "2", settings)
    install_bundle(bundle, "1", settings)
    if share is not None:
        keep_trial((Trial("2", "1", share, "2026-11-24T12:00:00+00:00"), challenger), settings)
    return {"HOUSING_HOME": str(folder), "HOUSING_DRIFT_INTERVAL_S": "3600"}


def tell(runs: list[dict[str, Any]], servers: list[Server]) -> dict[str, dict[str, float]]:
    """Medians by server, and ratios to the first; printed."""
    kinds = ("per_s", "cpu_us", "p50_ms", "p99_ms")
    medians = {
        s.name: {k: statistics.median(r[k] for r in runs if r["server"] == s.name) for k in kinds}
        for s in servers
    }
    alone = medians[servers[0].name]
    print(
        f"\n{'':8}{'requests/s':>12}{'µs cpu each':>13}{'p50 ms':>9}{'p99 ms':>9}{'cpu ratio':>11}"
    )
    for name, m in medians.items():
        m["ratio"] = m["cpu_us"] / alone["cpu_us"]
        print(
            f"{name:8}{m['per_s']:12,.0f}{m['cpu_us']:13,.1f}{m['p50_ms']:9.2f}{m['p99_ms']:9.2f}"
            f"{m['ratio']:11.3f}"
        )
    print(
        f"\nwith a share: {medians['share']['ratio']:.3f} of the processor time, at most {MOST:g} is meant"
    )
    return medians


def main() -> None:
    """Run it and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=6, help="of each server")
    parser.add_argument("--rounds", type=int, default=3, help="after each start")
    parser.add_argument("--seconds", type=float, default=2, help="of each run of wrk")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--members", default="GaussianProcess,GradientBoosting", help="of both")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    bundle = make(args.out.resolve() / "models", tuple(args.members.split(",")))
    rows, cores = houses(), sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="housing-bench-") as name:
        bodies = Path(name) / "bodies"
        bodies.write_text("".join(json.dumps(row) + "\n" for row in rows))
        kinds = {"alone": None, "shadow": 0.0, "share": args.share}
        homes = {k: home_of(Path(name) / k, bundle, share) for k, share in kinds.items()}
        runs: list[dict[str, Any]] = []
        for _ in range(args.starts):
            with ending() as servers:
                for key, env in homes.items():
                    servers.append(start(key, key, [*QUIET, *API], env, cores[0]))
                told = [servers[2].ask(json.dumps(row))["model_version"] for row in rows]
                assert 0 < told.count("2") < len(told)
                sizes = [args.connections]
                runs += take_turns(servers, args.rounds, sizes, args.seconds, bodies, cores[-1])
    print(f"{told.count('2') / len(told):.1%} of the houses are the challenger's")
    medians = tell(runs, servers)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "trial.json").write_text(json.dumps({"medians": medians, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()

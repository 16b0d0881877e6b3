"""What it costs to have predictions on disk: this API at each level of HOUSING_DURABILITY.

Three servers on one core take turns under the load of another (wrk), as in `serving.py`; medians
over the rounds are told, and the ratio to the level that flushes nothing.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from champion import houses, make
from serving import API, QUIET, ending, start, take_turns

from housing_mlops.config import Settings
from housing_mlops.registry.shelf import install_bundle

LEVELS = ("process", "interval", "always")


def main() -> None:
    """Run everything and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of each run of wrk")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--members", default="GaussianProcess,GradientBoosting")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    bundle = make(args.out.resolve() / "models", tuple(args.members.split(",")))
    rows, cores = houses(), sorted(os.sched_getaffinity(0))
    protocol = [*QUIET, "--http", "housing_mlops.serving.protocol:HousingProtocol", API]
    with tempfile.TemporaryDirectory(prefix="housing-bench-", dir=args.out.resolve()) as name:
        home = Path(name)
        bodies = home / "bodies"
        bodies.write_text("".join(json.dumps(row) + "\n" for row in rows[:: len(rows) // 64]))
        with ending() as servers:
            for level in LEVELS:
                install_bundle(bundle, "1", Settings(home=home / level))
                env = {"HOUSING_HOME": str(home / level), "HOUSING_DURABILITY": level}
                env["HOUSING_DRIFT_INTERVAL_S"] = "3600"
                servers.append(start(level, level, protocol, env, cores[0]))
            sizes = args.connections
            runs = take_turns(servers, args.rounds, sizes, args.seconds, bodies, cores[-1])
    print(
        f"\n{'level':10}{'connections':>12}{'requests/s':>12}{'ratio':>8}{'µs cpu':>9}{'p50 ms':>9}{'p99 ms':>9}"
    )
    first: dict[int, float] = {}
    for level in LEVELS:
        for connections in args.connections:
            mine = [r for r in runs if (r["server"], r["connections"]) == (level, connections)]
            keys = ("per_s", "cpu_us", "p50_ms", "p99_ms")
            m = {key: statistics.median(r[key] for r in mine) for key in keys}
            ratio = m["per_s"] / first.setdefault(connections, m["per_s"])
            print(
                f"{level:10}{connections:12}{m['per_s']:12,.0f}{ratio:8.2f}{m['cpu_us']:9.1f}"
                f"{m['p50_ms']:9.2f}{m['p99_ms']:9.2f}"
            )


if __name__ == "__main__":
    main()

"""What traces cost the requests: the API without them, with one request in a hundred traced, and with every one.

The three servers take turns within every round, so that what else the machine does meets all of
them; medians over the rounds, and their ratios to the server without traces. One core serves and
one sends (wrk); the collector takes what it is sent and throws it away, on the core that sends.
usage: python benchmarks/tracing.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from champion import houses, make
from serving import QUIET, ending, free_port, start, take_turns
from trial import API, home_of

KINDS = ("per_s", "cpu_us", "p50_ms", "p99_ms")
COLLECTOR = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@contextmanager
def collector(core: int) -> Iterator[str]:
    """The address of a collector, which ends with the block."""
    port = free_port()
    command = ["taskset", "-c", str(core), sys.executable, "-c", COLLECTOR, str(port)]
    with subprocess.Popen(command) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def main() -> None:
    """Run it and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2, help="of each run of wrk")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    bundle = make(args.out.resolve() / "models", ("GaussianProcess", "GradientBoosting"))
    rows, cores = houses(), sorted(os.sched_getaffinity(0))
    sampled = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
    with (
        tempfile.TemporaryDirectory(prefix="housing-bench-") as name,
        collector(cores[-1]) as where,
        ending() as servers,
    ):
        bodies = Path(name) / "bodies"
        bodies.write_text("".join(json.dumps(row) + "\n" for row in rows))
        on = {"OTEL_EXPORTER_OTLP_ENDPOINT": where}
        for key, more in (("none", {}), ("1 %", on | sampled), ("all", on)):
            env = home_of(Path(name) / key, bundle, None) | more
            servers.append(start(key, key, [*QUIET, *API], env, cores[0]))
        sizes = [args.connections]
        runs = take_turns(servers, args.rounds, sizes, args.seconds, bodies, cores[-1])
    medians = {
        s.name: {k: statistics.median(r[k] for r in runs if r["server"] == s.name) for k in KINDS}
        for s in servers
    }
    print(
        f"\n{'traced':8}{'requests/s':>12}{'µs cpu each':>13}{'p50 ms':>9}{'p99 ms':>9}{'ratio':>8}"
    )
    for traced, m in medians.items():
        ratio = m["cpu_us"] / medians["none"]["cpu_us"]
        told = (m["per_s"], m["cpu_us"], m["p50_ms"], m["p99_ms"], ratio)
        print(traced.ljust(8) + "{:12,.0f}{:13.1f}{:9.2f}{:9.2f}{:8.2f}".format(*told))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "tracing.json").write_text(json.dumps({"medians": medians, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()

"""From the start of the process to the first 200 on /readyz, with a cached bundle.

Beside it what Python needs to import FastAPI and ONNX Runtime and do nothing, which no server in
Python can undercut. In turn, medians; memory is that of the process once it is ready.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from champion import make

from housing_mlops.config import Settings
from housing_mlops.registry.shelf import install_bundle

SERVE = "from housing_mlops.cli import app; app()"


def ready(home: str, log: str) -> tuple[float, float]:
    """Seconds to the first 200, and megabytes of memory then."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "HOUSING_HOME": home, "HOUSING_LOG": log}
    command = [sys.executable, "-c", SERVE, "serve", "--port", str(port)]
    start = time.perf_counter()
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                line = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                line.request("GET", "/readyz")
                if line.getresponse().status == 200:
                    break
            except OSError:
                assert process.poll() is None, "the server ended"
            finally:
                line.close()
            time.sleep(0.005)
        took = time.perf_counter() - start
        status = Path(f"/proc/{process.pid}/status").read_text()
        return took, int(status.split("VmRSS:")[1].split()[0]) / 1024
    finally:
        process.terminate()
        process.wait(30)


def imports() -> float:
    """Seconds to import FastAPI and ONNX Runtime."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import fastapi, onnxruntime"], check=True)
    return time.perf_counter() - start


def environment() -> float:
    """Megabytes of the serving environment, installed from its lock file."""
    lock = Path(__file__).parent.parent / "requirements" / "serve.lock"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["uv", "venv", "-q", folder, "--python", sys.executable], check=True)
        install = ["uv", "pip", "install", "-q", "--link-mode", "copy", "--python"]
        subprocess.run(
            [*install, f"{folder}/bin/python", "--require-hashes", "-r", str(lock)], check=True
        )
        return sum(p.lstat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--environment", action="store_true", help="install it and tell its size")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    bundle = make(args.out / "models")
    bare, whole, memory = [], [], []
    with tempfile.TemporaryDirectory() as home:
        install_bundle(bundle, "1", Settings(home=Path(home)))
        for _ in range(args.rounds):
            bare.append(imports())
            took, size = ready(home, "on")
            whole.append(took)
            memory.append(size)
    said = {
        "import_s": statistics.median(bare),
        "ready_s": statistics.median(whole),
        "ratio": statistics.median(w / b for w, b in zip(whole, bare, strict=True)),
        "memory_mb": statistics.median(memory),
    }
    if args.environment:
        said["environment_mb"] = environment()
    for name, value in said.items():
        print(f"{name:16}{value:9.2f}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "startup.json").write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()

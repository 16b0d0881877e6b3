"""Run the blocks of docs/demo.md in order, and compare what they answer with what the page shows.

usage: python docs/run_demo.py [--write] [--home FOLDER]

`--write` puts the answers into docs/demo.md and docs/demo.es.md, whose blocks are the same. FOLDER has a champion;
without one, the first `make serve` trains it. The ports are free ones; what is another at every run is shown as ….
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from execute import steady
from generate import ROOT

PAGES = [ROOT / "docs/demo.md", ROOT / "docs/demo.es.md"]
BLOCK = re.compile(r"```sh\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.S)
SERVE = re.compile(r"\bmake serve\b")
PASSING = [  # beside what a story leaves out
    (re.compile(r"\b[0-9a-f]{32}\b|\b(?=\w*\d)[0-9a-f]{8}\b"), "…"),
    (re.compile(r'("(?:latency_ms|uptime_s|age_s)": )[\d.e-]+'), r"\1…"),
    (re.compile(r"\b\d+(?:\.\d+)?(?= (?:ms|s|MB/s|rows/s|houses/s)\b)"), "…"),
    (re.compile(r"\b[\w.-]+@[\w.-]+\b"), "…"),
    (re.compile(r"\b\d{8}T\d{6}\.\d+"), "…"),
    (re.compile(r" +$", re.M), ""),
]


def filled(
    text: str,  # of a page
    answers: list[str],  # of its blocks, in order
) -> str:
    """The page with these answers below its blocks."""
    given = iter(answers)

    def put(match: re.Match[str]) -> str:
        answer = next(given)
        return f"```sh\n{match[1]}```\n" + (f"\n```text\n{answer}```\n" if answer else "")

    return BLOCK.sub(put, text)


def settled(
    text: str,  # what a block printed
) -> str:
    """The same without what is another one at every run."""
    text = steady(text)
    for pattern, instead in PASSING:
        text = pattern.sub(instead, text)
    return text


def free_ports() -> tuple[str, str]:
    """Two ports that nobody listens on."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1]), str(other.getsockname()[1])


class Demo:
    """A home, two ports, and the server that `make serve` started."""

    def __init__(self, home: Path) -> None:
        self.port, self.mlflow_port = free_ports()
        self.home = home
        self.server: subprocess.Popen[bytes] | None = None
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("HOUSING_")} | {
            "HOUSING_HOME": str(home),
            "HOUSING_TRAINING_NOTEBOOK": str(ROOT / "nbs/4_training/08_training.ipynb"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "110",
        }

    def serve(self, command: str) -> str:
        """Start the server and wait until it is ready."""
        self.stop()
        ports = f" PORT={self.port} MLFLOW_PORT={self.mlflow_port}"
        log = self.home / "serve.log"
        with log.open("wb") as out:
            self.server = subprocess.Popen(
                ["bash", "-c", command.strip() + ports],
                cwd=ROOT,
                env=self.environ,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        for _ in range(1200):
            if self.server.poll() is not None:
                raise SystemExit(f"`{command.strip()}` ended:\n{log.read_text()[-3000:]}")
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).close()
                return ""
            time.sleep(0.5)
        raise SystemExit(f"`{command.strip()}` is not ready:\n{log.read_text()[-3000:]}")

    def run(self, block: str) -> str:
        """What a block prints, as the page shows it."""
        block = block.replace("localhost:8000", f"localhost:{self.port}")
        block = block.replace("tcp:8000", f"tcp:{self.port}").replace(
            "--port 8000", f"--port {self.port}"
        )
        if SERVE.search(block):
            return self.serve(block)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-ec", block],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"This block failed:\n{block}\n{done.stdout}\n{done.stderr}")
        text = done.stdout.replace(f"localhost:{self.port}", "localhost:8000")
        return settled(text.replace(f"{self.home}/", ""))

    def stop(self) -> None:
        """End the server, if it runs."""
        if self.server and self.server.poll() is None:
            os.killpg(self.server.pid, signal.SIGTERM)
        if self.server:
            self.server.wait(60)


def compare(
    home: Path,  # where the demo lives
    write: bool = False,  # the answers into the pages
) -> list[str]:
    """Run the demo; a sentence for each block that answers something else than the page shows."""
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    blocks = [BLOCK.findall(text) for text in texts.values()]
    if blocks[0] != blocks[1] and not write:
        return ["docs/demo.md and docs/demo.es.md have other blocks."]
    demo, said, answers = Demo(home), [], []
    try:
        for block, shown in blocks[0]:
            answer = demo.run(block)
            answers.append(answer)
            if answer != shown:
                said.append(f"{block}answers\n{answer}and the page shows\n{shown}")
    finally:
        demo.stop()
    if write:
        for page, text in texts.items():
            page.write_text(filled(text, answers), encoding="utf-8")
        return []
    return said


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--home", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compare((asked.home or Path(folder)).resolve(), asked.write)
    print(*found, sep="\n")
    sys.exit(bool(found))

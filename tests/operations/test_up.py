"""`housing-mlops up` and `serve` as processes: they start, answer, and end cleanly."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ask, free_port, until

from housing_mlops.config import Settings
from housing_mlops.registry.shelf import install_bundle

pytestmark = pytest.mark.process

COMMAND = [sys.executable, "-c", "from housing_mlops.cli import app; app()"]


def run(home: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HOUSING_HOME": str(home), **environment},
        cwd=home,
    )


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in found.stdout.splitlines()]
    direct = [child for child, parent in pairs if parent == pid]
    return direct + [grandchild for child in direct for grandchild in children(child)]


INTERRUPTED = """
import signal, sys
from housing_mlops.operations.up import until_signalled

lines = 0

def again(frame, event, _):  # another signal at each line that the first one runs
    global lines
    if event == "line" and lines < 50:
        lines += 1
        signal.raise_signal(signal.SIGTERM)
    return again

with until_signalled() as done:
    sys.settrace(again)
    signal.raise_signal(signal.SIGTERM)
    done.is_set()
    sys.settrace(None)
    assert lines and done.wait(30)
"""


@pytest.mark.fault
def test_a_signal_in_the_middle_of_another_is_no_deadlock(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=tmp_path, check=True, timeout=60)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_up_serves_both_and_ends_both(
    sign: signal.Signals, bundles: dict[str, Path], tmp_path: Path
) -> None:
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    port, pages = free_port(), free_port()
    process = run(tmp_path, "up", "--port", str(port), "--mlflow-port", str(pages))
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if "Ctrl-C ends both" in line:
            break
    assert f"http://127.0.0.1:{port}/predict" in output, output
    for url in (f"http://127.0.0.1:{port}/health", f"http://127.0.0.1:{pages}/"):
        assert ask(url)[0] == 200
    started = children(process.pid)
    assert len(started) >= 2
    process.send_signal(sign)
    assert process.wait(60) == 0
    assert process.stdout.read().endswith("Stopped.\n")
    process.stdout.close()
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("words", [["up"], ["up", "--mlflow-port", "{port}"], ["serve"]])
def test_a_taken_port_is_told_at_once(words: list[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [w.format(port=port) for w in words]
        other = str(free_port())
        environment = {"HOUSING_PORT": other if "--mlflow-port" in words else port}
        extra = ["--mlflow-port", other] if words == ["up"] else []
        process = run(tmp_path, *words, *extra, **environment)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"Port {port} cannot be used" in output and "Traceback" not in output


def test_a_process_that_ends_by_itself_ends_the_rest(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    (tmp_path / "mlflow.db").write_text("this is no database")
    process = run(tmp_path, "up", "--port", str(free_port()), "--mlflow-port", str(free_port()))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "MLflow ended by itself" in output


def test_serve_without_a_model_says_what_to_run(tmp_path: Path) -> None:
    port = free_port()
    process = run(tmp_path, "serve", "--port", str(port))
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: ask(f"{address}/livez")[0] == 200, what="the server")
        status, problem = ask(f"{address}/readyz")
        assert status == 503 and "make train" in problem["detail"]
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    for line in output.splitlines():
        json.loads(line)


def gone(pids: list[int]) -> bool:
    """Whether none of these processes runs; one that nobody has waited for counts as gone."""
    listed = ["ps", "-o", "stat=", "-p", ",".join(map(str, pids))]
    states = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.split()
    return all(state.startswith("Z") for state in states)


@pytest.mark.fault
@pytest.mark.usefixtures("with_tables")
def test_killed_at_once_it_leaves_nobody_behind(bundles: dict[str, Path], tmp_path: Path) -> None:
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    port, pages = free_port(), free_port()
    first = run(tmp_path, "up", "--port", str(port), "--mlflow-port", str(pages))
    address = f"http://127.0.0.1:{port}"
    until(lambda: ask(f"{address}/readyz")[0] == 200, what="the API")
    second = run(tmp_path, "up", "--port", str(port), "--mlflow-port", str(free_port()))
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 1 and f"port {port} runs there already" in output
    started = children(first.pid)
    first.kill()
    first.communicate(timeout=60)
    until(lambda: gone(started), what="the end of what it started")


@pytest.mark.fault
def test_workers_end_with_their_master(bundles: dict[str, Path], tmp_path: Path) -> None:
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    port = free_port()
    master = run(tmp_path, "serve", "--port", str(port), "--workers", "2")
    until(lambda: ask(f"http://127.0.0.1:{port}/readyz")[0] == 200, what="the API")
    started = children(master.pid)
    assert len(started) >= 2
    master.kill()
    master.communicate(timeout=60)
    until(lambda: gone(started), what="the end of the workers")

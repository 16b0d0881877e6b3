"""The stack under test is built, started, and taken down with its volumes at the end."""

import os
import shutil
import time
from collections.abc import Iterator

import pytest
from processes import free_port
from running import NOTES, ODD, PROJECT, TAG, Stack, run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("the stack")
    for note in NOTES:
        terminalreporter.write_line(note)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, built and started; it is taken down with its volumes at the end."""
    if not shutil.which("docker") or run("docker", "info", check=False).returncode:
        pytest.exit("No Docker engine answers: the stack cannot be tested here.", 3)
    folder = tmp_path_factory.mktemp("stack")
    names = ("api", "mlflow", "prometheus", "grafana")
    house = {
        **{"CRIM": 0.00632, "ZN": 18.0, "INDUS": 2.31, "CHAS": 0.0, "NOX": 0.538, "RM": 6.575},
        **{"AGE": 65.2, "DIS": 4.09, "RAD": 1.0, "TAX": 296.0, "PTRATIO": 15.3, "B": 396.9},
        "LSTAT": 4.98,
    }
    this = Stack(folder, {name: free_port() for name in names}, house)
    # Nothing has to be said; what is said here keeps the test apart from a stack that may run beside it.
    given = {f"{name.upper()}_PORT": port for name, port in this.ports.items()} | {"TAG": TAG}
    # Fewer folds than by default: what is tested is the stack. All candidates run.
    given["TRAIN_PARAMETERS"] = "-p folds 2 -p repeats 1"
    given["MLFLOW_DB_PASSWORD"] = ODD  # one that is chosen; the others are made
    this.env_file.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    this.do("down", "-v", "--remove-orphans", check=False)
    try:
        # As from a fresh clone: no image is there, and nothing but this is called.
        images = [
            f"housing-mlops-{name}:{TAG}" for name in ("api", "train", "proxy", "scale", "feast")
        ]
        run("docker", "image", "rm", "-f", *images, check=False)
        begun = time.monotonic()
        this.do("up", "-d", timeout=1500)
        up = time.monotonic()
        this.wait_ready(900)
        ready = time.monotonic()
        NOTES.append(f"built and started in {up - begun:.0f} s, ready {ready - up:.0f} s later")
        yield this
    finally:
        if os.environ.get("KEEP_STACK"):
            NOTES.append(f"kept: {' '.join(this.compose)} -p {PROJECT} --env-file {this.env_file}")
        else:
            profiles = [
                w for name in ("observability", "scale", "feast") for w in ("--profile", name)
            ]
            this.do(*profiles, "down", "-v", "--remove-orphans", check=False)

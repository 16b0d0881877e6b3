"""What tests stand on: a home of their own, and a real PostgreSQL, started and stopped here."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from processes import free_port

from housing_mlops.config import Settings, get_settings
from housing_mlops.data.table import Table, load_table
from housing_mlops.operations.up import Part, mlflow_command, start, wait_for
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.registry.store import install_bundle
from housing_mlops.schema import load_dataset
from housing_mlops.training.candidates import CANDIDATES
from housing_mlops.training.export import export_bundle


def pytest_configure(config: pytest.Config) -> None:
    for name in [n for n in os.environ if n.upper().startswith("HOUSING_")]:
        del os.environ[name]
    home = tempfile.TemporaryDirectory(prefix="housing-tests-")
    config.add_cleanup(home.cleanup)
    os.environ |= {"HOUSING_HOME": home.name, "MPLBACKEND": "agg"}


@pytest.fixture(autouse=True)
def fresh_settings() -> None:
    """Settings are read once a process; a test that changes the environment needs them anew."""
    get_settings.cache_clear()


@pytest.fixture(scope="session")
def table() -> Table:
    """The embedded table."""
    return load_table(load_dataset("boston"))


@pytest.fixture(scope="session")
def bundles(table: Table, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two bundles of quick models, by name."""
    X, y = model_input(table.dataset, table.features), table.prices
    found = {}
    for name, rmse in {"LinearRegression": 4.9, "Ridge": 4.8}.items():
        fitted = CANDIDATES[name].build(table.dataset, 42).fit(X, y)
        about = {
            "model": name,
            "parameters": {},
            "metrics": {"cv_rmse": rmse},
            "interval": {"coverage": 0.9, "half_width": 7.0},
        }
        found[name] = tmp_path_factory.mktemp("bundles") / name
        export_bundle(found[name], fitted, table, (y - fitted.predict(X)).to_numpy(), about)
    return found


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Part]]:
    """An MLflow server that hands artifacts out, and settings that point to it."""
    home = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    store = Settings(home=home)
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    part = start("MLflow", mlflow_command(store, port), home / "mlflow.log", store, **quiet)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for({f"{address}/health": part}, 120)
        yield Settings(home=home, tracking_uri=address), part
    finally:
        part.stop()


@dataclass
class Postgres:
    """A PostgreSQL server of the test's own, in a temporary folder, on a socket in it."""

    programs: Path
    folder: Path

    def run(self, program: str, *args: str) -> None:
        """Run one of the server's programs, which refuse to be run as root."""
        command = [str(self.programs / program), *args]
        if os.geteuid() == 0:
            command = [
                "setpriv",
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                *command,
            ]
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.DEVNULL, check=False)
        assert done.returncode == 0, f"{program} failed, see {self.folder / 'log'}"

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        log = str(self.folder / "log")
        self.run("pg_ctl", "start", "-w", "-D", f"{self.folder}/data", "-l", log, "-o", options)

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", f"{self.folder}/data")

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def make(self, database: str) -> str:
        """The URL of a new, empty database."""
        engine = sa.create_engine(
            self.url("postgres").replace("postgresql", "postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {database}")
        engine.dispose()
        return self.url(database)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL; skipped where it is not installed, an error where CI=true."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and (on_path := shutil.which("initdb")):
        found.append(Path(on_path).resolve())
    if not found:
        why = "PostgreSQL's server is not installed: apt-get install postgresql"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        if os.geteuid() == 0:
            shutil.chown(name, "postgres", "postgres")
        server = Postgres(found[-1].parent, Path(name))
        server.run("initdb", "-D", f"{name}/data", "-U", "postgres", "-A", "trust", "--no-sync")
        server.start()
        yield server
        server.stop()


@dataclass
class Server:
    """`housing-mlops serve` in a process of its own, on a port of its own."""

    home: Path
    environment: Mapping[str, str]
    port: int = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    output: Path = field(init=False)

    def __post_init__(self) -> None:
        self.output = self.home / "server.log"
        self.port = free_port()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, path: str = "/readyz", log_s: float = 5) -> "Server":
        """This server, once it answers on `path` and has had `log_s` to reach its log."""
        code = "from housing_mlops.cli import app; app()"
        command = [sys.executable, "-c", code, "serve", "--port", str(self.port)]
        environment = {**os.environ, "HOUSING_HOME": str(self.home), **self.environment}
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert self.process.poll() is None, self.output.read_text()
            try:
                with urllib.request.urlopen(self.address + path, timeout=2) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.1)
        else:
            raise AssertionError(f"no answer on {path}:\n{self.output.read_text()}")
        end = time.monotonic() + log_s
        while (log := self.get("/metrics")["log"]) and not log["connected"]:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        return self

    def get(self, path: str, accept: str = "application/json") -> Any:
        """What `path` answers: parsed, when it is JSON."""
        request = urllib.request.Request(self.address + path, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=30) as answer:
            body = answer.read()
            return json.loads(body) if "json" in answer.headers["content-type"] else body.decode()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the process and all that it started, and wait for it."""
        if self.process is not None and self.process.poll() is None:
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
            self.process.wait(30)


@pytest.fixture
def serve(tmp_path: Path, bundles: dict[str, Path]) -> Iterator[Callable[..., Server]]:
    """A function that starts a server with a model, in a home of its own, as set by keywords."""
    made: list[Server] = []

    def start(model: bool = True, path: str = "/readyz", **environment: str) -> Server:
        home = tmp_path / f"home{len(made)}"
        home.mkdir()
        if model:
            install_bundle(bundles["Ridge"], "1", Settings(home=home))
        made.append(Server(home, environment))
        return made[-1].start(path)

    yield start
    for server in made:
        server.kill()

"""What tests stand on: a home of their own, the order they run in, and what several of them use."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import coverage
import pytest
from mlflow.store.db import utils
from mlflow.store.model_registry import sqlalchemy_store
from playwright.sync_api import Browser, sync_playwright
from processes import free_port
from servers import Postgres, Server, program
from sqlalchemy import Engine, create_engine, inspect
from xdist.scheduler import LoadScopeScheduling

from housing_mlops.cluster import workers
from housing_mlops.config import Settings, get_settings
from housing_mlops.data.table import Table, load_table
from housing_mlops.operations.up import Process, mlflow_command, start, wait_for
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.schema import load_dataset
from housing_mlops.training.candidates import CANDIDATES
from housing_mlops.training.export import export_bundle

CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]

# What a test starts by using a fixture.
STARTS = {
    **{"serve": "process", "mlflow_server": "process"},
    **{"postgres": "database", "browser": "browser", "dask_client": "scale"},
}
# Files whose tests share a fixture that costs much, or stands at one port: a worker has all of a word.
TOGETHER = {
    **dict.fromkeys(["test_pipeline.py", "test_store.py", "test_rollback.py"], "mlflow"),
    **dict.fromkeys(["test_cluster.py", "test_scoring.py", "test_search_on_workers.py"], "dask"),
    **{"test_deploy.py": "prometheus", "test_kubernetes.py": "kustomize", "test_feast.py": "feast"},
    **{"test_benchmarks.py": "benchmarks"},
    **{"test_sources.py": "kaggle", "test_trial.py": "trial", "test_access.py": "keys"},
    **{"test_protocol.py": "protocol", "test_operations_page.py": "page", "test_lab.py": "lab"},
}
# The longest begin first, so that workers end together.
LONGEST = ["train", "browser", "scale", "process", "database"]


def pytest_configure(config: pytest.Config) -> None:
    """A home of this worker's own, and no setting of the person who runs the tests."""
    for name in [n for n in os.environ if n.upper().startswith("HOUSING_")]:
        del os.environ[name]
    home = tempfile.TemporaryDirectory(prefix="housing-tests-")
    config.add_cleanup(home.cleanup)
    os.environ |= {"HOUSING_HOME": home.name, "MPLBACKEND": "agg"}


def pytest_sessionfinish() -> None:
    """Write down what was covered: xdist gives its workers ten seconds to end, and then kills."""
    if measuring := coverage.Coverage.current():
        measuring.save()


class Together(LoadScopeScheduling):
    """Tests one by one to whichever worker is free, but for those that belong together."""

    # xdist 3.8 has groups by a mark (`--dist loadgroup`), which pytest 9.2 passes over without a word.
    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(nodeid.partition("::")[0].rpartition("/")[2], nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """What the workers get their tests from."""
    return Together(config, log)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what their fixtures start, and sort them."""
    for item in items:
        for name in STARTS.keys() & getattr(item, "fixturenames", []):
            item.add_marker(STARTS[name])
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in LONGEST])


@pytest.fixture(autouse=True)
def fresh_settings() -> None:
    """Settings are read once a process; a test that changes the environment needs them anew."""
    get_settings.cache_clear()


@pytest.fixture(autouse=True)
def processes_are_announced(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no marker says so, no test starts another Python (`uname` and the like may)."""
    # An audit hook would see more. It also runs where CPython 3.11 starts to trace a new thread, and
    # two that meet there lose one of the threads: under coverage a test then waits for good.
    if any(request.node.get_closest_marker(name) for name in LONGEST):
        return
    starts = subprocess.Popen.__init__

    def refuse(self: Any, args: Any, *more: Any, **options: Any) -> None:
        command = args if isinstance(args, str) else args[0]
        assert str(command) != sys.executable, (
            "This test starts a process: mark it with pytest.mark.process, or its notebook with "
            "`#| marks: process`, for `make check` runs what starts none."
        )
        starts(self, args, *more, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(scope="session", autouse=True)
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Path]]:
    """MLflow's tables are made once, and every new database begins as a copy; so may a new home."""
    folder = tmp_path_factory.mktemp("tables")
    make = utils._initialize_tables

    @cache
    def made() -> sqlite3.Connection:
        engine = create_engine(f"sqlite:///{folder}/mlflow.db")
        make(engine)  # half a hundred migrations: four seconds
        engine.dispose()
        return sqlite3.connect(folder / "mlflow.db", check_same_thread=False)

    def copied(engine: Engine) -> None:
        if engine.dialect.name != "sqlite" or inspect(engine).get_table_names():
            return make(engine)
        with closing(engine.raw_connection()) as connection:
            made().backup(connection.driver_connection)

    def prepared(home: Path) -> Path:
        home.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(home / "mlflow.db")) as connection:
            made().backup(connection)
        return home

    with pytest.MonkeyPatch.context() as patch:
        for module in (utils, sqlalchemy_store):
            patch.setattr(module, "_initialize_tables", copied)
        yield prepared


@pytest.fixture
def with_tables(tmp_path: Path, mlflow_tables: Callable[[Path], Path]) -> None:
    """The test's folder has MLflow's tables already: other processes would make them in seconds."""
    mlflow_tables(tmp_path)


@pytest.fixture(scope="session")
def dask_client() -> Iterator[Any]:
    """Two workers of Dask on this machine; one that a test kills is replaced."""
    with workers(Settings(scheduler="local", scale_workers=2)) as client:
        yield client


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
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Callable[[Path], Path]
) -> Iterator[tuple[Settings, Process]]:
    """An MLflow server that hands artifacts out, and settings that point to it."""
    home = mlflow_tables(tmp_path_factory.mktemp("mlflow"))
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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL; skipped where it is not installed, an error where CI=true."""
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    initdb = program("postgresql", *newest, "initdb")
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        if os.geteuid() == 0:
            shutil.chown(name, "postgres", "postgres")
        server = Postgres(initdb.parent, Path(name))
        server.run("initdb", "-D", f"{name}/data", "-U", "postgres", "-A", "trust", "--no-sync")
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="module")  # Playwright's event loop lets no other run beside it
def browser() -> Iterator[Browser]:
    """Debian's Chromium; skipped where it is not installed, an error where CI=true."""
    chromium = program("chromium", "google-chrome", "chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield opened
        opened.close()


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

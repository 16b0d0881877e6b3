"""A real Feast server, in an environment of its own made from the lock: nothing here is a mock."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from processes import ROOT, ask, free_port, until
from typer.testing import CliRunner

from housing_mlops.cli import app as commands
from housing_mlops.config import Settings
from housing_mlops.data.feast import FeastStore
from housing_mlops.data.feature_view import (
    ExpiredHouse,
    FeatureRow,
    FeatureStoreError,
    UnknownHouse,
    feature_view,
    read_time,
)
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.schema import load_dataset
from housing_mlops.serving.api import create_app

BOSTON = load_dataset("boston")
HOUSE, VIEW = BOSTON.example, feature_view(BOSTON)
pytestmark = pytest.mark.process


@dataclass
class Feast:
    """`feast serve` in a folder with our definitions."""

    programs: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, *args: str) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["HOME"] = str(self.folder)  # gunicorn keeps a socket there
        with (self.folder / "feast.log").open("ab") as log:
            return subprocess.Popen(
                [self.programs / "feast", *args],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        return (self.folder / "feast.log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        self.process = self.run("serve", "--port", str(self.port), "--no-access-log")
        until(self.answers, 180, "an answer of feast serve")

    def answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log()
        return ask(f"{self.url}/health")[0] == 200

    def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait(30)


def environment(folder: Path) -> Path:
    """The programs of a new environment with what the lock pins; skipped where PyPI is out of reach."""
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
    lock = str(ROOT / "requirements/feast.lock")
    sync = [uv, "pip", "sync", "-q", "--python", folder / "bin/python", "--require-hashes", lock]
    done = subprocess.run(sync, capture_output=True, text=True, check=False)
    if done.returncode:
        unreachable = "Failed to fetch" in done.stderr or "error sending request" in done.stderr
        if unreachable and os.environ.get("CI") != "true":
            pytest.skip(f"Feast cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
        pytest.fail(done.stderr)
    return folder / "bin"


@pytest.fixture(scope="module")
def feast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Feast]:
    """A Feast server that knows the declaration, and no house."""
    folder = tmp_path_factory.mktemp("feast")
    server = Feast(environment(folder / "env"), folder / "repository", free_port())
    done = CliRunner().invoke(commands, ["features", "definitions", str(server.folder)])
    assert done.exit_code == 0, done.output
    assert server.run("apply").wait(180) == 0, server.log()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def store(feast: Feast) -> FeastStore:
    return FeastStore(feast.url, 30)


def row(house_id: str, day: str, **changes: Any) -> FeatureRow:
    return FeatureRow(house_id, read_time(f"{day}T00:00Z"), HOUSE | changes)


def test_the_newest_is_served_whatever_came_last(store: FeastStore) -> None:
    with pytest.raises(UnknownHouse):
        store.get_online_features(VIEW, "a")
    assert store.write(VIEW, [row("a", "2026-05-01", RM=5.0), row("b", "2010-01-01")]) == 2
    first = store.get_online_features(VIEW, "a")
    assert first == row("a", "2026-05-01", RM=5.0)
    store.write(VIEW, [row("a", "2026-04-01", RM=4.0)])
    assert store.get_online_features(VIEW, "a") == first, "history does not overwrite today"
    store.write(VIEW, [row("a", "2026-05-01", RM=5.5), row("c", "2026-05-01", LSTAT=None)])
    assert store.get_online_features(VIEW, "a").features["RM"] == 5.5, "a correction does"
    assert store.get_online_features(VIEW, "c").features == HOUSE | {"LSTAT": None}
    with pytest.raises(ExpiredHouse, match="days old"):
        store.get_online_features(feature_view(BOSTON, ttl_days=365), "b")
    assert "serves" in store.materialize(VIEW)


def test_what_feast_refuses_is_told_in_its_words(store: FeastStore) -> None:
    other = feature_view(BOSTON.model_copy(update={"name": "other"}))
    for attempt in (
        lambda: store.get_online_features(other, "a"),
        lambda: store.materialize(other),
    ):
        with pytest.raises(FeatureStoreError, match=r"answers [45]"):
            attempt()


KILLED = """
import os
import pyarrow.parquet as pq
from feast import FeatureStore
from feast.data_source import PushMode

rows = pq.read_table("data/boston.parquet").to_pandas()
pq.ParquetWriter.write_table = lambda *_, **__: os.kill(os.getpid(), 9)
FeatureStore(".").push("boston", rows, to=PushMode.OFFLINE)
"""
ANEW = """
from pathlib import Path
from threading import Thread
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore
from feast.data_source import PushMode
from housing_offline import keep_columns

path = Path("data/boston.parquet")
rows = pq.read_table(path)
assert len(rows) > 3
pushes = [
    Thread(target=FeatureStore(".").push, args=("boston", rows.to_pandas()), kwargs={"to": PushMode.OFFLINE})
    for _ in range(4)
]
[push.start() for push in pushes]
[push.join() for push in pushes]
assert len(pq.read_table(path)) == 5 * len(rows), "each push waited for the other"
other = pa.schema([*[f for f in rows.schema if f.name not in ("RM", "TAX")], ("TAX", "string"), ("NEW", "double")])
keep_columns(path, other)
after = pq.read_table(path)
assert after.schema == other and after["LSTAT"].to_pylist() == rows["LSTAT"].to_pylist() * 5
assert after["NEW"].null_count == after["TAX"].null_count == len(after)
[kept] = path.parent.glob("boston.[0-9]*")
keep_columns(path, other)
assert pq.read_table(kept)["RM"].null_count == 0 and [kept] == [*path.parent.glob("boston.[0-9]*")]
kept.rename(path)
"""


@pytest.mark.fault
def test_a_push_that_is_killed_and_pushes_at_once_lose_no_row(
    feast: Feast, store: FeastStore
) -> None:
    store.write(VIEW, [row(f"k-{n}", "2026-05-01") for n in range(9)])
    python, before = feast.programs / "python", feast.folder / "data/boston.parquet"
    held = before.read_bytes()
    done = subprocess.run([python, "-c", KILLED], cwd=feast.folder, check=False)
    assert done.returncode == -9 and before.read_bytes() == held
    subprocess.run([python, "-c", ANEW], cwd=feast.folder, check=True)
    assert store.get_online_features(VIEW, "k-8").features == HOUSE


@pytest.mark.fault
def test_from_a_file_of_houses_to_a_price(
    feast: Feast, tmp_path: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands as a person gives them, the API as a client asks it, and Feast killed at the end."""
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    more = {"FEATURE_STORE": feast.url, "FEATURE_TIMEOUT_S": "30", "FEATURE_TTL_DAYS": "36500"}
    for name, value in {"HOME": str(tmp_path), "LOG": "off", **more}.items():
        monkeypatch.setenv(f"HOUSING_{name}", value)
    with (tmp_path / "houses.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["house_id", *HOUSE])
        table.writeheader()
        table.writerows({"house_id": f"12-{i:04}", **HOUSE, "RM": 5 + i / 10} for i in range(9))
    load = ["features", "load", str(tmp_path / "houses.csv"), "--at", "2026-01-01T00:00Z"]
    assert "9 rows" in CliRunner().invoke(commands, load).output
    told = json.loads(CliRunner().invoke(commands, ["features", "get", "12-0003"]).output)
    assert told["RM"] == 5.3 and told["event_timestamp"] == "2026-01-01T00:00:00+00:00"
    with TestClient(create_app(Settings())) as api:
        price = api.post("/predict", json={"house_id": "12-0003"}).json()["prediction"]
        assert price == api.post("/predict", json=HOUSE | {"RM": 5.3}).json()["prediction"]
        stranger = api.post("/predict", json={"house_id": "99-9999"})
        assert stranger.status_code == 404 and "99-9999" in stranger.text
        feast.stop()
        away = api.post("/predict", json={"house_id": "12-0003"})
        assert away.status_code == 503 and "Feast" in away.json()["detail"]
        assert api.post("/predict", json=HOUSE).status_code == 200

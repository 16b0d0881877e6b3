"""Databases, logs and faults of the disk for the tests of the prediction log."""

import itertools
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from housing_mlops.prediction_log.database import connect, migrate
from housing_mlops.prediction_log.log import LogOptions, PredictionLog

names = (f"log{n}" for n in itertools.count())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the journal will be."""
    return tmp_path / "journal"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'predictions.db'}"


@pytest.fixture
def postgres_url(postgres: Any) -> str:
    """An empty database in PostgreSQL."""
    made: str = postgres.make(next(names))
    return made


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.database)])
def url(request: pytest.FixtureRequest) -> str:
    """An empty database, once of each kind."""
    made: str = request.getfixturevalue(f"{request.param}_url")
    return made


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """A migrated database."""
    made = connect(url)
    migrate(made)
    yield made
    made.dispose()


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., PredictionLog]]:
    """Starts logs that share one journal folder, and closes them."""
    logs: list[PredictionLog] = []

    def make(url: str, **options: Any) -> PredictionLog:
        chosen = LogOptions(**{"interval_s": 0.01, "housekeeping_s": 0.05, **options})
        logs.append(PredictionLog(url, folder, chosen))
        return logs[-1].start(30)

    yield make
    for log in logs:
        log.close(0)


@pytest.fixture
def disk_of() -> Iterator[Callable[[int], None]]:
    """Sets the largest size that a file may reach: writes across it are short, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)

"""What tests stand on: a home of their own, and a real PostgreSQL, started and stopped here."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from housing_mlops.config import get_settings


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

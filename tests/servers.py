"""The programs and servers that tests start: a PostgreSQL, and `housing-mlops serve`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from processes import free_port, until


def program(
    package: str,  # Debian's package that has it
    *names: str | Path,  # commands or paths; the first that is there is taken
) -> Path:
    """The path of a program; the test is skipped where it is missing, and fails where CI=true."""
    for name in names:
        if path := shutil.which(name):
            return Path(path).resolve()
    why = f"{names[-1]} is not installed: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@dataclass
class Postgres:
    """A PostgreSQL server of the test's own, in a temporary folder, on a socket in it."""

    programs: Path
    folder: Path

    def run(self, program: str, *args: str) -> None:
        """Run one of the server's programs, which refuse to be run as root."""
        command = [str(self.programs / program), *args]
        if os.geteuid() == 0:
            user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
            command = ["setpriv", *user, *command]
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.DEVNULL, check=False)
        assert done.returncode == 0, f"{program} failed, see {self.folder / 'log'}"

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses=''"
        log = str(self.folder / "log")
        self.run("pg_ctl", "start", "-w", "-D", f"{self.folder}/data", "-l", log, "-o", options)

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", f"{self.folder}/data")

    def signal(self, number: int) -> None:
        """Send a signal to the server and to each of its processes: SIGSTOP, SIGCONT, SIGKILL."""
        first = int((self.folder / "data/postmaster.pid").read_text().split()[0])
        if number == signal.SIGKILL:
            os.kill(first, signal.SIGSTOP)  # a process that it starts now would outlive it
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for process in (first, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        if number == signal.SIGKILL:  # while its number is taken, the next one takes it for alive
            until(lambda: not Path(f"/proc/{first}").exists())

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
        quick = {"HOUSING_DRIFT_LEAST_S": "0"}  # a test's rows come within a second
        environment = {**os.environ, **quick, "HOUSING_HOME": str(self.home), **self.environment}
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        until(lambda: self.answers(path), what=f"an answer on {path} (see {self.output})")
        with suppress(AssertionError):
            until(self.has_log, log_s)
        return self

    def answers(self, path: str) -> bool:
        """Whether `path` answers 200; the test fails when the process has ended."""
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()
        with urllib.request.urlopen(self.address + path, timeout=2) as answer:
            return bool(answer.status == 200)

    def has_log(self) -> bool:
        """Whether the log is connected, or was not asked for."""
        log = self.get("/metrics")["log"]
        return not log or bool(log["connected"])

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

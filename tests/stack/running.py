"""The container stack under test: a project of its own, on ports of its own, from the files as they are."""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, ask, until

PROJECT = "housing-test"
TAG = "test"
NEXT = "test-next"  # the tag of another version of the images
ODD = "a:b\\c@d/e%f'g"  # a password with what a URL, a file of libpq and SQL would trip over
GRAFANA = "grafana/grafana:12.1.1"
NOTES: list[str] = []  # measured on the way, shown at the end


def run(
    *command: str, env: dict[str, str] | None = None, timeout: float = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root; the test fails with what it said."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("HOUSING_", "PYTHON", "COMPOSE_"))
    }
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**kept, "COMPOSE_HTTP_TIMEOUT": "600", **(env or {})},  # an engine that is busy
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def compose_command() -> list[str]:
    found = run("docker", "compose", "version", check=False)
    return ["docker", "compose"] if found.returncode == 0 else ["docker-compose"]


@dataclass
class Stack:
    """The running stack."""

    folder: Path
    ports: dict[str, int]
    house: dict[str, Any]
    compose: list[str] = field(default_factory=compose_command)
    accepted: list[str] = field(default_factory=list)  # ids of all prices that were answered

    @property
    def env_file(self) -> Path:
        return self.folder / "stack.env"

    def url(self, service: str, path: str = "") -> str:
        return f"http://127.0.0.1:{self.ports[service]}{path}"

    def do(
        self,
        *args: str,
        project: str = PROJECT,
        env_file: Path | None = None,
        timeout: float = 300,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run compose with the test's project and environment."""
        given = ["--env-file", str(env_file or self.env_file), "-p", project]
        return run(*self.compose, *given, *args, timeout=timeout, check=check)

    def container(self, service: str) -> str:
        found = self.do("ps", "-q", *(["-a"] if self.compose[0] == "docker" else []), service)
        assert found.stdout.strip(), f"{service} has no container"
        return found.stdout.split()[0]

    def containers(self, service: str) -> list[str]:
        return self.do("ps", "-q", service).stdout.split()

    def inside(
        self, service: str, *words: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A command in a container of a service, whatever number it has: an upgrade counts on."""
        return run("docker", "exec", self.container(service), *words, check=check)

    @property
    def options(self) -> str:
        """How the tasks of the Makefile find this stack."""
        return f"-p {PROJECT} --env-file {self.env_file}"

    def make_exec(
        self, words: str, service: str = "api", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """What `make exec` does, as the operations page has it."""
        told = {"COMPOSE_OPTIONS": self.options}
        return run(
            "make", "-s", "exec", f"SERVICE={service}", f"ARGS={words}", env=told, check=check
        )

    def upgrade(self, tag: str) -> subprocess.CompletedProcess[str]:
        """What `make upgrade` does, to the images of `tag`."""
        return run(
            *(sys.executable, "deploy/upgrade.py"),
            env={"TAG": tag, "COMPOSE_OPTIONS": self.options},
            timeout=300,
        )

    def inspect(self, service: str) -> dict[str, Any]:
        [said] = json.loads(run("docker", "inspect", self.container(service)).stdout)
        return dict(said)

    def state(self, service: str) -> str:
        """Health where there is a health check, otherwise the container's status."""
        state = self.inspect(service)["State"]
        return str(state.get("Health", state)["Status"])

    def logs(self, service: str) -> str:
        done = run("docker", "logs", self.container(service))
        return done.stdout + done.stderr

    def is_healthy(self, service: str) -> bool:
        return self.state(service) == "healthy"

    def wait_healthy(self, *services: str, patience_s: float = 120) -> None:
        for service in services:
            until(partial(self.is_healthy, service), patience_s, f"{service} is healthy")

    def wait_ready(self, patience_s: float = 60) -> None:
        until(lambda: ask(self.url("api", "/readyz"))[0] == 200, patience_s, "the API is ready")

    def sql(self, query: str, database: str = "housing") -> str:
        command = ("exec", "-T", "db", "psql", "-U", "postgres", "-d", database, "-tAc", query)
        return self.do(*command).stdout.strip()

    def kill(self, service: str) -> None:
        """SIGKILL from outside, as the kernel does when memory runs out: no client asked for it."""
        pid = self.inspect(service)["State"]["Pid"]
        code = f"import os; os.kill({pid}, 9)"
        image = f"housing-mlops-api:{TAG}"
        run(
            *("docker", "run", "--rm", "--pid", "host", "--user", "0", "--network", "none"),
            *("--entrypoint", "python", image, "-c", code),
        )

    def missing(self) -> int:
        """How many of the accepted predictions the database does not have, or has twice."""
        rows = self.sql("SELECT id FROM predictions").split()
        assert len(rows) == len(set(rows))
        return len(set(self.accepted) - set(rows))

    def wait_stored(self, patience_s: float = 60) -> None:
        assert len(self.accepted) == len(set(self.accepted))
        until(lambda: not self.missing(), patience_s, "every accepted prediction is stored")


class Load:
    """Two clients on loopback that ask for prices: at most `count` each, for at most `most_s` seconds."""

    def __init__(
        self, stack: Stack, count: int, pause_s: float = 0.005, most_s: float = 60
    ) -> None:
        self.stack, self.count, self.pause_s, self.most_s = stack, count, pause_s, most_s
        self.ids: list[str] = []
        self.failed: dict[str, int] = {}
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(2)]

    def _ask(self) -> None:
        end, body, done = time.monotonic() + self.most_s, json.dumps(self.stack.house), 0
        kind = {"Content-Type": "application/json"}
        while done < self.count and time.monotonic() < end and not self.stopped.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.stack.ports["api"], timeout=5)
            with closing(connection):
                while done < self.count and time.monotonic() < end and not self.stopped.is_set():
                    done += 1
                    try:
                        connection.request("POST", "/predict", body, kind)
                        answer = connection.getresponse()
                        text = answer.read()
                    except (OSError, http.client.HTTPException) as error:
                        self._count(type(error).__name__)
                        time.sleep(0.05)
                        break  # and connect anew
                    if answer.status == 200:
                        self.ids.append(json.loads(text)["prediction_id"])
                    else:
                        self._count(str(answer.status))
                    time.sleep(self.pause_s)

    def _count(self, reason: str) -> None:
        self.failed[reason] = self.failed.get(reason, 0) + 1

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        time.sleep(0.3)
        return self

    def __exit__(self, kind: object, error: object, where: object) -> None:
        if kind:
            self.stopped.set()
        for thread in self.threads:
            thread.join(self.most_s + 10)
        self.stack.accepted += self.ids

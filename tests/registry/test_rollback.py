"""The way back where one would try it first: at the server, without MLflow, while clients ask."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from processes import ask, until
from servers import Server

from housing_mlops.config import Settings
from housing_mlops.operations.up import Process
from housing_mlops.registry.aliases import promote
from housing_mlops.registry.store import register_bundle
from housing_mlops.schema import load_dataset
from housing_mlops.training.tracking import open_experiment

pytestmark = pytest.mark.process

# What the image of the API has not.
BARE = """
import sys
sys.modules.update(dict.fromkeys(["mlflow", "pandas", "sklearn", "scipy", "matplotlib", "onnx"]))
from housing_mlops.cli import app
app()
"""


def housing(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    """What `housing-mlops` does in the server's environment."""
    environment = {**os.environ, "HOUSING_HOME": str(server.home), **server.environment}
    command = [sys.executable, "-c", BARE, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


class Clients:
    """A few that ask for a price again and again, and what they were told."""

    def __init__(self, server: Server, house: object, count: int = 3) -> None:
        self.url, self.house, self.over = f"{server.address}/predict", house, threading.Event()
        self.told: list[list[tuple[int, str]]] = [[] for _ in range(count)]
        self.threads = [threading.Thread(target=self.go, args=[told]) for told in self.told]
        for thread in self.threads:
            thread.start()

    def go(self, told: list[tuple[int, str]]) -> None:
        """Ask until it is over."""
        while not self.over.wait(0.05):
            try:
                status, body = ask(self.url, self.house)
                told.append((status, str(body["model_version"])))
            except Exception as error:
                told.append((0, repr(error)))

    def heard(self, version: str) -> bool:
        """Whether each was last answered by that version."""
        return all(told and told[-1] == (200, version) for told in self.told)

    def stop(self) -> None:
        """Ask no more."""
        self.over.set()
        for thread in self.threads:
            thread.join()


def test_a_roll_back_beside_the_server_is_followed_and_no_request_fails(
    mlflow_server: tuple[Settings, Process],
    bundles: dict[str, Path],
    serve: Callable[..., Server],
) -> None:
    trainer = mlflow_server[0].model_copy(update={"model_name": "rolled-back"})
    for name in ("LinearRegression", "Ridge"):
        with mlflow.start_run(experiment_id=open_experiment(trainer)) as run:
            pass
        promote(register_bundle(bundles[name], run.info.run_id, trainer), trainer)
    server = serve(
        model=False,
        HOUSING_TRACKING_URI=trainer.tracking_uri,
        HOUSING_MODEL_NAME="rolled-back",
        HOUSING_REGISTRY_POLL_S="0.2",
    )
    clients = Clients(server, load_dataset("boston").example)
    try:
        until(lambda: clients.heard("2"))
        done = housing(server, "rollback", "--reason", "it prices nonsense", "--by", "ann")
        assert (done.returncode, done.stdout) == (0, "Version 1 is the champion again.\n"), done
        until(lambda: clients.heard("1"))
    finally:
        clients.stop()
    for told in clients.told:
        versions = [version for _, version in told]
        assert {status for status, _ in told} == {200}
        assert versions == ["2"] * versions.count("2") + ["1"] * versions.count("1")
    listed = housing(server, "history", "--json")
    assert listed.returncode == 0, listed
    newest = json.loads(listed.stdout)[0]
    assert (newest["action"], newest["before"], newest["after"]) == ("rollback", "2", "1")
    assert (newest["who"], newest["why"]) == ("ann", "it prices nonsense")
    table = housing(server, "models").stdout
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [
        *(["2", "challenger,"], ["1", "champion"])
    ]
    refused = housing(server, "rollback", "--to", "7")
    assert refused.returncode == 1 and "Version 7 of rolled-back is not there" in refused.stderr

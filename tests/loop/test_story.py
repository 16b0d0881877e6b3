"""The loop from end to end, with real processes: a server that answers, commands that look, train and move."""

import http.client
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from processes import ROOT, until
from servers import Server

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.operations.notebooks import train
from housing_mlops.prediction_log.database import connect
from housing_mlops.prediction_log.decisions import read_decisions
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.registry.audit import history
from housing_mlops.training.candidates import CANDIDATES

pytestmark = [pytest.mark.process, pytest.mark.train]
NOTEBOOK = ROOT / Settings().training_notebook
SMALL = {"folds": 3, "repeats": 1, "diagnose": False}
LOOP = {
    "HOUSING_AUTOPROMOTE": "trial",
    "HOUSING_TRIAL_SHARE": "0.2",
    "HOUSING_TRIAL_CLOSE_DAYS": "0",  # prices paid are in within seconds here
    "HOUSING_REGISTRY_POLL_S": "0.1",
    "HOUSING_GATE_REPEATS": "1",  # a third of the fits
}
Sale = tuple[str, float]  # identifier and price paid


class Town:
    """A market that is known: what a house is worth, and how many of those who ask buy."""

    def __init__(self, table: Table, server: Server) -> None:
        X, y = model_input(table.dataset, table.features), table.prices
        self.nature = CANDIDATES["GradientBoosting"].build(table.dataset, 0).fit(X, y)
        self.table, self.server = table, server
        self.statuses: Counter[int] = Counter()
        self.answered: Counter[str] = Counter()

    def ask(self, houses: pd.DataFrame, names: list[str]) -> list[dict[str, Any]]:
        """The answers to one client after the other, over a connection that is kept."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        told = []
        for house, name in zip(houses.to_dict("records"), names, strict=True):
            body = json.dumps({k: None if v != v else v for k, v in house.items()})
            headers = {"Content-Type": "application/json", "X-Client-Id": name}
            connection.request("POST", "/predict", body, headers)
            answer = connection.getresponse()
            told.append(json.loads(answer.read()))
            self.statuses[answer.status] += 1
        connection.close()
        return told

    def live(self, n: int, seed: int, level: float, crime: float, sold: float) -> list[Sale]:
        """The sales among `n` houses that are asked about, four clients at a time."""
        rng = np.random.default_rng(seed)
        houses = self.table.features.sample(n, replace=True, random_state=seed)
        houses["CRIM"] += crime
        worth = self.nature.predict(model_input(self.table.dataset, houses)) * level
        paid = np.clip(worth + rng.normal(0, 1.5, n), 1, 99)
        parts = np.array_split(np.arange(n), 4)
        with ThreadPoolExecutor(4) as pool:
            names = [[f"client-{seed}-{i}" for i in part] for part in parts]
            told = pool.map(self.ask, [houses.iloc[part] for part in parts], names)
        answers = [answer for part in told for answer in part]
        self.answered += Counter(a["model_version"] for a in answers)
        until(lambda: self.server.get("/metrics")["log"]["backlog_rows"] == 0)
        return [
            (answer["prediction_id"], price)
            for answer, price in zip(answers, paid, strict=True)
            if rng.random() < sold
        ]


def run(server: Server, *words: str) -> str:
    """What a command of `housing-mlops` prints, in a process of its own beside the server."""
    code = "from housing_mlops.cli import app; app()"
    environment = {**os.environ, **LOOP, "HOUSING_HOME": str(server.home)}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.nightly
def test_what_was_learnt_in_the_field_comes_back(
    table: Table, serve: Callable[..., Server]
) -> None:
    server = serve(model=False, path="/livez", **LOOP)
    settings = Settings(home=server.home)
    first = train({**SMALL, "models": ["LinearRegression"]}, settings, NOTEBOOK)
    assert first["version"] == "1" and first["promoted"]
    until(lambda: server.answers("/readyz"), what="the first model")
    town = Town(table, server)

    def report(sales: list[Sale], name: str) -> None:
        lines = ["prediction_id,price,date", *(f"{i},{p:.2f},{datetime.now(UTC):%Y-%m-%d}" for i, p in sales)]  # fmt: skip
        (server.home / name).write_text("\n".join(lines))
        said = run(server, "feedback", str(server.home / name), "--quiet")
        assert f"{len(sales)} stored" in said and "0 refused" in said

    # others ask, the market has moved, and prices paid come in late
    late = town.live(3000, 1, 1.4, 10, 0.1)
    report(late, "september.csv")
    parameters = {"models": ["GradientBoosting"], "labelled_share": 0.5, **SMALL}
    given = [w for k, v in parameters.items() for w in ("-p", k, json.dumps(v))]
    said = run(server, "retrain", *given)
    assert said.startswith("train: ") and "passed the gate, and waits" in said, said
    # the loop has begun a trial: a fifth of the clients are the challenger's
    until(lambda: "trial" in server.get("/health")["checks"])
    before = town.answered.copy()
    report(town.live(800, 2, 1.4, 10, 0.5), "october.csv")
    share = town.answered["2"] / (town.answered - before).total()
    assert 0.15 < share < 0.25
    told = run(server, "retrain")
    assert "trial: promote: version 2 beside 1: the challenger is better" in told, told
    assert "; promoted" in told and "wait: " in told
    until(lambda: server.get("/model/info")["model_version"] == "2")
    # the market falls back to where it was, and the former champion is right again
    report(town.live(800, 3, 1.0, 10, 0.5), "november.csv")
    told = run(server, "retrain")
    assert "watch: roll back: version 1 beside 2" in told and "; rolled back" in told, told
    until(lambda: server.get("/model/info")["model_version"] == "1")
    assert town.statuses == {200: 4600}, "no request failed"
    engine = connect(settings.database)
    acts = [(d.act, d.state, d.version) for d in reversed(read_decisions(engine))]
    engine.dispose()
    assert acts == [
        ("train", "done", "2"),
        ("trial: begin", "", None),
        ("trial: promote", "done", "2"),
        ("wait", "", None),
        ("watch: roll back", "done", "1"),
        ("wait", "", None),
    ]
    moves = [(m.action, m.before, m.after) for m in reversed(history(settings).moves)]
    assert moves == [("promote", None, "1"), ("promote", "1", "2"), ("rollback", "2", "1")]
    story = server.get("/monitoring/trial")
    assert story["trial"]["done"] == "promoted" and story["watch"]["done"] == "rolled back"

"""The loop in the stack: the monitor asks for prices, and trains by itself once they are in.

It is the last of the stack's tests, for it empties the prediction log: `make test-stack ARGS="-k loop"`.
"""

import http.client
import json
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from processes import ask, until
from running import NOTES, Stack

from housing_mlops.config import Settings
from housing_mlops.data.table import load_table
from housing_mlops.schema import load_dataset

pytestmark = [pytest.mark.process, pytest.mark.nightly]
SETTINGS = """
MONITOR_INTERVAL_S=3
HOUSING_DRIFT_LEAST_S=0
TRAIN_PARAMETERS=-p models '["Ridge"]' -p folds 2 -p repeats 1 -p diagnose False
HOUSING_GATE_REPEATS=1
"""


def price(stack: Stack, houses: pd.DataFrame) -> list[tuple[str, float]]:
    """Each house priced by a request of its own: identifier and price."""
    kind, found = {"Content-Type": "application/json"}, []
    with closing(http.client.HTTPConnection("127.0.0.1", stack.ports["api"], timeout=10)) as to:
        for house in houses.to_dict("records"):
            body = json.dumps({name: None if v != v else v for name, v in house.items()})
            to.request("POST", "/predict", body, kind)
            answer = to.getresponse()
            told = json.loads(answer.read())
            assert answer.status == 200, told
            found.append((told["prediction_id"], told["prediction"]))
    stack.accepted += [one for one, _ in found]
    return found


def looks(stack: Stack) -> list[dict[str, Any]]:
    """What was decided, newest first."""
    status, told = ask(stack.url("api", "/monitoring/decisions"))
    assert status == 200, told
    return list(told["decisions"])


def versions(stack: Stack) -> list[str]:
    """What the registry has."""
    url = stack.url("mlflow", "/api/2.0/mlflow/model-versions/search?filter=name%3D'housing'")
    status, told = ask(url)
    assert status == 200, told
    return sorted(one["version"] for one in told.get("model_versions", []))


def moment(look: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(look["time"])


def test_the_loop_asks_for_prices_and_trains_by_itself_once_they_are_in(
    stack: Stack, tmp_path: Path
) -> None:
    stack.wait_ready()
    stack.wait_stored()
    stack.do("stop", "monitor")
    # Months later: nothing is left of what other tests asked and decided.
    stack.sql("TRUNCATE predictions, feedback, judgements, decisions CASCADE")
    stack.accepted.clear()
    before, champion = versions(stack), ask(stack.url("api", "/model/info"))[1]["model_version"]
    table = load_table(load_dataset("boston"), Settings(home=tmp_path))
    houses = table.features.sample(400, replace=True, random_state=1)
    houses["LSTAT"] += 12.0
    told = price(stack, houses)
    stack.wait_stored()

    # The drift is real, and no house of the new kind has a price paid: there is nothing to learn.
    given = tmp_path / "loop.env"
    given.write_text(stack.env_file.read_text() + SETTINGS)
    stack.do("up", "-d", "--no-deps", "monitor", env_file=given)
    until(lambda: len(looks(stack)) > 1, 120, "the monitor has looked twice")
    for look in looks(stack):
        assert look["act"] == "ask" and "LSTAT" in look["reason"], look
        assert look["evidence"]["new"] == 0 and look["evidence"]["ask"], look
        assert {one["prediction_id"] for one in look["evidence"]["ask"]} <= {i for i, _ in told}
    assert versions(stack) == before, "nothing was trained"
    said = [line for line in map(json.loads, stack.logs("monitor").splitlines())]
    assert ("warning", "retrain") in {(line["level"], line["check"]) for line in said}

    # Prices come in, no further from those that were told than the model promised, and nobody calls anything.
    for number, (identifier, expected) in enumerate(told):
        price_paid = round(min(max(expected + number % 5 - 2, 5), 50), 2)
        report = {"prediction_id": identifier, "price": price_paid}
        status, answer = ask(stack.url("api", "/feedback"), report)
        assert status in (200, 201), answer

    def trained() -> dict[str, Any] | None:
        return next((one for one in looks(stack) if one["act"] == "train" and one["ended"]), None)

    training = until(trained, 180, "the monitor has trained")
    assert training["state"] == "done" and training["reason"].startswith("drift in"), training
    assert training["evidence"]["new"] >= 50 and training["evidence"]["region"] >= 10
    assert training["verdict"] and training["run_id"]
    assert sorted({*versions(stack)} - {*before}) == [training["version"]]
    took = datetime.fromisoformat(training["ended"]) - moment(training)
    NOTES.append(f"the monitor trained by itself in {took.total_seconds():.0f} s")
    # A person decides whether it serves, and the next looks wait for the cooldown.
    assert ask(stack.url("api", "/model/info"))[1]["model_version"] == champion
    until(lambda: looks(stack)[0]["act"] != "train", 90, "it looks again")
    assert "the last training was recent" in looks(stack)[0]["reason"]
    assert len({*versions(stack)}) == len(before) + 1

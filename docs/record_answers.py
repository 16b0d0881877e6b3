"""Ask every route of a running service, and keep the requests and answers that docs/routes.md shows.

usage: python docs/record_answers.py [HOME]      (writes docs/answers.json; HOME has a champion, otherwise one is trained)
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from pydantic import SecretStr

from housing_mlops.config import Settings
from housing_mlops.schema import load_dataset
from housing_mlops.serving.api import create_app

ROOT = Path(__file__).resolve().parent.parent
ANSWERS = ROOT / "docs/answers.json"
ADMIN = "an-admin-key"  # of the service that is asked, which lives as long as this program
LONGEST = 2  # entries of a list that are shown


def cut(
    answer: Any,  # JSON
) -> Any:
    """The same with long lists cut."""
    if isinstance(answer, dict):
        return {name: cut(value) for name, value in answer.items()}
    return [cut(value) for value in answer[:LONGEST]] if isinstance(answer, list) else answer


def requests(
    house: dict[str, Any],  # the example of the declaration
    prediction: str,  # the id of a price that is in the log
) -> dict[str, tuple[str, Any]]:
    """What to ask: by method and route, the path and the body."""
    return {
        "POST /predict": ("/predict", house),
        "POST /predict/batch": ("/predict/batch", [house, {**house, next(iter(house)): -1}]),
        "POST /explain": ("/explain", house),
        "POST /feedback": ("/feedback", {"prediction_id": prediction, "price": 24.0}),
        "GET /monitoring/predictions": ("/monitoring/predictions?limit=1", None),
        "GET /monitoring/drift": ("/monitoring/drift", None),
        "GET /monitoring/traffic": ("/monitoring/traffic?minutes=60&slices=2", None),
        "GET /monitoring/prices": ("/monitoring/prices?n=100", None),
        "GET /monitoring/live-error": ("/monitoring/live-error", None),
        "GET /monitoring/decisions": ("/monitoring/decisions?limit=1", None),
        "GET /monitoring/trial": ("/monitoring/trial", None),
        "GET /livez": ("/livez", None),
        "GET /readyz": ("/readyz", None),
        "GET /health": ("/health", None),
        "GET /metrics": ("/metrics", None),
        "GET /model/info": ("/model/info", None),
        "POST /admin/reload": ("/admin/reload", None),
    }


def logged(
    api: TestClient,  # a running service
    house: dict[str, Any],  # what to ask for
) -> str:
    """The id of a price that has reached the log."""
    name = str(api.post("/predict", json=house).json()["prediction_id"])
    for _ in range(600):
        answer = api.get("/monitoring/predictions")
        if answer.status_code == 200 and name in answer.text:
            return name
        time.sleep(0.1)
    raise SystemExit(f"The price does not reach the log: {answer.text}")


def ask(
    api: TestClient,  # a running service, whose keys of administration hold ADMIN
    house: dict[str, Any],  # the example of the declaration
) -> dict[str, dict[str, Any]]:
    """A request to each route, and its answer."""
    found = {}
    for name, (path, body) in requests(house, logged(api, house)).items():
        headers = {"X-API-Key": ADMIN} if path.startswith("/admin") else {}
        answer = api.request(name.partition(" ")[0], path, json=body, headers=headers)
        asked = {"path": path} if body is None else {"path": path, "json": body}
        found[name] = {**asked, "status": answer.status_code, "answer": cut(answer.json())}
    return found


def main() -> None:
    """Train as `make train` does, serve the champion, and ask."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(sys.argv[1] if sys.argv[1:] else temporary)
        if not sys.argv[1:]:
            notebook = str(ROOT / Settings().training_notebook)
            environ = os.environ | {
                "HOUSING_HOME": str(home),
                "HOUSING_TRAINING_NOTEBOOK": notebook,
            }
            subprocess.run(["housing-mlops", "train"], env=environ, check=True)
        settings = Settings(
            home=home,
            admin_keys=SecretStr(ADMIN),
            database_url=f"sqlite:///{temporary}/log.db",
            journal_dir=Path(temporary) / "journal",
        )
        with TestClient(create_app(settings)) as api:
            found = ask(api, load_dataset("boston").example)
    ANSWERS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The monitor of the container stack: what it says of what its checks print."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT

pytestmark = pytest.mark.process


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("MONITOR_PULSE", str(tmp_path / "pulse"))
    found = importlib.util.spec_from_file_location("monitor", ROOT / "deploy/monitor.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_each_part_of_a_look_is_a_line_of_its_own(
    monitor: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = """watch: go on: version 7 beside 8: undecided; 41 sales
trial: failed: The registry does not answer.
hold: 3 trainings in a row came to nothing
80 new sales, 30 of the new kind
"""
    command = [sys.executable, "-c", f"print({said!r})"]
    monkeypatch.setattr(monitor, "command", lambda check: command)
    assert monitor.run("retrain")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["level"], line["check"], line["message"]) for line in lines] == [
        ("info", "watch", "go on: version 7 beside 8: undecided; 41 sales"),
        ("warning", "trial", "failed: The registry does not answer."),
        ("warning", "retrain", "hold: 3 trainings in a row came to nothing"),
    ]

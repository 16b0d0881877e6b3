"""What a training leaves in MLflow, and what happens where there is none."""

import subprocess
from pathlib import Path

import pytest

from housing_mlops.config import Settings
from housing_mlops.training.cross_validation import TrainingError
from housing_mlops.training.tracking import git_commit, open_experiment


def test_without_mlflow_no_experiment_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrainingError, match="No MLflow at"):
        open_experiment(Settings(tracking_uri="http://127.0.0.1:9"))


@pytest.mark.process
def test_the_commit_is_that_of_the_checkout_or_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_commit(tmp_path) == "" and git_commit(tmp_path / "nowhere") == ""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert len(git_commit(tmp_path)) == 40
    (tmp_path / "deeper").mkdir()
    assert git_commit(tmp_path / "deeper") == git_commit(tmp_path)
    monkeypatch.setenv("GIT_COMMIT", "f" * 40)
    assert git_commit(tmp_path) != "f" * 40, "a checkout knows better"
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) == "f" * 40, "no git, as in an image, whose build told"
    for nothing in ("", "unknown"):
        monkeypatch.setenv("GIT_COMMIT", nothing)
        assert git_commit(tmp_path) == ""

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
    home, code = tmp_path / "home", tmp_path / "code"
    for folder in (home / "deeper", code / "package"):
        folder.mkdir(parents=True)
    package = code / "package"
    (package / "config.py").write_text("")
    assert git_commit(home, package) == git_commit(tmp_path / "nowhere", package) == ""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]

    def commit(folder: Path, *files: str) -> str:
        """The commit that these files make."""
        made = [*who, "commit", "-q", "--allow-empty", "-m", folder.name]
        for command in (["init", "-q"], ["add", *files] if files else ["status", "-s"], made):
            subprocess.run(["git", *command], cwd=folder, check=True)
        return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True).strip()

    commit(code)
    assert git_commit(home, package) == "", "it only lies in somebody's checkout"
    told = commit(code, "package/config.py")
    assert git_commit(home, package) == told, "a home without git has the code's"
    (package / "config.py").write_text("changed = True")
    assert git_commit(home, package) == f"{told}-dirty", "what runs is not what was committed"
    own = commit(home)
    assert git_commit(home / "deeper", package) == own != told
    monkeypatch.setenv("GIT_COMMIT", "f" * 40)
    assert git_commit(home, package) != "f" * 40, "a checkout knows better"
    monkeypatch.setenv("PATH", "")
    assert git_commit(home, package) == "f" * 40, "no git, as in an image, whose build told"
    monkeypatch.setenv("GIT_COMMIT", "f" * 40 + "-dirty")
    assert git_commit(home, package) == "f" * 40 + "-dirty"
    for nothing in ("", "unknown"):
        monkeypatch.setenv("GIT_COMMIT", nothing)
        assert git_commit(home, package) == ""

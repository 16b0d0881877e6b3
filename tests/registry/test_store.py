"""Versions and aliases on a real MLflow server."""

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from housing_mlops.config import Settings
from housing_mlops.operations.up import Process
from housing_mlops.registry.aliases import promote, roll_back, versions
from housing_mlops.registry.fetch import fetch_champion, fetch_version
from housing_mlops.registry.store import RegistryError, find_version, register_bundle
from housing_mlops.registry.trial import fetch_trial, start_trial, stop_trial, take_share
from housing_mlops.training.tracking import open_experiment

pytestmark = pytest.mark.process


@pytest.fixture
def trainer(mlflow_server: tuple[Settings, Process], request: pytest.FixtureRequest) -> Settings:
    """Settings of a model that no other test registers."""
    settings, _ = mlflow_server
    return settings.model_copy(update={"model_name": request.node.name})


def register(bundle: Path, settings: Settings) -> str:
    with mlflow.start_run(experiment_id=open_experiment(settings)) as run:
        pass
    return register_bundle(bundle, run.info.run_id, settings)


def test_what_is_not_there_is_none_or_told(
    trainer: Settings, bundles: dict[str, Path], tmp_path: Path
) -> None:
    serving = trainer.model_copy(update={"home": tmp_path})
    assert find_version(trainer, "champion") is None, "there is no such model"
    assert fetch_champion(serving) is None
    assert versions(trainer) == []
    assert register(bundles["Ridge"], trainer) == "1"
    assert find_version(trainer, "challenger") == "1"
    assert find_version(trainer, "champion") is None, "the model has no such alias"
    assert fetch_champion(serving) is None
    for version, message in {"9": "no version 9", "nine": "must be an integer"}.items():
        with pytest.raises(RegistryError, match=message):
            fetch_version(version, serving)


def test_a_promotion_and_a_roll_back_reach_a_server(
    trainer: Settings, bundles: dict[str, Path], tmp_path: Path
) -> None:
    serving = trainer.model_copy(update={"home": tmp_path})
    first, second = (register(bundles[name], trainer) for name in ("LinearRegression", "Ridge"))
    for version in (first, second):
        promote(version, trainer)
        found = fetch_champion(serving)
        assert found is not None and (found.version, found.problem) == (version, "")
    assert [v.aliases for v in versions(trainer)] == [["challenger", "champion"], ["previous"]]
    assert roll_back(trainer) == first
    found = fetch_champion(serving)
    assert found is not None and found.version == first
    assert found.folder.is_relative_to(tmp_path)


@pytest.mark.fault
def test_a_server_that_sees_a_challenger_fail_takes_its_share_in_the_registry(
    trainer: Settings, bundles: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("LinearRegression", "Ridge"):
        register(bundles[name], trainer)
    promote("1", trainer)
    begun = start_trial("2", trainer, 0.2)
    here, elsewhere = (trainer.model_copy(update={"home": tmp_path / n}) for n in "ab")
    found = fetch_trial(here)
    assert found is not None and found[0] == begun
    take_share(begun, here)
    for settings in (here, elsewhere):
        found = fetch_trial(settings)
        assert found is not None and found[0] == replace(begun, share=0.0)
    stop_trial(trainer)
    take_share(begun, here)
    assert fetch_trial(elsewhere) is None, "a trial that was stopped does not begin again"

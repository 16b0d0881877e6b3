"""Put a model that was trained elsewhere, in the pipeline for instance, into the registry as the challenger.

usage: python deploy/register_trained.py FOLDER      (a folder of runs/, as the pipeline's artifact `training` has it)

The registry is HOUSING_TRACKING_URI's. `housing-mlops promote VERSION` then asks the gate, with the table at hand.
"""

import json
import sys
from pathlib import Path

import mlflow

from housing_mlops.config import HousingError, Settings, read_settings
from housing_mlops.model.bundle import open_bundle
from housing_mlops.registry.store import register_bundle
from housing_mlops.training.tracking import open_experiment


def register_trained(
    folder: Path,  # training.json, the bundle, the executed notebook and its page
    settings: Settings,  # tracking store, experiment and the model's name
) -> str:
    """The number of the new version; raises `HousingError`."""
    try:
        said = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        trained = str(said["run_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HousingError(f"{folder} is no folder of a training: {error}.") from None
    info = open_bundle(folder / "bundle")
    experiment = open_experiment(settings)
    tags = {"winner": info.model, "trained_as": trained, "git_commit": info.git_commit}
    with mlflow.start_run(experiment_id=experiment, run_name=f"training {info.model}") as run:
        mlflow.set_tags(tags)
        mlflow.log_metrics(dict(info.metrics))
        for path in sorted(folder.glob("*.*")):
            mlflow.log_artifact(str(path), "notebook")
    return register_bundle(folder / "bundle", run.info.run_id, settings)


def main(arguments: list[str]) -> None:
    """Register, and say what comes next."""
    if len(arguments) != 1:
        raise SystemExit(__doc__)
    try:
        settings = read_settings()
        version = register_trained(Path(arguments[0]), settings)
    except HousingError as error:
        raise SystemExit(str(error)) from None
    print(f"Version {version} of {settings.model_name} is the challenger.")
    print(f"`housing-mlops promote {version}` asks the gate about it.")


if __name__ == "__main__":
    main(sys.argv[1:])

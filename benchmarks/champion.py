"""The model that the benchmarks serve: what the default training chooses, fitted once and kept."""

from pathlib import Path

import joblib
import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline

from housing_mlops.config import Settings
from housing_mlops.data.table import load_table
from housing_mlops.model.inference import Model
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.schema import load_dataset
from housing_mlops.training.candidates import candidates, voting
from housing_mlops.training.export import export_bundle

BOSTON = load_dataset("boston")


def houses() -> list[dict[str, float | None]]:
    """Every house of the embedded table as a request holds it."""
    frame = load_table(BOSTON, Settings(data_path=None)).features
    rows = frame[BOSTON.columns].astype(float).to_dict("records")
    return [{k: None if v != v else v for k, v in row.items()} for row in rows]


def make(
    folder: Path,  # where what is made stays for the next run
    members: tuple[str, ...] = ("GaussianProcess", "GradientBoosting"),  # of the vote
) -> Path:
    """The folder of the champion's bundle; beside it `champion.joblib` and `naive.joblib`."""
    bundle = folder / "-".join(members)
    if not bundle.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        table = load_table(BOSTON, Settings(data_path=None))
        X, y = model_input(BOSTON, table.features), table.prices
        chosen = candidates(list(members))
        model = voting(BOSTON, chosen, 42) if len(chosen) > 1 else chosen[0].build(BOSTON, 42)
        model.fit(X, y)
        forest = make_pipeline(SimpleImputer(), RandomForestRegressor(200, random_state=42))
        joblib.dump(forest.fit(X.to_numpy(), y), folder / "naive.joblib")
        joblib.dump(model, folder / f"{bundle.name}.joblib")
        interval = {"coverage": 0.9, "half_width": 4.2}
        name = "Voting" if len(chosen) > 1 else chosen[0].name
        about = {"model": name, "parameters": {}, "metrics": {}, "interval": interval}
        export_bundle(bundle, model, table, np.zeros(1), about)
    Model.open(bundle, "1")
    return bundle

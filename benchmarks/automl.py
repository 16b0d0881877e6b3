"""The searched model beside every default candidate and FLAML, on tables that are new to all of them.

    python benchmarks/automl.py flats sales --minutes 2 --flaml /path/to/venv/bin/python

The tables are made by the formulas in tables.py. Each is split once (a quarter is set apart, seed
42); search and FLAML have the same rows, columns and minutes to learn from the rest, on as many
cores as there are; then everybody prices the quarter. What the searched model is ahead by has a 90 %
interval by a paired bootstrap of those rows, which knows nothing of another split or another search.
FLAML needs an environment of its own, with pyarrow (it brings LightGBM, and XGBoost where that is
installed).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from tables import TABLES, TOOL

from housing_mlops.config import Settings
from housing_mlops.data.draft import draft
from housing_mlops.data.table import load_table, split
from housing_mlops.model.inference import Model
from housing_mlops.preprocessing.pipeline import model_input, width
from housing_mlops.schema import load_dataset
from housing_mlops.training.candidates import Cost, affordable, candidates
from housing_mlops.training.recipe import recipe_of

SHARE, MOST = 0.25, Cost(30, 2_000)
FLAML = """
import sys, numpy as np, pandas as pd
from flaml import AutoML
folder, seconds = sys.argv[1], float(sys.argv[2])
read = lambda n: pd.read_pickle(f"{folder}/{n}.pkl")
X, y, test = read("X"), read("y")["y"].to_numpy(), read("test")
for column in X.select_dtypes(exclude="number").columns:
    X[column], test[column] = X[column].astype("category"), test[column].astype("category")
made = AutoML()
made.fit(X, y, task="regression", metric="rmse", time_budget=seconds, seed=42, n_jobs=-1, verbose=0)
np.save(f"{folder}/prices.npy", made.predict(test))
print(made.best_estimator, made.best_config)
"""


def by_flaml(
    python: Path, minutes: float, X: pd.DataFrame, y: np.ndarray, test: pd.DataFrame
) -> np.ndarray:
    """What FLAML's best model says of the rows set apart."""
    with tempfile.TemporaryDirectory() as folder:
        for name, frame in {"X": X, "y": pd.DataFrame({"y": y}), "test": test}.items():
            frame.to_pickle(f"{folder}/{name}.pkl")
        command = [str(python), "-W", "ignore", "-c", FLAML, folder, str(60 * minutes)]
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=clean)
        print("   FLAML chose", done.stdout.strip().splitlines()[-1][:150])
        return np.asarray(np.load(f"{folder}/prices.npy"))


def searched(home: Path, minutes: float) -> Model:
    """The model of a training with a search."""
    words = ["-p", "search", "auto", "-p", "minutes", str(minutes), "-p", "test_size", str(SHARE)]
    words += ["-p", "register", "false", "-p", "diagnose", "false"]
    about = {**os.environ, "HOUSING_HOME": str(home), "HOUSING_DATASET": str(home / "houses.toml")}
    done = subprocess.run(
        [*TOOL, "train", *words], cwd=home, env=about, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return Model.open(next(home.glob("runs/*/bundle")), "searched")


def compare(name: str, rows: list[int], minutes: float, flaml: Path | None) -> None:
    """A line each model: its RMSE on the quarter, and what the searched one is ahead by."""
    frame, target, unit = TABLES[name](*rows)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        frame.to_csv(home / "houses.csv", index=False)
        (home / "houses.toml").write_text(draft(home / "houses.csv", target, unit))
        dataset = load_dataset(str(home / "houses.toml"), home)
        table = load_table(dataset, Settings(home=home))
        X, y = model_input(dataset, table.features), table.prices.to_numpy()
        train, test = split(table, SHARE, 42)
        learn, held = X.iloc[train].reset_index(drop=True), X.iloc[test].reset_index(drop=True)
        print(f"{name}: {len(train)} rows to learn from, {len(test)} set apart, {minutes:g} min")
        model = searched(home, minutes)
        recipe = recipe_of(model.info)
        print("   searched:", model.info.model, json.dumps([p.name for p in recipe.parts]))
        prices = {"searched": recipe.build(dataset, 42).fit(learn, y[train]).predict(held)}
        if flaml:
            prices["FLAML"] = by_flaml(flaml, minutes, learn, y[train], held)
        for c in affordable(candidates([]), len(train), width(dataset, learn), MOST)[0]:
            prices[c.name] = c.build(dataset, 42).fit(learn, y[train]).predict(held)
    squares = {k: (p - y[test]) ** 2 for k, p in prices.items()}
    draws = np.random.default_rng(0).integers(len(test), size=(2_000, len(test)))
    ours = np.sqrt(squares["searched"][draws].mean(axis=1))
    for k, own in squares.items():
        ahead = np.sqrt(own[draws].mean(axis=1)) - ours
        low, high = np.quantile(ahead, [0.05, 0.95])
        print(
            f"   {k:21} RMSE {np.sqrt(own.mean()):10,.2f} {unit}, ahead {low:,.2f} to {high:,.2f}"
        )


def main() -> None:
    """Compare on the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", default=["flats", "sales"], help=", ".join(TABLES))
    parser.add_argument("--rows", type=int, nargs=1, default=[], help="of each table")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--flaml", type=Path, help="a Python that has FLAML")
    given = parser.parse_args()
    for name in given.tables:
        compare(name, given.rows, given.minutes, given.flaml)


if __name__ == "__main__":
    main()

"""What a searched model is worth against the average that wins without a search.

    python benchmarks/search.py runs/20261124T160000/bundle

The recipe of the bundle and the average of GradientBoosting and GaussianProcess are fitted on the
same rows: on 5 shuffled folds with seeds 42, 0 and 1, and on 20 splits (seeds 0 to 19) of four
fifths to one. The paired gain has an interval that knows that the splits share rows (Nadeau and
Bengio, 2003). The settings were chosen on rows of the same table, so the gain still flatters a
little; a table that the search has not seen is the better judge.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import stats
from sklearn.model_selection import KFold
from tqdm import tqdm

from housing_mlops.config import get_settings
from housing_mlops.data.table import Table, load_table, split
from housing_mlops.model.inference import Model
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.schema import load_dataset
from housing_mlops.training.candidates import CANDIDATES
from housing_mlops.training.cross_validation import Folds, cross_validate
from housing_mlops.training.recipe import Recipe, recipe_of

CHAMPION = Recipe("Voting", (CANDIDATES["GradientBoosting"], CANDIDATES["GaussianProcess"]), {})
SHARE = 0.2


def errors(recipe: Recipe, table: Table, folds: Folds, bar: tqdm) -> np.ndarray:
    """The RMSE of a recipe on every fold."""
    X, y = model_input(table.dataset, table.features), table.prices.to_numpy()
    found = [
        cross_validate(part, table.dataset, X, y, folds, 42, bar).predictions
        for part in recipe.parts
    ]
    mean = np.average(found, axis=0, weights=recipe.weights or None)
    return np.array(
        [
            np.sqrt(np.mean((y[held] - mean[r, held]) ** 2))
            for r, repeat in enumerate(folds)
            for _, held in repeat
        ]
    )


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="folder of a bundle that a search made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 0, 1], help="of the folds")
    parser.add_argument("--splits", type=int, default=20)
    given = parser.parse_args()
    model = Model.open(given.bundle, "searched")
    settings = get_settings()  # whose table is the one that was searched
    table = load_table(load_dataset(settings.dataset, settings.home), settings)
    searched = recipe_of(model.info)
    rows = np.empty(len(table.frame))
    shuffled = [list(KFold(5, shuffle=True, random_state=s).split(rows)) for s in given.seeds]
    splits = [[split(table, SHARE, seed)] for seed in range(given.splits)]
    for part, weight in zip(searched.parts, searched.weights or [1.0], strict=False):
        extra = f"{', '.join(map(str, part.derived))}{', log price' if part.log else ''}"
        print(f"{weight:.2f} {part.name}: {part.make(0)} {extra}")
    fits = (len(searched.parts) + 2) * (5 * len(given.seeds) + given.splits)
    with tqdm(total=fits, unit="fit") as bar:
        for title, folds in (
            (f"5 folds, seeds {', '.join(map(str, given.seeds))}", shuffled),
            (f"{given.splits} splits", splits),
        ):
            ours, theirs = (errors(r, table, folds, bar) for r in (searched, CHAMPION))
            gain, n = theirs - ours, len(ours)
            se = gain.std(ddof=1) * np.sqrt(1 / n + SHARE / (1 - SHARE))
            wide = stats.t.ppf(0.95, n - 1) * se
            print(
                f"{title}: searched {ours.mean():.3f}, without {theirs.mean():.3f}, gain "
                f"{gain.mean():.3f}, 90 % interval {gain.mean() - wide:.3f} to "
                f"{gain.mean() + wide:.3f}; better on {(gain > 0).sum()} of {n}"
            )
            if folds is shuffled:
                by_seed = (e.reshape(-1, 5).mean(1).round(3) for e in (ours, theirs))
                print("by seed:", *next(by_seed), "against", *next(by_seed))


if __name__ == "__main__":
    main()

"""What it costs a search to have several trials on their way together: Optuna knows less at each choice.

    python benchmarks/together.py --seeds 10 --trials 30

Every seed is a third of the embedded table's rows, three folds of its own, and a sampler. On these
a search is made with each number of trials at once, in this process, so all that differs is what
Optuna knows when it chooses; no trial is pruned, since there is one repeat. A search that has all of
them at once never learns anything, and shows what there is to lose. Only families whose fits are
quick are searched. The RMSE is that of the cross-validation, which a search goes by; differences
are paired by seed, with a 90 % interval by Student's t.
"""

import argparse

import numpy as np
from scipy import stats
from tqdm import tqdm

from housing_mlops.cluster import Tasks
from housing_mlops.config import Settings
from housing_mlops.data.table import load_table
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.schema import load_dataset
from housing_mlops.training.attempt import Rows, try_out
from housing_mlops.training.cross_validation import make_folds
from housing_mlops.training.features import ideas
from housing_mlops.training.search import (
    Budget,
    Choices,
    Found,
    Search,
    ensemble,
    new_study,
)

GIVEN = ("Ridge", "GaussianProcess")  # derived features
FAMILIES = ("Ridge", "HistGradientBoosting", "GaussianProcess")


class Unwritten:
    """A record of nothing."""

    def keep(self, *_: object) -> None:
        """Nothing is kept."""


def errors(rows: Rows, choices: Choices, trials: int, at_once: int, bar: tqdm) -> list[float]:
    """The least RMSE after half of the trials and after all, and that of the average."""
    found = Found(new_study(choices, rows.seed, at_once), {})
    budget, tasks = Budget(trials=trials, at_once=at_once), Tasks(None, try_out, rows, 1)
    going = Search(found, choices, budget, tasks)
    going.advance()
    while going.asked:
        going.take(Unwritten())
        bar.update()
    best = found.table()["best"]
    average = ensemble(list(found.results.values()), rows.y, rows.folds, choices.members)
    return [best.iloc[trials // 2 - 1], best.iloc[-1], average.rmse]


def main() -> None:
    """Print the means, and what each number is worse by than one at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--at-once", type=int, nargs="+", help="1, 8 and all by default")
    given = parser.parse_args()
    several = given.at_once or [1, 8, given.trials]
    table = load_table(load_dataset("boston"), Settings(data_path=None))
    X, y = model_input(table.dataset, table.features), table.prices.to_numpy()
    found = np.empty((len(several), given.seeds, 3))
    with tqdm(total=found[..., 0].size * given.trials, unit="trial") as bar:
        for seed in range(given.seeds):
            some = np.random.default_rng(seed).permutation(len(y))[: len(y) // 3]
            folds = make_folds(len(some), 3, 1, seed)
            rows = Rows(table.dataset, X.iloc[some].reset_index(drop=True), y[some], folds, seed)
            derived = ideas(table.dataset, rows.X, rows.y)
            choices = Choices(
                FAMILIES, {family: [*derived] for family in GIVEN}, derived, True, members=4
            )
            for i, at_once in enumerate(several):
                found[i, seed] = errors(rows, choices, given.trials, at_once, bar)
    for j, what in enumerate(
        (f"best of {given.trials // 2}", f"best of {given.trials}", "average")
    ):
        for i, at_once in enumerate(several):
            own = found[i, :, j] - found[0, :, j]
            line = f"{what}, {at_once:3} at once: RMSE {found[i, :, j].mean():.3f}"
            if i:
                wide = stats.t.ppf(0.95, len(own) - 1) * stats.sem(own)
                line += f", worse by {own.mean():.3f} ({own.mean() - wide:.3f} to {own.mean() + wide:.3f})"
            print(line)


if __name__ == "__main__":
    main()

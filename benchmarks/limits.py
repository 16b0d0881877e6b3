"""Do intervals hold what they say, and is a strange house told from a usual one? On several tables.

For each table, over random splits (a fifth of the rows apart): the share of prices inside their
interval as a whole and in each quarter of the predicted price, and the mean width, beside those of
one constant width. Then the share of houses of the table that are flagged as strange, which are
false alarms, and the share of houses made strange on purpose that are found.

The tables are the embedded one, one made here by a stated formula, and any given by `--table`.
"""

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from tqdm import tqdm

from housing_mlops.config import Settings
from housing_mlops.data.table import Table, load_table, split
from housing_mlops.model.bundle import Interval, Reference
from housing_mlops.model.domain import Domain
from housing_mlops.model.interval import Band
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.schema import Dataset, load_dataset
from housing_mlops.training.calibration import interval, rank_value
from housing_mlops.training.candidates import candidates, voting
from housing_mlops.training.cross_validation import cross_validate, make_folds
from housing_mlops.training.export import as_tensors
from housing_mlops.training.selection import average

MEMBERS = ["GaussianProcess", "GradientBoosting"]
Numbers = NDArray[np.float64]

FLATS = """
format = 1
name = "flats"
title = "Flats by a formula"
source = { embedded = "flats.csv" }
target = { name = "price", unit = "1000 EUR", minimum = 0, maximum = 3000 }
"""
FEATURES = {  # name: minimum, maximum, example
    "area": (10, 500, 70),
    "rooms": (1, 20, 3),
    "age": (0, 300, 40),
    "distance": (0, 100, 5),
}
DISTRICTS = ["centre", "harbour", "hills", "north"]


def make_flats(folder: Path, rows: int = 600) -> Path:
    """A declaration and its table: price = 3 area f(district) / (1 + distance / 15) (1 - age / 400),
    off by a factor exp(N(0, .12)): the dearer, the wider the errors."""
    rng = np.random.default_rng(7)
    area = np.exp(rng.normal(4.3, 0.4, rows)).clip(18, 300).round(1)
    district = rng.integers(0, 4, rows)
    frame = pd.DataFrame(
        {
            "area": area,
            "rooms": np.clip(area / 25 + rng.normal(0, 0.5, rows), 1, 12).round(),
            "age": rng.gamma(2, 20, rows).clip(0, 150).round(),
            "distance": rng.gamma(2, 3, rows).clip(0, 40).round(2),
            "district": np.array(DISTRICTS)[district],
        }
    )
    price = 3 * area * np.array([1.6, 1.2, 1.0, 0.8])[district] / (1 + frame["distance"] / 15)
    frame["price"] = (price * (1 - frame["age"] / 400) * np.exp(rng.normal(0, 0.12, rows))).round(2)
    frame.to_csv(folder / "flats.csv", index=False)
    text = FLATS + "".join(
        f'[[features]]\nname = "{n}"\nminimum = {a}\nmaximum = {b}\nexample = {c}.0\n'
        for n, (a, b, c) in FEATURES.items()
    )
    text += '[[features]]\nname = "district"\ntype = "category"\nexample = "centre"\n'
    (folder / "flats.toml").write_text(text)
    return folder / "flats.toml"


def one_width(off: Numbers, coverage: float = 0.9) -> Interval:
    """The interval of one half width for all prices."""
    return Interval(coverage=coverage, half_width=rank_value(off, coverage))


def held(found: Interval, dataset: Dataset, predicted: Numbers, actual: Numbers) -> list[float]:
    """The share inside as a whole and in each quarter of the predicted price, and the mean width."""
    _, low, high = Band(dataset.target, found).of_many(predicted)
    inside = (low <= actual) & (actual <= high)
    quarters = np.array_split(np.argsort(predicted, kind="stable"), 4)
    return [inside.mean(), *(inside[q].mean() for q in quarters), (high - low).mean()]


def coverage(table: Table, splits: int) -> pd.DataFrame:
    """A row a kind of interval: means over the splits."""
    dataset = table.dataset
    X, y = model_input(dataset, table.features), table.prices.to_numpy()
    members, found = candidates(MEMBERS), {"one width": [], "by price": []}
    for seed in tqdm(range(splits), desc=dataset.name, leave=False):
        fit, test = split(table, test_size=0.2, seed=seed)
        rows, known = X.iloc[fit].reset_index(drop=True), y[fit]
        folds = make_folds(len(fit), folds=5, repeats=1, seed=seed)
        each = [cross_validate(m, dataset, rows, known, folds, seed) for m in members]
        winner = average(each, known, folds)
        priced = voting(dataset, members, seed).fit(rows, known).predict(X.iloc[test])
        for name, interval_ in {
            "one width": one_width(np.abs(known - winner.predictions)),
            "by price": interval(winner, known, target=dataset.target),
        }.items():
            found[name].append(held(interval_, dataset, priced, y[test]))
    names = ["inside", "quarter 1", "quarter 2", "quarter 3", "quarter 4", "width"]
    return pd.DataFrame({k: np.mean(v, axis=0) for k, v in found.items()}, index=names).T


def allowed(dataset: Dataset, frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Which houses a request may hold, by their numbers."""
    fits = np.ones(len(frame), bool)
    for f in dataset.used:
        if not f.is_category:
            value = frame[f.name].to_numpy(float)
            fits &= (value >= (f.minimum if f.minimum is not None else -np.inf)) | np.isnan(value)
            fits &= (value <= (f.maximum if f.maximum is not None else np.inf)) | np.isnan(value)
            fits &= (value % 1 == 0) | np.isnan(value) if f.type == "integer" else True
    return fits


def strangers(
    dataset: Dataset, frame: pd.DataFrame, usual: pd.DataFrame, rng: np.random.Generator
) -> Iterator[tuple[str, pd.DataFrame, NDArray[np.bool_]]]:
    """What was done to houses, the houses, and which of them have an unusual value since."""
    numbers = [f for f in dataset.used if not f.is_category]
    low, high = usual.quantile(0.01), usual.quantile(0.99)

    def unusual(changed: pd.DataFrame, names: list[str]) -> NDArray[np.bool_]:
        return (
            ((changed[names] < low[names]) | (changed[names] > high[names])).any(axis=1).to_numpy()
        )

    for factor in (10, 1 / 10, 3.28, 1 / 3.28):
        for f in numbers:
            changed = frame.assign(**{f.name: frame[f.name].astype(float) * factor})
            fits = allowed(dataset, changed) & (frame[f.name].to_numpy(float) != 0)
            odd = unusual(changed, [f.name])
            told = f"a value x {factor:.3g}" if factor > 1 else f"a value / {1 / factor:.3g}"
            yield told, changed[fits], odd[fits]
    for i, f in enumerate(numbers):
        for g in numbers[:i]:
            changed = frame.assign(**{f.name: frame[g.name], g.name: frame[f.name]})
            fits = allowed(dataset, changed) & (frame[f.name] != frame[g.name]).to_numpy()
            yield "two columns exchanged", changed[fits], unusual(changed, [f.name, g.name])[fits]
    if all(f.minimum is not None and f.maximum is not None for f in numbers):
        ends = {f.name: rng.choice([f.minimum, f.maximum], len(frame)) for f in numbers}
        yield "a corner of the declared box", frame.assign(**ends), np.ones(len(frame), bool)
    for f in dataset.used:
        if f.is_category:
            changed = frame.assign(**{f.name: frame[f.name].str.upper() + "?"})
            yield "a category never seen", changed, np.ones(len(frame), bool)


def flags(table: Table, splits: int) -> pd.DataFrame:
    """A row a kind of house: the share flagged of all, and of those with an unusual value."""
    dataset, found = table.dataset, {}
    X = model_input(dataset, table.features)
    numeric = dataset.columns[: dataset.n_numbers]
    for seed in range(splits):
        fit, test = split(table, test_size=0.2, seed=seed)
        tensors, rng = as_tensors(dataset, X.iloc[fit]), np.random.default_rng(seed)
        nothing = np.zeros(len(fit), np.float32)
        texts = tensors.get("texts", np.empty((len(fit), 0))).astype(np.str_)
        numbers = tensors.get("numbers", np.empty((len(fit), 0), np.float32))
        domain = Domain(
            dataset,
            Reference(numbers=numbers, texts=texts, predictions=nothing, residuals=nothing),
        )
        good = X.iloc[test]
        cases = [("nothing: false alarms", good, np.zeros(len(good), bool))]
        for what, frame, odd in [*cases, *strangers(dataset, good, X.iloc[fit][numeric], rng)]:
            outside = np.zeros(len(frame), bool)
            outside[list(domain.outside(as_tensors(dataset, frame)) if len(frame) else [])] = True
            of = found.setdefault(what, [0, 0, 0, 0])
            for i, count in enumerate((len(frame), outside.sum(), odd.sum(), outside[odd].sum())):
                of[i] += int(count)
    rows = {
        what: {
            "houses": n,
            "flagged": f / n,
            "unusual value": odd,
            "of these": g / odd if odd else np.nan,
        }
        for what, (n, f, odd, g) in found.items()
        if n
    }
    return pd.DataFrame(rows).T


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--table", type=Path, action="append", default=[], help="a declaration")
    parser.add_argument("--only", choices=["coverage", "flags"])
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    with tempfile.TemporaryDirectory() as folder:
        names = ["boston", str(make_flats(Path(folder))), *map(str, args.table)]
        for name in names:
            table = load_table(load_dataset(name), Settings(data_path=None))
            unit = table.dataset.target.unit
            print(f"\n{table.dataset.title}: {len(table.frame)} rows, {args.splits} splits")
            if args.only != "flags":
                print(f"share of prices inside, 90 % asked; width in {unit}")
                print(coverage(table, args.splits).round(3).to_string())
            if args.only != "coverage":
                print("share of houses flagged as outside what the model knows")
                print(flags(table, args.splits).round(3).to_string())


if __name__ == "__main__":
    main()

"""The card of the champion that `make train` makes: what it learnt from, where it errs, how sure it is, what it must not be used for.

usage: python docs/model_card.py HOME      (HOME has a champion that was trained there; writes docs/model-card.md)
"""

import sys
from collections import defaultdict
from pathlib import Path

import nbformat
import numpy as np
from api_reference import table

from housing_mlops.config import Settings
from housing_mlops.data.table import load_table
from housing_mlops.model.explanation import explain
from housing_mlops.model.inference import Model
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.registry.shelf import cached_champion
from housing_mlops.schema import load_dataset

CARD = Path(__file__).resolve().parent / "model-card.md"
EVERY = 4  # row is explained


def errors_by_price(
    home: Path,  # where the champion was trained
) -> str:
    """The table of errors by actual price, as the newest run shows it."""
    notebook = nbformat.read(max(home.glob("runs/*/08_training.ipynb")), 4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    texts = [o.get("data", {}).get("text/plain", "") for o in outputs]
    return str(next(text for text in texts if "bias_se" in text))


def weights(
    model: Model,  # the champion
    rows: list[list[float]],  # houses
) -> dict[str, float]:
    """The mean absolute contribution of each feature, the largest first."""
    sums: dict[str, float] = defaultdict(float)
    for row in rows:
        for reason in explain(model, row).reasons:
            sums[reason.feature] += abs(reason.contribution) / len(rows)
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]))


def card(
    home: Path,  # where the champion was trained
) -> str:
    """The card, as Markdown."""
    settings = Settings(home=home)
    champion = cached_champion(settings)
    model = Model.open(champion.folder, champion.version)
    info, dataset = model.info, model.dataset
    found = load_table(load_dataset(dataset.name), settings)
    X = model_input(dataset, found.features)
    unit, metrics = dataset.target.unit, info.metrics
    scored = [
        (
            name,
            f"{metrics[f'cv_{key}']:.3f} ± {metrics[f'cv_{key}_std']:.3f}",
            f"{metrics[f'test_{key}']:.3f}",
        )
        for name, key in (("RMSE", "rmse"), ("mean absolute error", "mae"), ("R²", "r2"))
    ]
    at = np.linspace(0, len(info.interval.prices) - 1, 6).round().astype(int)
    widths = [
        (f"{info.interval.prices[i]:.1f}", f"± {info.interval.half_widths[i]:.1f}") for i in at
    ]
    heavy = weights(model, X.iloc[::EVERY].to_numpy().tolist())
    p = info.parameters
    parts = [
        "<!-- Generated from a trained home by `make card`. -->",
        "# The model card",
        f"> The champion that `make train` makes of the embedded table: {info.model}, of {info.created:%Y-%m-%d}.",
        f"It is the average of {' and '.join(p['members'])}, chosen among eight candidates, and served as one ONNX graph. "
        "Each training writes figures of its own to MLflow and to `/model/info`; these are of one run on the defaults "
        f"(seed {p['seed']}).",
        "## What it is for",
        "It shows how such a system works. It prices homes of the Boston area as they were in 1970, as means of census "
        "tracts, and no home of today: not for valuation, lending, taxes, or any decision about people.",
        "## What it learnt from",
        f"{info.rows} rows of {dataset.title} ([every column](data-dictionary.md)), fingerprint `{info.fingerprint[:12]}`, "
        f"after it was chosen on {1 - p['test_size']:.0%} of them. Prices are in {unit}, and stand at {dataset.target.cap:g} "
        'where they were more: a price near it is read as "or more".',
        "The column B was made from the share of Black residents. No price service should use it; it is here because "
        "methods are compared on the table as it was published, and the gate refuses a model whose prices move by more "
        'than 5 % of themselves with it. `exclude = ["B"]` in [the declaration](declaration.md) leaves it out, and '
        "[the data notebook](../nbs/1_data/03_table.ipynb) shows what that costs. LSTAT counts people by status, which "
        "deserves the same doubt.",
        "## How well it prices",
        f"In {unit}; {p['folds']} folds, {p['repeats']} times, and the {p['test_size']:.0%} of the rows that selection never saw:",
        table(("measure", "cross-validated", "test rows"), scored),
        "Out of fold, by what was really paid. `bias` is predicted less paid: cheap homes come out too dear and dear "
        "ones too cheap, as with any model that learns a mean; `share` is of the squared error.",
        f"```text\n{errors_by_price(home)}\n```",
        "[Diagnosis](../nbs/4_training/10_diagnosis.ipynb) looks further.",
        "## How sure it is",
        f"Every price has an interval that is to hold {info.interval.coverage:.0%} of the prices paid; of the test rows it "
        f"held {metrics['test_interval_coverage']:.1%}. It is as wide as prices of its size deserve:",
        table(("price", "interval"), widths),
        "## What counts",
        f"The mean absolute contribution to a price, against a reference house, in {unit}, over every {EVERY}th row:",
        table(("feature", "contribution"), [(f"`{n}`", f"{v:.2f}") for n, v in heavy.items()]),
        "A contribution says what the model does with a column, not what would happen to a price if the world changed it.",
        "## Limits",
        "- Some five hundred rows of one region and one year: [what the model does not know](../nbs/3_model/05_domain.ipynb) "
        "is said with each price (`in_domain`, `outside`), and not refused.\n"
        "- The rows are tracts and lie in the order of their towns; neighbours share much, and shuffled folds make errors "
        "look smaller than a new town would find them.\n"
        "- Intervals hold on average over houses like those of the table, and for a kind of house not by themselves.\n"
        "- Drift is watched, and says that houses changed, not that prices are wrong; that takes prices paid.",
        "## What made it",
        ", ".join(f"{name} {version}" for name, version in info.libraries.items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    CARD.write_text(card(Path(sys.argv[1]).resolve()), encoding="utf-8")

"""The gate: what may be served, what may not, and that nobody gets round it."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.config import Settings
from housing_mlops.data.table import Table, fingerprint
from housing_mlops.model.bundle import INFO, BundleError
from housing_mlops.prediction_log.queries import Sale
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.registry import promotion
from housing_mlops.registry.audit import history
from housing_mlops.registry.comparison import compare, spend
from housing_mlops.registry.evidence import GateError
from housing_mlops.registry.gate import coverage_bounds
from housing_mlops.registry.promotion import Decision, challenge
from housing_mlops.registry.store import (
    RegistryError,
    find_version,
    register_bundle,
    registry_client,
)
from housing_mlops.serving.api import create_app
from housing_mlops.training.calibration import interval, residuals
from housing_mlops.training.candidates import CANDIDATES
from housing_mlops.training.cross_validation import cross_validate, make_folds
from housing_mlops.training.export import export_bundle
from housing_mlops.training.labelled import GrownTable, Labelled, with_sales
from housing_mlops.training.recipe import settings_of
from housing_mlops.training.tracking import open_experiment

pytestmark = pytest.mark.train
Judge = Callable[..., Decision]


@pytest.fixture
def local(tmp_path: Path) -> Settings:
    """A registry in a file of its own."""
    return Settings(home=tmp_path, registry_poll_s=0.1)


def part(table: Table, rows: Any, name: str = "part") -> Table:
    """Some rows of a table, or a changed frame, as a table of its own."""
    frame = rows if isinstance(rows, pd.DataFrame) else table.frame.iloc[rows]
    frame = frame.reset_index(drop=True)
    return Table(table.dataset, frame, name, fingerprint(frame))


def trained(
    folder: Path, table: Table, name: str, folds: int, seed: int, claim: dict[str, Any]
) -> None:
    """What such a training leaves in `folder`; `claim`: what its bundle says instead."""
    X, y = model_input(table.dataset, table.features), table.prices.to_numpy()
    result = cross_validate(
        CANDIDATES[name], table.dataset, X, y, make_folds(len(y), folds, 1, seed), seed
    )
    about = {
        "model": name,
        "parameters": {"seed": seed, "folds": folds, "settings": settings_of([name])},
        "metrics": {"cv_rmse": result.rmse},
        "interval": interval(result, y),
        **claim,
    }
    with threadpool_limits(1):
        model = CANDIDATES[name].build(table.dataset, seed).fit(X, y)
    export_bundle(folder, model, table, residuals(result, y), about)


BUNDLES: dict[Any, Path] = {}  # many tests begin with the same ones


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for bundles, and a boosting of few trees, which is better than a line all the same."""
    BUNDLES["folder"] = tmp_path_factory.mktemp("bundles")
    boosting = replace(
        CANDIDATES["HistGradientBoosting"],
        make=lambda seed: HistGradientBoostingRegressor(max_iter=30, random_state=seed),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CANDIDATES, boosting.name, boosting)
        yield


def register(
    settings: Settings,
    table: Table,
    name: str,
    folds: int = 5,
    seed: int = 42,
    claim: dict[str, Any] | None = None,
) -> str:
    """The version that such a training makes, up to the gate."""
    asked = (table.origin, table.fingerprint, *table.dataset.columns, name, folds, seed, str(claim))
    if asked not in BUNDLES:
        folder = BUNDLES["folder"] / str(len(BUNDLES)) / name
        trained(folder, table, name, folds, seed, claim or {})
        BUNDLES[asked] = folder
    folder = BUNDLES[asked]
    with mlflow.start_run(experiment_id=open_experiment(settings)) as run:
        pass
    return register_bundle(folder, run.info.run_id, settings)


def judged(settings: Settings, table: Table, name: str, **how: Any) -> Decision:
    """What became of such a training at the gate."""
    version = register(settings, table, name, **how)
    return challenge(version, settings, table, progress=False)


def test_the_champion_stays_until_a_model_is_better(local: Settings, table: Table) -> None:
    assert judged(local, table, "Ridge").promoted
    assert not judged(local, table, "LinearRegression", folds=50).promoted
    for seed in range(3):
        found = judged(local, table, "LinearRegression", seed=seed)
        assert not found.promoted and "was judged before, as version 2" in found.reason
    assert find_version(local, "champion") == "1"
    with TestClient(create_app(local)) as api:
        assert api.get("/model/info").json()["model"] == "Ridge"
        better = judged(local, table, "HistGradientBoosting")
        assert better.promoted and better.verdict is not None
        assert better.verdict.numbers["gain_recipe_low"] > 0
        late = time.monotonic() + 30
        while (answer := api.post("/predict", json=table.dataset.example).json())[
            "model_version"
        ] != "6" and time.monotonic() < late:
            time.sleep(0.1)
    assert answer["model_version"] == "6", "and the running API answers with it"


@pytest.fixture
def grown(local: Settings, table: Table) -> tuple[Judge, Table, Any]:
    """A champion that learnt from all but fifty houses, the whole table, and which houses are new."""
    order = np.random.default_rng(0).permutation(len(table.frame))
    few = part(table, np.sort(order[50:]), "few")
    assert judged(local, few, "HistGradientBoosting").promoted
    return lambda t, name, **how: judged(local, t, name, **how), table, order[:50]


def test_the_same_model_with_fifty_more_houses_is_promoted(grown: tuple) -> None:
    judge, table, _ = grown
    found = judge(table, "HistGradientBoosting")
    assert found.promoted and {"gain_before", "gain_served"} < found.verdict.numbers.keys()
    assert "gain_recipe" not in found.verdict.numbers, "a recipe is not compared with itself"


def test_a_worse_model_with_fifty_more_houses_is_not(grown: tuple) -> None:
    judge, table, _ = grown
    found = judge(table, "Ridge")
    assert not found.promoted and "gain over the champion" in found.reason


@pytest.mark.parametrize("name", ["HistGradientBoosting", "Ridge"])
def test_fifty_wrong_rows_are_not_learnt(name: str, grown: tuple) -> None:
    judge, table, new = grown
    wrong = table.frame.copy()
    wrong.loc[new, table.dataset.target.name] /= 1000  # in millions, somebody thought
    found = judge(part(table, wrong, "wrong"), name)
    assert not found.promoted and "gain on 456 houses it knew" in found.reason


def command(settings: Settings, *words: str) -> Any:
    """What `housing-mlops WORDS` did in that home."""
    return CliRunner().invoke(app, words, env={"HOUSING_HOME": str(settings.home)})


def sold(base: Table, houses: pd.DataFrame, prices: Any, share: float = 0.0) -> GrownTable:
    """A base table that grew by such sales, reported a day from now, the oldest first."""
    begin = datetime.now(UTC) + timedelta(days=1)
    rows = houses[base.dataset.columns].to_dict("records")
    sales = [
        Sale(str(i), row, 0.0, "1", price, begin + timedelta(hours=i), begin, "a")
        for i, (row, price) in enumerate(zip(rows, prices, strict=True))
    ]
    return with_sales(base, Labelled(base.dataset, sales), share)[0]


@pytest.fixture
def market(local: Settings, table: Table) -> tuple[Table, pd.DataFrame]:
    """A champion that learnt from 356 houses, and the others, which are sold later."""
    order = np.random.default_rng(2).permutation(len(table.frame))
    base = part(table, np.sort(order[150:]), "base")
    assert judged(local, base, "Ridge").promoted
    return base, table.frame.iloc[order[:150]]


@pytest.mark.parametrize(
    ("name", "share"), [("HistGradientBoosting", 0.0), ("Ridge", 0.0), ("Ridge", 0.5)]
)
def test_a_model_that_learnt_poisoned_sales_is_refused_however_it_prices_them(
    name: str, share: float, local: Settings, market: tuple[Table, pd.DataFrame]
) -> None:
    base, later = market
    paid = later[base.dataset.target.name].to_numpy()
    honest = judged(local, sold(base, later, paid, share), name)
    assert honest.promoted, honest.reason
    assert command(local, "rollback", "--to", "1", "--reason", "try again").exit_code == 0
    halved = np.where(paid > np.quantile(paid, 0.6), paid / 2, paid)  # the dear ones
    poisoned = judged(local, sold(base, later, halved, share), name)
    assert not poisoned.promoted and find_version(local, "champion") == "1"
    failed = {c.name for c in poisoned.verdict.checks if not c.passed}
    asked = "gain over the champion" if name != "Ridge" else "gain on 356 houses of the base table"
    assert any(check.startswith(asked) for check in failed), failed
    [told] = [c for c in poisoned.verdict.checks if c.name == "newest 30 sales"]
    assert told.passed and "the champion's" in told.found


def test_a_table_without_many_of_the_houses_the_champion_knew_is_no_measure_of_it(
    local: Settings, table: Table
) -> None:
    order = np.random.default_rng(0).permutation(len(table.frame))
    assert judged(local, part(table, np.sort(order[50:])), "Ridge").promoted
    fewer = judged(local, part(table, np.sort(order[:440])), "Ridge")  # 66 of 456 are left out
    assert not fewer.promoted, "that it learnt from other houses is no claim to be better"
    assert "gain over the champion: +0.0%" in fewer.reason
    assert {"gain_recipe", "gain_served"} <= fewer.verdict.numbers.keys()
    assert "gain_before" not in fewer.verdict.numbers
    most = judged(local, part(table, np.sort(order[:470])), "Ridge")  # 36 are
    assert most.promoted and "gain_before" in most.verdict.numbers


class Moved(Ridge):
    """A regressor whose library has moved on."""

    def fit(self, *asked: Any, **more: Any) -> None:
        raise TypeError("fit() got an unexpected keyword argument 'copy_X'")


def no_more(seed: int) -> None:
    raise TypeError("__init__() got an unexpected keyword argument 'normalize'")


@pytest.mark.parametrize("make", [no_more, lambda seed: Moved()], ids=["make", "fit"])
def test_a_champion_whose_library_moved_on_is_judged_on_new_houses_alone(
    make: Any, local: Settings, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = part(table, np.arange(0, 506, 2), "half")
    assert judged(local, half, "Ridge").promoted
    same, all_of_it = (register(local, t, "HistGradientBoosting") for t in (half, table))
    monkeypatch.setitem(CANDIDATES, "Ridge", replace(CANDIDATES["Ridge"], make=make))
    refused = challenge(same, local, half, progress=False)
    assert not refused.promoted and "unexpected keyword argument" in refused.reason
    assert "it knows the houses" in refused.reason
    found = challenge(all_of_it, local, table, progress=False)
    assert found.promoted and "253 houses it never saw" in found.reason
    assert "gain_recipe" not in found.verdict.numbers


def test_the_command_refuses_a_worse_model_and_tells_why(local: Settings, table: Table) -> None:
    judged(local, table, "Ridge")
    worse = register(local, table, "LinearRegression")
    done = command(local, "promote", worse, "--quiet")
    assert done.exit_code == 1 and "Nothing was moved" in done.stderr
    assert "gain over the champion" in done.stdout and "at least" in done.stdout
    assert find_version(local, "champion") == "1"
    assert command(local, "promote", worse, "--force").exit_code == 1, "it takes a reason"
    why = ["--force", "--reason", "the prices were corrected"]
    assert command(local, "promote", worse, "--quiet", *why).exit_code == 0
    assert find_version(local, "champion") == worse
    forced, refused, _ = history(local, False).moves
    assert forced.forced and "the prices were corrected" in forced.why
    assert refused.action == "refuse" and refused.verdict and not refused.verdict["passed"]


def test_a_verdict_stands_in_mlflow_with_what_it_rests_on(local: Settings, table: Table) -> None:
    judged(local, table, "Ridge")
    found = judged(local, table, "LinearRegression")
    with registry_client(local) as client:
        version = client.get_model_version("housing", "2")
        kept = json.loads(mlflow.artifacts.load_text(f"runs:/{version.run_id}/gate/verdict.json"))
        rows = mlflow.artifacts.download_artifacts(f"runs:/{version.run_id}/gate/out_of_fold.csv")
        metrics = client.get_run(version.run_id).data.metrics
    assert version.tags["gate.passed"] == "false" and version.tags["gate.against"] == "1"
    assert kept == json.loads(json.dumps(found.verdict.as_json())) and not kept["passed"]
    assert metrics["gate_gain_recipe_low"] == kept["numbers"]["gain_recipe_low"]
    frame = pd.read_csv(rows)
    columns = ["challenger_0", "challenger_1", "challenger_2"]
    errors = frame[columns].sub(frame["price"], axis=0)
    assert np.isclose(np.sqrt((errors**2).to_numpy().mean()), metrics["gate_rmse"])


def test_a_model_of_another_declaration_is_told_what_differs(local: Settings, table: Table) -> None:
    judged(local, table, "Ridge")
    other = Table(table.dataset.without("B"), table.frame, "no B", table.fingerprint)
    found = judged(local, other, "HistGradientBoosting")
    assert not found.promoted and "declaration: B is gone" in found.reason


def test_a_bundle_with_another_model_in_it_is_refused(local: Settings, table: Table) -> None:
    false = {"model": "HistGradientBoosting"}
    false["parameters"] = {"settings": settings_of(["HistGradientBoosting"])}
    found = judged(local, table, "Ridge", claim=false)
    assert not found.promoted and found.reason.startswith("not promoted: bundle: ")


def test_a_champion_that_cannot_be_made_again_is_judged_on_new_houses_alone(
    local: Settings, table: Table
) -> None:
    gone = {"model": "Oracle", "parameters": {}}
    half = part(table, np.arange(0, 506, 2), "half")
    version = register(local, half, "Ridge", claim=gone)
    assert challenge(version, local, half, "there is no other", progress=False).promoted
    found = judged(local, half, "HistGradientBoosting")
    assert not found.promoted and "no candidate Oracle here" in found.reason
    found = judged(local, table, "LinearRegression")
    assert not found.promoted and "253 houses it never saw" in found.reason
    found = judged(local, table, "HistGradientBoosting")
    assert found.promoted and found.verdict is not None
    assert "gain_recipe" not in found.verdict.numbers


def test_what_is_missing_is_told_and_nothing_is_moved(
    local: Settings, table: Table, tmp_path: Path
) -> None:
    judged(local, table, "Ridge")
    version = register(local, part(table, range(400)), "HistGradientBoosting")
    with pytest.raises(GateError, match="is not the one that this model learnt from"):
        challenge(version, local, progress=False)
    with pytest.raises(RegistryError, match="version=9"):
        challenge("9", local, table, progress=False)
    assert find_version(local, "champion") == "1"
    assert challenge(version, local, force="it is right", progress=False).promoted


@pytest.mark.fault
@pytest.mark.parametrize("step", ["keep_verdict", "promote"])
def test_a_registry_that_goes_away_leaves_no_half_state(
    step: str, local: Settings, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(local, table, "Ridge")
    version = register(local, table, "HistGradientBoosting")

    def gone(*args: Any) -> None:
        raise RegistryError("MLflow is out of reach.")

    with monkeypatch.context() as patched:
        patched.setattr(promotion, step, gone)
        with pytest.raises(RegistryError, match="out of reach"):
            challenge(version, local, table, progress=False)
        assert find_version(local, "champion") == "1" and len(history(local, False).moves) == 1
    assert challenge(version, local, table, progress=False).promoted, "and it can be tried again"


@pytest.mark.fault
def test_a_damaged_bundle_is_refused_even_by_force(local: Settings, table: Table) -> None:
    judged(local, table, "Ridge")
    version = register(local, table, "HistGradientBoosting")
    for path in local.path("mlartifacts").rglob(f"HistGradientBoosting/{INFO}"):
        path.write_text(path.read_text().replace("HistGradientBoosting", "HistGradientBoasting"))
    found = challenge(version, local, table, progress=False)
    assert not found.promoted and found.reason.startswith("not promoted: bundle: ")
    with pytest.raises(BundleError, match="not the bundle that was registered"):
        challenge(version, local, table, "whatever it takes", progress=False)
    assert find_version(local, "champion") == "1"


def equal_pair(rng: np.random.Generator, rows: int = 200) -> tuple[Any, ...]:
    """Prices, out-of-fold predictions of two models of equal worth, and their folds."""
    folds = [np.array_split(rng.permutation(rows), 5) for _ in range(3)]
    y, common = rng.uniform(5, 50, rows), rng.normal(size=rows)
    own = rng.normal(size=(2, rows))  # what a model makes of a house, whatever the fold
    a, b = (y + 2 * common + o + 0.3 * rng.normal(size=(3, rows)) for o in own)
    return y, a, b, folds


def test_equal_models_seldom_pass_and_seldom_by_trying_again() -> None:
    rng = np.random.default_rng(0)
    pairs = [equal_pair(rng) for _ in range(200)]
    passed = [compare(*pair).better for pair in pairs]
    lower = [np.mean((y - b) ** 2) < np.mean((y - a) ** 2) for y, a, b, _ in pairs]
    assert 0.4 < np.mean(lower) < 0.6 and np.mean(passed) < 0.05
    spent = [compare(*pair, (spend(0.05, k % 12 + 1), 0.05)).better for k, pair in enumerate(pairs)]
    assert np.mean(spent) < 0.01


def test_a_comparison_knows_no_unit_and_no_side() -> None:
    y, a, b, folds = equal_pair(np.random.default_rng(1))
    one, other = compare(y, a, b, folds), compare(1000 * y, 1000 * a, 1000 * b, folds)
    assert np.isclose(one.low, other.low) and np.isclose(one.high, other.high)
    assert np.isclose((1 - one.gain) * (1 - compare(y, b, a, folds).gain), 1)


def test_gate_errors_prints_what_it_found() -> None:
    done = CliRunner().invoke(app, ["gate-errors", "--runs", "1", "--quiet"])
    assert done.exit_code == 0 and done.stdout.count("\n") == 13
    assert "lower error" in done.stdout and "12 trials, spent" in done.stdout


@pytest.mark.parametrize("rows", [500, 20_000])
def test_an_interval_may_be_a_little_too_wide_and_not_too_narrow(rows: int) -> None:
    """90 % of normal errors lie within 1.645 standard deviations; how far off may that be?"""

    def passes(width: float) -> bool:
        least, most = coverage_bounds(0.9, rows, rows)
        return least <= 2 * norm.cdf(1.645 * width) - 1 <= most

    assert passes(1) and passes(1.035) and passes(1.1)
    assert not passes(1.6) and not passes(0.8)
    assert rows < 20_000 or not (passes(1.15) or passes(0.97))

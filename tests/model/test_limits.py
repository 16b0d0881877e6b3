"""What a price is held to, and when a house is told to be of another kind."""

import numpy as np
import pytest

from housing_mlops.config import Settings
from housing_mlops.data.table import load_table
from housing_mlops.model.bundle import Interval, Reference
from housing_mlops.model.domain import Domain
from housing_mlops.model.inference import FEW, quote_few, quote_many
from housing_mlops.model.interval import Band
from housing_mlops.schema import Target, load_dataset

BOSTON = load_dataset("boston")
SLOPED = Interval(coverage=0.9, half_width=4, prices=(10, 25, 45), half_widths=(3, 2.5, 8))
TARGETS = [
    BOSTON.target,
    Target(name="price", unit="EUR", minimum=12345678, maximum=99999999),
    Target(name="price", unit="EUR", maximum=0.123456789),
    Target(name="price", unit="EUR"),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.minimum}-{t.cap}-{t.maximum}")
@pytest.mark.parametrize("interval", [None, SLOPED, Interval(coverage=0.9, half_width=4.2)])
def test_a_price_is_within_its_range_and_its_interval(
    target: Target, interval: Interval | None
) -> None:
    rng = np.random.default_rng(3)
    given = np.concatenate([rng.normal(30, 40, 300), rng.normal(0, 1e8, 300), [-4.24, 0, 50, 100]])
    band = Band(target, interval)
    many = quote_many(band, given, {})
    few = [quote_few(band, given[i : i + FEW], {}) for i in range(0, len(given), FEW)]
    assert (many.values == np.hstack([quote.values for quote in few])).all()
    assert [*many.limits] == [limits for quote in few for limits in quote.limits]
    for values in many.values:
        assert target.minimum is None or values.min() >= target.minimum
        assert target.maximum is None or values.max() <= target.maximum
    if many.low is not None and many.high is not None:
        assert (many.low <= many.prices).all() and (many.prices <= many.high).all()
    out = (given < band.least) | (given > band.top)
    assert [limits.clipped for limits in many.limits] == out.tolist()
    if target.cap is not None:
        assert [limits.capped for limits in many.limits] == (many.values[-1] >= 50).tolist()


def domain_of(rows: int) -> tuple[Domain, np.ndarray]:
    """The domain of some rows of the embedded table in random order, and all of these."""
    table = load_table(BOSTON, Settings(data_path=None))
    X = table.features[BOSTON.columns].to_numpy(np.float32)
    X = X[np.random.default_rng(1).permutation(len(X))]
    none = np.zeros(rows, np.float32)
    texts = np.empty((rows, 0), "U1")
    known = Reference(numbers=X[:rows], texts=texts, predictions=none, residuals=none)
    return Domain(BOSTON, known), X


def test_few_houses_not_learnt_from_are_flagged() -> None:
    flagged = [len(d.outside({"numbers": X[404:]})) for d, X in [domain_of(404)]]
    assert sum(flagged) / 102 <= 0.02


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"RM": 2.0}, ("RM",)),
        ({"TAX": 711.0, "RAD": 1.0, "PTRATIO": 22.0}, ("TAX",)),
        ({f.name: f.maximum for f in BOSTON.used}, ()),
        ({f.name: f.minimum for f in BOSTON.used}, ()),
    ],
)
def test_a_house_of_another_kind_is_found_however_many_come_with_it(
    change: dict[str, float], named: tuple[str, ...]
) -> None:
    domain, X = domain_of(506)
    odd = np.array([[(BOSTON.example | change)[c] for c in BOSTON.columns]], np.float32)
    alone = domain.outside({"numbers": odd})
    together = domain.outside({"numbers": np.vstack([X[:6], odd])})
    assert alone[0] == together[6] and {*named} & {*alone[0]} == {*named}

"""Flats to watch: numbers (one sometimes unknown), a flag, a district, a price."""

import numpy as np

from housing_mlops.monitoring.drift import DriftReference, Observations

DISTRICTS = np.array(["Alfama", "Belem", "Chiado", "Graca"])


def rows(count, seed, shift=0.0, districts=(0.5, 0.3, 0.15, 0.05), residuals=0):
    """So many flats, drawn anew for each seed; `shift` moves the area, in standard deviations."""
    rng = np.random.default_rng(seed)
    area = rng.normal(80, 20, count) + 20 * shift
    year = np.where(rng.random(count) < 0.1, np.nan, rng.integers(1900, 2020, count))
    lift = (rng.random(count) < 0.3) * 1.0
    district = rng.choice(DISTRICTS, count, p=districts)[:, None]
    price = 3 * area + rng.normal(0, 10, count)
    return Observations(
        np.column_stack([area, year, lift]), district, price, rng.normal(0, 5, residuals)
    )


def reference(count=500, seed=0, residuals=500):
    """Flats to learn from."""
    r = rows(count, seed, residuals=residuals)
    names = ("area", "year", "lift", "district")
    return DriftReference(r.numbers, r.texts, r.predictions, r.residuals, columns=names)


def join(*parts):
    """Observations, one after the other."""
    arrays = ("numbers", "texts", "predictions", "residuals")
    return Observations(*(np.concatenate([getattr(p, a) for p in parts]) for a in arrays))

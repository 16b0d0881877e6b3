"""What every test of monitoring compares with."""

import pytest
from flats import reference

from housing_mlops.monitoring.drift import DriftReference


@pytest.fixture(scope="session")
def known() -> DriftReference:
    """Five hundred flats to learn from."""
    return reference()

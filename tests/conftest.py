"""What every test stands on: a home of its own, so that none reads or writes the checkout."""

import os
import tempfile

import pytest

from housing_mlops.config import get_settings


def pytest_configure(config: pytest.Config) -> None:
    for name in [n for n in os.environ if n.upper().startswith("HOUSING_")]:
        del os.environ[name]
    home = tempfile.TemporaryDirectory(prefix="housing-tests-")
    config.add_cleanup(home.cleanup)
    os.environ |= {"HOUSING_HOME": home.name, "MPLBACKEND": "agg"}


@pytest.fixture(autouse=True)
def fresh_settings() -> None:
    """Settings are read once a process; a test that changes the environment needs them anew."""
    get_settings.cache_clear()

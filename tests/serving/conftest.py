"""What tests of serving share: a home with a champion."""

from pathlib import Path

import pytest

from housing_mlops.config import Settings
from housing_mlops.registry.shelf import install_bundle


@pytest.fixture(scope="module")
def home(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose champion is a ridge regression."""
    folder = tmp_path_factory.mktemp("home")
    install_bundle(bundles["Ridge"], "1", Settings(home=folder))
    return folder

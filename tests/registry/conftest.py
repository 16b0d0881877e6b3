"""A registry that does as it is told, and a home that fetches from it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from registries import Registry, running

from housing_mlops.config import Settings


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A server on this machine that answers as it is told to."""
    with running() as told:
        yield told


@pytest.fixture
def serving(registry: Registry, tmp_path: Path) -> Settings:
    """A home that fetches from that server, and has little patience."""
    return Settings(
        home=tmp_path,
        tracking_uri=registry.address,
        registry_timeout_s=1,
        registry_deadline_s=2,
        registry_max_mb=2,
    )

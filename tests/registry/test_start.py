"""The API is started against a registry that misbehaves: with a champion on the shelf, and without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import ask, until
from registries import ALIAS, FILES, Registry
from test_misbehaviour import FAULTS, OK

from housing_mlops.config import Settings
from housing_mlops.data.table import Table
from housing_mlops.model.bundle import INFO, MODEL
from housing_mlops.registry.shelf import cached_champion

pytestmark = pytest.mark.fault

KINDS = ["a gateway's 502", "a page with 200", "a redirect", "a header byte by byte", "silence"]
PATIENCE = {"HOUSING_REGISTRY_TIMEOUT_S": "1", "HOUSING_REGISTRY_DEADLINE_S": "2"}


def price(server: Any, table: Table) -> Any:
    """What `POST /predict` answers for the declaration's example."""
    status, answer = ask(f"{server.address}/predict", table.dataset.example)
    assert status == 200
    return answer


def follow(server: Any, registry: Registry, bundle: Path) -> None:
    """Nothing, once the server has taken what a registry that is well again has."""
    registry.hold(bundle, "2")
    until(lambda: server.get("/readyz")["model_version"] == "2")
    assert server.get("/health")["checks"]["registry"]["state"] == "healthy"


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_with_a_champion_on_the_shelf(
    kind: str,
    serve: Callable[..., Any],
    registry: Registry,
    bundles: dict[str, Path],
    table: Table,
) -> None:
    registry.answers[ALIAS] = FAULTS[kind](registry)
    address = registry.address.replace("://", "://me:s3cret@")
    server = serve(HOUSING_TRACKING_URI=address, HOUSING_REGISTRY_POLL_S="0.2", **PATIENCE)
    assert price(server, table)["model_version"] == "1"
    check = server.get("/health")["checks"]["registry"]
    assert check["state"] == "degraded" and registry.address in check["detail"]
    follow(server, registry, bundles["LinearRegression"])
    assert price(server, table)["model"] == "LinearRegression"
    assert "s3cret" not in server.output.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_without_one_ends_and_says_why(
    kind: str,
    serve: Callable[..., Any],
    registry: Registry,
    bundles: dict[str, Path],
    table: Table,
) -> None:
    registry.answers[ALIAS] = FAULTS[kind](registry)
    settings = {"HOUSING_TRACKING_URI": registry.address, "HOUSING_REGISTRY_POLL_S": "0.2"}
    server = serve(model=False, path="/livez", **settings, **PATIENCE)
    status, why = ask(f"{server.address}/readyz")
    assert status == 503 and registry.address in why["detail"]
    follow(server, registry, bundles["Ridge"])
    assert price(server, table)["model"] == "Ridge"


def test_a_start_with_a_damaged_champion_fetches_it_anew(
    serve: Callable[..., Any], registry: Registry, bundles: dict[str, Path], table: Table
) -> None:
    registry.hold(bundles["Ridge"])
    settings = {"HOUSING_TRACKING_URI": registry.address, "HOUSING_REGISTRY_POLL_S": "0.2"}
    server = serve(**settings, **PATIENCE)
    before = price(server, table)["prediction"]
    server.kill()
    cached = cached_champion(Settings(home=server.home))
    assert cached is not None
    (cached.folder / MODEL).write_bytes(b"no graph any more")
    (cached.folder / INFO).write_text("{}")
    server.start()
    assert price(server, table)["prediction"] == before
    assert server.get("/health")["checks"]["registry"]["state"] == "healthy"


def test_a_file_that_comes_byte_by_byte_holds_no_price_up(
    serve: Callable[..., Any], registry: Registry, bundles: dict[str, Path], table: Table
) -> None:
    registry.hold(bundles["LinearRegression"], "2")
    registry.answers[f"{FILES}/{MODEL}"] = registry.drip(OK + b"\r\n", b" ")
    settings = {"HOUSING_TRACKING_URI": registry.address, "HOUSING_REGISTRY_POLL_S": "0.2"}
    server = serve(**settings, HOUSING_REGISTRY_TIMEOUT_S="1", HOUSING_REGISTRY_DEADLINE_S="600")
    assert {price(server, table)["model_version"] for _ in range(20)} == {"1"}

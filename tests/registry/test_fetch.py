"""What the registry answers, and what a server makes of it: a small HTTP server stands for MLflow."""

import base64
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from processes import free_port
from registries import ALIAS, FILES, VERSION, WHERE, Registry

from housing_mlops.config import Settings
from housing_mlops.model.bundle import MODEL, BundleError
from housing_mlops.registry.fetch import fetch_champion, fetch_version
from housing_mlops.registry.promotion import challenge
from housing_mlops.registry.shelf import cached_champion, install_bundle
from housing_mlops.registry.store import RegistryError, bundle_digest, find_version

# as an MLflow 3.17 server answers
NO_MODEL = (
    404,
    {
        "error_code": "RESOURCE_DOES_NOT_EXIST",
        "message": "Registered Model with name=housing not found",
    },
)
NO_ALIAS = (
    400,
    {
        "error_code": "INVALID_PARAMETER_VALUE",
        "message": "Registered model alias champion not found.",
    },
)
NO_VERSION = (
    404,
    {
        "error_code": "RESOURCE_DOES_NOT_EXIST",
        "message": "Model Version (name=housing, version=9) not found",
    },
)
NO_NUMBER = (
    400,
    {
        "error_code": "INVALID_PARAMETER_VALUE",
        "message": "Parameter 'version' must be an integer, got 'nine'.",
    },
)
# as others do that listen in its place
OTHERS = {
    "a page with 404": (404, "<h1>Not Found</h1>"),
    "a page with 400": (400, "<h1>Bad Request</h1>"),
    "a page that speaks of an alias": (400, "no such alias: RESOURCE_DOES_NOT_EXIST"),
    "JSON of a gateway": (404, {"message": "no Route matched with those values; alias"}),
    "a list": (404, ["error_code", "RESOURCE_DOES_NOT_EXIST"]),
    "an error of MLflow's": (500, {"error_code": "INTERNAL_ERROR", "message": "no database"}),
    "no permission": (403, {"error_code": "PERMISSION_DENIED", "message": "who are you?"}),
    "a sign-in form": (200, "<form>password</form>"),
    "an object without a version": (200, {}),
    "another kind of version": (200, {"model_version": "3"}),
}


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own client does not try again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def by_client(settings: Settings) -> str | None:
    return find_version(settings, "champion")


def by_reader(settings: Settings) -> str | None:
    found = fetch_champion(settings)
    return found.version if found else None


BOTH = pytest.mark.parametrize("champion", [by_client, by_reader])


@BOTH
@pytest.mark.parametrize("answer", [NO_MODEL, NO_ALIAS])
def test_only_mlflows_own_code_means_no_champion(
    champion: Callable[[Settings], str | None],
    answer: tuple[int, object],
    registry: Registry,
    serving: Settings,
    once: None,
) -> None:
    registry.answers[ALIAS] = answer
    assert champion(serving) is None


@BOTH
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.usefixtures("once")
def test_whatever_else_answers_is_a_registry_that_cannot_be_asked(
    champion: Callable[[Settings], str | None], kind: str, registry: Registry, serving: Settings
) -> None:
    registry.answers[ALIAS] = OTHERS[kind]
    with pytest.raises(RegistryError, match=registry.address):
        champion(serving)


@pytest.mark.parametrize("kind", OTHERS)
def test_the_cached_champion_serves_on(
    kind: str, registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    installed = install_bundle(bundles["Ridge"], "1", serving)
    registry.answers[ALIAS] = OTHERS[kind]
    found = fetch_champion(serving)
    assert found is not None and (found.version, found.folder) == ("1", installed)
    assert registry.address in found.problem


@pytest.mark.usefixtures("once")
def test_nothing_is_promoted_past_a_proxy(registry: Registry, serving: Settings) -> None:
    registry.answers[ALIAS] = 404, "<h1>Not Found</h1>"
    with pytest.raises(RegistryError):
        challenge("1", serving)
    assert all(path.startswith(ALIAS) for path, _ in registry.requests), "nothing else was asked"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (NO_VERSION, "housing has no version 9"),
        (NO_NUMBER, "must be an integer"),
        ((404, "<h1>Not Found</h1>"), "answered 404"),
    ],
)
def test_a_version_that_is_not_there(
    answer: tuple[int, object], message: str, registry: Registry, serving: Settings
) -> None:
    registry.answers[VERSION] = answer
    with pytest.raises(RegistryError, match=message):
        fetch_version("9", serving)


def test_a_champion_is_fetched_by_five_requests(
    registry: Registry, serving: Settings, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    registry.hold(bundles["Ridge"])
    found = fetch_champion(serving)
    assert found is not None and found.version == "1" and not found.problem
    assert bundle_digest(found.folder) == bundle_digest(bundles["Ridge"])
    assert cached_champion(serving) == found
    paths = [urlsplit(path).path for path, _ in registry.requests]
    assert paths[:2] == [ALIAS, WHERE] and len(paths) == 5
    first = parse_qs(urlsplit(registry.requests[0][0]).query)
    assert first == {"name": ["housing"], "alias": ["champion"]}
    expected = "Basic " + base64.b64encode(b"me:s3cret").decode()
    assert {user for _, user in registry.requests} == {expected}
    fetch_champion(serving)
    assert len(registry.requests) == 7, "what stands on the shelf is not fetched again"


def test_a_champion_that_cannot_be_taken_leaves_the_old_one(
    registry: Registry, serving: Settings, bundles: dict[str, Path], tmp_path: Path
) -> None:
    registry.hold(bundles["LinearRegression"])
    old = fetch_champion(serving)
    registry.hold(bundles["Ridge"], "2")
    del registry.answers[f"{FILES}/{MODEL}"]
    found = fetch_champion(serving)
    assert old is not None and found is not None and found.folder == old.folder
    assert "answered 404" in found.problem
    registry.answers[f"{FILES}/{MODEL}"] = 200, b"no graph"
    found = fetch_champion(serving)
    assert found is not None and found.folder == old.folder
    assert "damaged" in found.problem
    shelf = old.folder.parent
    assert {p.name for p in shelf.iterdir()} == {old.folder.name, "champion.json"}
    assert cached_champion(serving) == old
    with pytest.raises(BundleError, match="damaged"):
        fetch_champion(serving.model_copy(update={"model_dir": Path("empty")}))


def test_an_answer_that_breaks_off_is_told(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    registry.cut = True
    with pytest.raises(RegistryError, match="out of reach"):
        fetch_champion(serving)


def test_files_that_only_an_object_store_has_are_told(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    registry.answers[WHERE] = 200, {"artifact_uri": "s3://models/1"}
    with pytest.raises(RegistryError, match="--serve-artifacts"):
        fetch_champion(serving)


def test_a_shelf_that_cannot_be_written_is_told(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    full = serving.model_copy(update={"model_dir": Path("/dev/null")})
    with pytest.raises(RegistryError, match="cannot be written"):
        fetch_champion(full)


def test_nobody_listens(tmp_path: Path) -> None:
    gone = Settings(home=tmp_path, tracking_uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RegistryError, match="out of reach"):
        fetch_champion(gone)

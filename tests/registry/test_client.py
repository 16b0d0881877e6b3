"""The registry over HTTP: what it answers is looked at before it is believed."""

import pytest
from registries import API, Registry

from housing_mlops.config import Settings
from housing_mlops.registry.client import Entry, Registered, open_registry
from housing_mlops.registry.store import RegistryError

MODEL, SEARCH, RUN = (
    f"{API}/registered-models/get",
    f"{API}/model-versions/search",
    f"{API}/runs/get",
)
GONE = 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}

pytestmark = pytest.mark.fault


def test_what_a_server_tells_is_read(registry: Registry, serving: Settings) -> None:
    asked = open_registry(serving)
    aliases, tags = (
        [{"alias": "champion", "version": 3}],
        [{"key": "a", "value": "b"}, {"key": "c"}],
    )
    registry.answers[MODEL] = 200, {"registered_model": {"aliases": aliases, "tags": tags}}
    assert asked.model() == Registered({"a": "b", "c": ""}, {"champion": "3"})
    listed = [{"version": "3", "creation_timestamp": "7", "run_id": "r"}]
    registry.answers[SEARCH] = 200, {"model_versions": listed}
    assert asked.versions() == [Entry("3", {}, 7, "r")]
    measured = [{"key": "cv_rmse", "value": 2.5}]
    registry.answers[RUN] = 200, {"run": {"data": {"metrics": measured}}}
    assert asked.metrics("r") == {"cv_rmse": 2.5}
    registry.answers |= {MODEL: GONE, RUN: GONE, SEARCH: (200, {})}
    assert (asked.model(), asked.versions(), asked.metrics("r")) == (Registered({}, {}), [], {})


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}),
        (200, []),
        (200, {"registered_model": 3, "run": 3, "model_versions": 3}),
        (200, {"registered_model": {"tags": 3}, "run": {}, "model_versions": [3]}),
        (200, {"registered_model": {"aliases": [{}]}, "model_versions": [{"version": "../x"}]}),
        (500, {"error_code": "INTERNAL_ERROR", "message": "no"}),
        (200, "<h1>Sign in</h1>"),
    ],
)
def test_what_is_no_answer_is_told(
    answer: tuple[int, object], registry: Registry, serving: Settings
) -> None:
    registry.answers |= dict.fromkeys([MODEL, SEARCH, RUN], answer)
    asked = open_registry(serving)
    for question in (asked.model, lambda: asked.metrics("r")):
        with pytest.raises(RegistryError):
            question()
    if answer != (200, {}):  # which is MLflow's way to list nothing
        with pytest.raises(RegistryError):
            asked.versions()
    with pytest.raises(RegistryError, match="501"):  # this server takes no writes
        asked.point("champion", "1")


def test_a_list_without_end_is_not_read_without_end(registry: Registry, serving: Settings) -> None:
    registry.answers[SEARCH] = 200, {"model_versions": [], "next_page_token": "again"}
    impatient = serving.model_copy(update={"registry_deadline_s": 0.2})
    with pytest.raises(RegistryError, match=r"listed versions for 0\.2 s"):
        open_registry(impatient).versions()

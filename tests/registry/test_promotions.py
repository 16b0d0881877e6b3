"""Two promotions at once: one moves the aliases, the other is told; whoever is killed holds nobody up."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest

from housing_mlops.config import Settings
from housing_mlops.operations.up import Process
from housing_mlops.registry import aliases, promotion
from housing_mlops.registry.aliases import promote, roll_back
from housing_mlops.registry.audit import MOVED, history
from housing_mlops.registry.client import StoreRegistry
from housing_mlops.registry.gate import Check, Verdict
from housing_mlops.registry.promotion import Judged, challenge
from housing_mlops.registry.shelf import cached_champion
from housing_mlops.registry.store import (
    RegistryError,
    find_version,
    register_bundle,
    registry_client,
)
from housing_mlops.training.tracking import open_experiment

pytestmark = [pytest.mark.fault, pytest.mark.train]


def register(settings: Settings, bundles: dict[str, Path], *names: str) -> list[str]:
    """The versions that these bundles become."""
    experiment = open_experiment(settings)
    found = []
    for name in names:
        with mlflow.start_run(experiment_id=experiment) as run:
            pass
        found.append(register_bundle(bundles[name], run.info.run_id, settings))
    return found


@pytest.fixture
def local(tmp_path: Path) -> Settings:
    """A registry in a file of its own."""
    return Settings(home=tmp_path)


def together(*jobs: Callable[[], object]) -> list[object]:
    """What each job returned or raised, all of them begun at the same moment."""
    found: list[object] = [None] * len(jobs)
    begin = threading.Barrier(len(jobs))

    def run(number: int) -> None:
        begin.wait()
        try:
            found[number] = jobs[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=[number]) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def state(settings: Settings) -> tuple[str | None, str | None]:
    """The champion and the one before."""
    return find_version(settings, "champion"), find_version(settings, "previous")


def race(settings: Settings, versions: list[str], rounds: int) -> None:
    """Promote two versions at the same moment, again and again, and look what came of it."""
    first, *others = versions
    promote(first, settings)
    for _ in range(rounds):
        before = find_version(settings, "champion")
        found = together(*(lambda v=v: promote(v, settings) for v in others))
        won = [v for v, result in zip(others, found, strict=True) if isinstance(result, Path)]
        lost = [str(result) for result in found if isinstance(result, RegistryError)]
        assert (len(won), len(lost)) == (1, 1), found
        assert "is under way" in lost[0] or "was not promoted" in lost[0]
        assert state(settings) == (won[0], before)
        cached = cached_champion(settings)
        assert cached is not None and cached.version == won[0]
        promote(first, settings)
    with registry_client(settings) as client:
        tags = client.get_registered_model(settings.model_name).tags
    assert set(tags) == {MOVED}, "nothing is under way, and the last move is known"


def test_of_two_promotions_at_once_one_is_told(local: Settings, bundles: dict[str, Path]) -> None:
    versions = register(local, bundles, "LinearRegression", "Ridge", "LinearRegression")
    for version in versions:
        promote(version, local)  # all are on the shelf: the race is about the aliases
    race(local, versions, rounds=3)


def test_so_it_is_with_a_server(
    mlflow_server: tuple[Settings, Process], bundles: dict[str, Path], tmp_path: Path
) -> None:
    settings = mlflow_server[0].model_copy(update={"model_name": "raced", "home": tmp_path})
    versions = register(settings, bundles, "LinearRegression", "Ridge", "LinearRegression")
    for version in versions:
        promote(version, settings)
    race(settings, versions, rounds=3)


def test_a_roll_back_does_not_undo_a_promotion_that_it_did_not_see(
    local: Settings, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = register(local, bundles, "LinearRegression", "Ridge", "Ridge")
    promote(first, local)
    promote(second, local)
    fetch = aliases.fetch_version

    def slow(version: str, settings: Settings) -> Path:
        monkeypatch.setattr(aliases, "fetch_version", fetch)
        promote(third, settings)  # while the roll-back fetches its bundle
        return fetch(version, settings)

    monkeypatch.setattr(aliases, "fetch_version", slow)
    with pytest.raises(RegistryError, match="was to be 2 and is 3"):
        roll_back(local)
    assert state(local) == (third, second)


def test_two_roll_backs_at_once_are_one(local: Settings, bundles: dict[str, Path]) -> None:
    first, second = register(local, bundles, "LinearRegression", "Ridge")
    promote(first, local)
    promote(second, local)
    found = together(lambda: roll_back(local), lambda: roll_back(local))
    assert first in found and all(r == first or isinstance(r, RegistryError) for r in found)
    assert state(local) == (first, second)


def judged(passed: bool) -> Judged:
    """A verdict that says so."""
    return Judged(Verdict((Check("any", passed, "as it was", "as it is"),), {}))


def test_the_gate_is_asked_again_when_the_champion_changes(
    local: Settings, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    poor, good, middling = register(local, bundles, "LinearRegression", "Ridge", "Ridge")
    promote(poor, local)
    asked: list[str] = []

    def slow(version: str, former: str, *more: Any) -> Judged:
        asked.append(former)
        if len(asked) == 1:  # while this one is compared, a good one is promoted
            promote(good, local)
        return judged(former == poor)

    monkeypatch.setattr(promotion, "judge_version", slow)
    decision = challenge(middling, local)
    assert asked == [poor, good]
    assert not decision.promoted and state(local) == (good, poor)


def test_who_is_overtaken_again_and_again_is_told(
    local: Settings, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = register(local, bundles, "LinearRegression", "Ridge", "Ridge")
    promote(first, local)

    def restless(*asked: Any) -> Judged:
        promote(second if find_version(local, "champion") == first else first, local)
        return judged(True)

    monkeypatch.setattr(promotion, "judge_version", restless)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(RegistryError, match="was not promoted: the champion was to be"):
        challenge(third, local)
    assert third not in state(local)


@pytest.mark.parametrize("age_s", [0, 3600])
def test_a_promotion_that_was_killed_holds_up_for_a_while_and_not_for_good(
    age_s: int, local: Settings, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = register(local, bundles, "LinearRegression", "Ridge")
    promote(first, local)
    until = datetime.now(UTC) + timedelta(seconds=300 - age_s)
    with registry_client(local) as client:
        left = f"{until.isoformat()} version 1 on another-host"
        client.set_registered_model_tag("housing", f"{aliases.MARK}00", left)
        client.set_registered_model_tag("housing", "owner", "pricing")
    if age_s:
        promote(second, local)
        assert state(local) == (second, first)
    else:
        with pytest.raises(RegistryError, match="version 1 on another-host"):
            promote(second, local)
        assert state(local) == (first, None)
    with registry_client(local) as client:
        tags = client.get_registered_model("housing").tags
    assert set(tags) - {MOVED} == ({"owner"} if age_s else {"owner", f"{aliases.MARK}00"})


def test_what_another_program_moved_is_told(
    local: Settings, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = register(local, bundles, "LinearRegression", "Ridge")
    promote(first, local)
    set_alias = mlflow.MlflowClient.set_registered_model_alias

    def meddle(client: Any, name: str, alias: str, version: str) -> None:
        set_alias(client, name, alias, version)
        if alias == "champion":
            set_alias(client, name, alias, first)

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", meddle)
    with pytest.raises(RegistryError, match="was replaced by 1 at once"):
        promote(second, local)
    cached = cached_champion(local)
    assert cached is not None and cached.version == first


WRITES = {
    StoreRegistry: ("tag", "tag_version", "point"),
    mlflow.MlflowClient: ("log_text", "log_metric", "set_tag"),
}


def go_away(patched: pytest.MonkeyPatch, after: int) -> None:
    """Have the registry take so many more writes and no other."""
    left = iter(range(after))

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def one(*args: Any, **more: Any) -> Any:
            if next(left, None) is None:
                raise RegistryError("The registry is gone.")
            return write(*args, **more)

        return one

    for owner, names in WRITES.items():
        for name in names:
            patched.setattr(owner, name, counted(getattr(owner, name)))


def test_whichever_write_of_a_promotion_is_the_last_there_is_no_half_of_it(
    local: Settings, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "LEASE_S", 0)  # so that nobody waits for who was broken off
    monkeypatch.setattr(promotion, "judge_version", lambda *asked: judged(True))
    first, second = register(local, bundles, "LinearRegression", "Ridge")
    promote(first, local)
    broken = 0
    while find_version(local, "champion") == first:
        with monkeypatch.context() as patched:
            go_away(patched, broken)
            try:
                assert challenge(second, local).promoted
            except RegistryError as error:
                assert "is gone" in str(error) and state(local) == (first, None)
        broken += 1
        cached = cached_champion(local)
        assert cached is not None and cached.version == find_version(local, "champion")
    assert broken > 7, "the verdict is written first, then the intention, then the alias"
    promote(first, local)  # what was left is put right by the next
    assert state(local) == (first, second)
    assert [m.after for m in history(local).moves if m.action == "promote"] == [
        *(first, second, first)
    ]

"""Whom a cluster's address is trusted to, and what becomes of tasks whose worker dies."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import distributed
import pytest
from processes import free_port

from housing_mlops import cluster
from housing_mlops.cluster import ClusterError, check_scheduler, run_tasks, workers
from housing_mlops.config import ConfigError, HousingError, Settings


@pytest.mark.parametrize("address", ["tcp://dask:8786", "tcp://10.0.0.7:8786", "tcp://[::2]:1"])
def test_a_plain_address_of_another_machine_takes_a_word(address: str) -> None:
    with pytest.raises(ConfigError, match="HOUSING_SCHEDULER_OPEN=true"):
        check_scheduler(Settings(scheduler=address))
    check_scheduler(Settings(scheduler=address, scheduler_open=True))
    check_scheduler(Settings(scheduler=address.replace("tcp", "tls")))


@pytest.mark.parametrize("address", ["dask:8786", "http://dask:8786", "remote"])
def test_what_is_no_address_is_refused_with_the_settings(address: str) -> None:
    with pytest.raises(ValueError, match="scheduler"):
        Settings(scheduler=address)


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ClusterError, match=r"housing_mlops\[scale\]"),
        workers(Settings(scheduler="local")),
    ):
        raise AssertionError


def test_a_scheduler_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 0.2)
    settings = Settings(scheduler=f"tcp://127.0.0.1:{free_port()}")
    with pytest.raises(ClusterError, match="No scheduler answers"), workers(settings):
        raise AssertionError


def once(mark: str, folder: str) -> str:
    """`mark`; the first process that is asked for it dies."""
    if mark == "deadly" and not (first := Path(folder) / "died").exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return mark


def fail(mark: str) -> None:
    """Nothing; raises the project's own error."""
    raise HousingError(f"{mark} is wrong, says the worker.")


@pytest.mark.fault
def test_a_task_whose_worker_dies_is_done_by_another(dask_client: Any, tmp_path: Path) -> None:
    marks = ["a", "deadly", *map(str, range(20))]
    assert sorted(run_tasks(dask_client, once, marks, str(tmp_path))) == sorted(marks)
    assert (tmp_path / "died").exists()


def profiled() -> Any:
    from dask import config

    return config.get("distributed.worker.profile.enabled")


def test_no_worker_is_sampled_for_a_dashboard_that_is_not_there(dask_client: Any) -> None:
    assert {*dask_client.run(profiled).values()} == {False}  # of those that are there just now


def test_an_error_on_a_worker_is_the_error_here(dask_client: Any) -> None:
    with pytest.raises(HousingError, match="b is wrong, says the worker"):
        [*run_tasks(dask_client, fail, ["b"])]


class Broken:
    """A client whose only task ends in an error of Dask's."""

    key = "pow-1"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {}}

    def submit(self, *arguments: Any, **options: Any) -> "Broken":
        return self

    def result(self) -> None:
        raise self.error


class Ready(list[Broken]):
    """Futures that are ready as soon as they are there."""

    add = list.append

    def __next__(self) -> Broken:
        return self.pop()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (distributed.KilledWorker("price_part-1", None, 4), "took its workers with it"),
        (distributed.client.FutureCancelledError("price_part-1", "gone"), "went away"),
        (distributed.comm.CommClosedError("closed"), "The same command goes on"),
    ],
)
def test_what_happened_to_a_cluster_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.setattr(distributed, "as_completed", Ready)
    with pytest.raises(ClusterError, match=message):
        [*run_tasks(Broken(error), pow, [2])]

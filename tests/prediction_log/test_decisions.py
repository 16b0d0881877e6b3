"""What was decided is kept, and one training happens at a time, whoever dies."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import sqlalchemy as sa
from processes import until

from housing_mlops.prediction_log.database import connect, migrate
from housing_mlops.prediction_log.decisions import (
    end_decision,
    one_training,
    read_decisions,
    record_decision,
)
from housing_mlops.prediction_log.record import LogUnavailable


def test_a_decision_is_kept_and_completed(engine: sa.Engine) -> None:
    record_decision(engine, "wait", "no signal", {})
    begun = record_decision(engine, "train", "drift", {"drift": ["a"]}, "running", "runs/1")
    [running] = read_decisions(engine, trainings=True)
    assert running.state == "running" and running.ended is None and running.promoted is None
    end_decision(engine, begun, "done", "not promoted: no better", "r", "2", False)
    ended, waited = read_decisions(engine)
    assert (ended.id, ended.evidence, ended.version) == (begun, {"drift": ["a"]}, "2")
    assert ended.promoted is False and ended.ended is not None and waited.state == ""
    assert read_decisions(engine, 1) == [ended]


def hold(url: str, taken: Path) -> None:
    """Take the lock and keep it until killed."""
    with one_training(connect(url)) as mine:
        taken.write_text(str(mine))
        signal.pause()


@pytest.mark.process
def test_the_lock_of_one_who_is_killed_is_free(url: str, tmp_path: Path) -> None:
    engine = connect(url)
    migrate(engine)
    taken = tmp_path / "taken"
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(url, taken))
    holder.start()
    try:
        until(lambda: taken.exists() and taken.read_text() == "True")
        with one_training(engine) as mine:
            assert not mine

        def free() -> bool:
            with one_training(engine) as mine:
                return mine

        assert holder.pid
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        assert until(free, what="the lock of a process that was killed")
    finally:
        holder.kill()
        engine.dispose()


def test_what_fails_under_the_lock_lets_it_go(engine: sa.Engine) -> None:
    with pytest.raises(BlockingIOError), one_training(engine):
        raise BlockingIOError  # which the lock of a file raises too, when it is taken
    with one_training(engine) as mine:
        assert mine


@pytest.mark.fault
def test_a_lock_that_cannot_be_asked_for_is_told() -> None:
    engine = connect("postgresql://someone:secret@/none?host=/nowhere")
    with pytest.raises(LogUnavailable, match="does not answer"), one_training(engine):
        raise AssertionError

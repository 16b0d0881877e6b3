"""A journal knows its database, and nothing that was accepted is invisible or stops the rest."""

import errno
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import until
from recording import append, die, drain, failing, heir, id_of, left_behind, once, record, stored

from housing_mlops.prediction_log import insertion
from housing_mlops.prediction_log.journal import Journal, JournalError, JournalReader
from housing_mlops.prediction_log.log import PredictionLog
from housing_mlops.prediction_log.segment import HEADER, Origin, frame, header

pytestmark = pytest.mark.fault


def dead(log: PredictionLog, n: int) -> set[str]:
    """The ids of n records that `log` accepted before its process died."""
    assert log.thread.stop(0, grace_s=30)
    ids = append(log, n)
    log.flusher.stop()
    die(log.reader)
    return ids


def test_a_dead_neighbours_records_go_to_its_own_database(
    tmp_path: Path, folder: Path, start: Callable[..., PredictionLog]
) -> None:
    ours, theirs = (f"sqlite:///{tmp_path}/{name}.db" for name in ("ours", "theirs"))
    ids = dead(start(theirs), 500)
    log = start(ours)
    mine = append(log, 10)
    assert log.flush(30)
    until(lambda: log.reader.survey.strange)
    once(log.engine, mine)
    assert len(list(folder.glob("*.journal"))) == 2
    again = start(theirs)
    until(lambda: again.state.replayed == 500)
    once(again.engine, ids)
    until(lambda: not log.reader.survey.strange)


def test_the_same_database_under_another_url_is_the_same(
    tmp_path: Path, start: Callable[..., PredictionLog]
) -> None:
    ids = dead(start(f"sqlite:///{tmp_path}/predictions.db"), 50)
    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("predictions.db*"):
        path.rename(tmp_path / "moved" / path.name)
    log = start(f"sqlite:///{tmp_path}/moved/predictions.db")
    until(lambda: log.state.replayed == 50)
    once(log.engine, ids)


def test_another_database_under_the_same_url_is_another(
    tmp_path: Path, sqlite_url: str, start: Callable[..., PredictionLog]
) -> None:
    dead(start(sqlite_url), 50)
    for path in tmp_path.glob("predictions.db*"):
        path.unlink()
    log = start(sqlite_url)
    until(lambda: log.reader.survey.strange)
    assert stored(log.engine) == []


def test_records_of_a_database_that_was_never_reached_go_by_its_address(
    tmp_path: Path, start: Callable[..., PredictionLog]
) -> None:
    url = f"sqlite:///{tmp_path}/later/predictions.db"
    ids = dead(start(url), 50)
    other = start(f"sqlite:///{tmp_path}/other.db")
    until(lambda: other.reader.survey.strange)
    (tmp_path / "later").mkdir()
    log = start(url)
    until(lambda: log.state.replayed == 50)
    once(log.engine, ids)
    assert stored(other.engine) == []


def test_one_bit_in_a_header_costs_nothing(folder: Path) -> None:
    random.seed(0)
    mine, records = Origin("b7e4", "2f1c"), [record() for _ in range(1000)]
    for bit in random.sample(range(8 * len(HEADER)), 20):
        first = bytearray(header(mine))
        first[bit // 8] ^= 1 << bit % 8
        path = left_behind(folder, [])
        path.write_bytes(bytes(first) + b"".join(map(frame, records)))
        reader = JournalReader(Journal(folder, origin=mine))
        assert reader.adopt() == 1000
        assert drain(reader) == (records, [])
        reader.close()
    assert not list(folder.iterdir())


def test_a_lock_of_another_user_stops_nothing_but_its_own_journal(
    folder: Path,
    sqlite_url: str,
    start: Callable[..., PredictionLog],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = left_behind(folder, [record()])
    lines = [record() for _ in range(20)]
    left_behind(folder, lines)
    theirs = first.name[:36] + ".lock"
    with monkeypatch.context() as patched:
        failing(patched, "open", errno.EACCES, lambda path, *_: str(path).endswith(theirs))
        log = start(sqlite_url)
        until(lambda: log.state.replayed == 20)
        once(log.engine, {*map(id_of, lines)})
        until(lambda: log.reader.survey.unreadable)
        assert caplog.text.count("is unreadable") == 1
    until(lambda: log.state.replayed == 21)
    until(lambda: not log.reader.survey.unreadable)


def test_what_a_writer_leaves_beside_its_segments_is_counted_as_long_as_it_is_there(
    folder: Path,
) -> None:
    path = left_behind(folder, [b"one"])
    empty = path.with_name(path.name.replace("000001", "000002"))
    empty.touch()
    reader = heir(folder)
    for _ in range(2):
        reader.adopt()
        assert reader.survey.empty == {empty}
    empty.unlink()
    reader.adopt()
    assert not reader.survey.empty
    assert drain(reader)[0] == [b"one"]


# bounds


def test_a_restart_during_an_outage_does_not_start_the_backlog_anew(
    tmp_path: Path, folder: Path, start: Callable[..., PredictionLog]
) -> None:
    url = f"sqlite:///{tmp_path}/later/predictions.db"
    ids: set[str] = set()
    for _ in range(3):
        log = start(url, max_bytes=50_000)
        with pytest.raises(JournalError, match="bound"):
            while True:
                ids |= append(log, 1)
        log.close(0)
    assert sum(path.stat().st_size for path in folder.glob("*.journal")) < 55_000
    (tmp_path / "later").mkdir()
    log = start(url, max_bytes=50_000)
    until(lambda: log.state.replayed == len(ids))
    once(log.engine, ids)


def test_a_recovery_refuses_nothing_that_would_have_been_accepted(
    folder: Path,
    sqlite_url: str,
    start: Callable[..., PredictionLog],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [record() for _ in range(16_000)]  # of four workers, say, each below its bound
    for i in range(0, 16_000, 4000):
        left_behind(folder, lines[i : i + 4000])
    real = insertion.insert_all

    def slowly(*args: Any) -> Any:
        time.sleep(0.3)
        return real(*args)

    monkeypatch.setattr(insertion, "insert_all", slowly)
    log = start(sqlite_url, max_bytes=500_000)
    assert log.state.connected and log.reader.backlog.bytes > 500_000
    ids = append(log, 200)  # while the backlog is carried
    assert log.flush(30)
    until(lambda: log.state.replayed == 16_000)
    once(log.engine, ids | {*map(id_of, lines)})

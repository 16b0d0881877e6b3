"""What could not be stored by itself is counted, bounded, and put back by a command."""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from processes import until
from recording import append, id_of, left_behind, once, record
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.monitoring.health import check_log
from housing_mlops.prediction_log.adoption import adopt
from housing_mlops.prediction_log.log import PredictionLog
from housing_mlops.prediction_log.quarantine import Quarantine
from housing_mlops.prediction_log.repair import rewrite_segment
from housing_mlops.prediction_log.segment import Origin, Segment, frame, header
from housing_mlops.prediction_log.writer import hold_lock

pytestmark = pytest.mark.fault


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs `housing-mlops log …` beside the log of these tests."""
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))

    def log(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["log", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    return log


def test_everything_in_the_folder_is_counted_and_comes_back(
    folder: Path, sqlite_url: str, start: Callable[..., PredictionLog], run: Callable[..., str]
) -> None:
    lines = [record() for _ in range(300)]
    theirs = header(Origin("c0c0", "9e07"))
    left_behind(folder, []).write_bytes(theirs + b"".join(map(frame, lines[:100])))
    left_behind(folder, []).write_bytes(b"?" * 90 + b"\n" + b"".join(map(frame, lines[100:200])))
    left_behind(folder, []).write_bytes(b"")
    aside = left_behind(folder, lines[200:])
    aside.rename(aside.with_name(f"{aside.name}.foreign"))
    log = start(sqlite_url)
    ids = append(log, 5)
    assert log.flush(30)
    wanted = {"strange": 1, "damaged": 1, "empty": 1, "foreign": 1}
    until(lambda: wanted.items() <= log.state.folder.items())
    journal = check_log(log.state)["journal"]
    assert journal.state == "degraded" and "1 damaged segments" in journal.detail
    for word in wanted:
        assert word in run("show")
    before = sorted(path.name for path in folder.glob("*.journal*"))
    assert "Nothing was done" in run("repair")
    assert sorted(path.name for path in folder.glob("*.journal*")) == before, "but for locks"
    run("repair", "--apply")
    until(lambda: log.state.replayed == 200)
    once(log.engine, ids | {*map(id_of, lines[100:])})
    run("repair", "--apply", "--strangers")
    until(lambda: log.state.replayed == 300)
    once(log.engine, ids | {*map(id_of, lines)})
    until(lambda: not any(v for k, v in log.state.folder.items() if k not in ("own", "refused")))


def test_a_server_that_looks_for_a_moment_is_not_the_owner(
    folder: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = left_behind(folder, [])
    segment.write_bytes(b"?" * 90 + b"\n" + frame(record()))
    path = segment.with_name(f"{segment.name[:36]}.lock")
    held = [hold_lock(path)]
    with monkeypatch.context() as patch:
        clock = SimpleNamespace(
            monotonic=time.monotonic, sleep=lambda _: os.close(held.pop() or -1)
        )
        patch.setattr("housing_mlops.prediction_log.writer.time", clock)
        assert "damaged" in run("show")
    fd = hold_lock(path)
    assert not held and fd is not None and "in use" in run("show")
    os.close(fd)


def test_what_was_refused_comes_back_when_the_reason_is_gone(
    folder: Path, sqlite_url: str, start: Callable[..., PredictionLog], run: Callable[..., str]
) -> None:
    log = start(sqlite_url)
    with log.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER no BEFORE INSERT ON predictions WHEN new.model_version = '9' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    random.seed(0)
    refused, bad = [record("9") for _ in range(20)], record(features="{'a': 1}")
    whole = record()
    flipped = bytearray(frame(whole)[:-1])
    flipped[random.randrange(len(flipped))] ^= 1
    path = left_behind(folder, [*refused, bad], bytes(flipped) + b"\n")
    until(lambda: not path.exists())
    assert log.state.folder["refused"] == log.state.quarantined == 22
    with log.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER no")
    assert "22" in run("show")
    run("repair")
    assert log.state.folder["refused"] == 22
    assert "21 of 22 stored" in run("repair", "--apply")
    once(log.engine, {*map(id_of, [*refused, whole])})
    assert log.state.folder["refused"] == 1
    log.journal.append_many([bad])  # into the file that the repair left
    assert log.flush(30)
    until(lambda: log.state.folder["refused"] == 2)


def test_the_quarantine_has_a_bound_and_then_nothing_is_lost(
    folder: Path, sqlite_url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(sqlite_url, max_bytes=20_000)
    accepted = 0
    while not log.state.error:
        log.journal.append_many([record(features="{'a': 1}")] * 5)
        accepted += 5
        until(lambda: log.state.error or log.flush(0.05))
    assert "has reached its bound" in log.state.error
    path = folder / "refused.jsonl"
    assert path.stat().st_size <= 20_000
    path.rename(folder.with_name("kept.jsonl"))
    ids = append(log, 5)
    assert log.flush(30)
    once(log.engine, ids)
    kept = (folder.with_name("kept.jsonl"), path)
    assert sum(len(p.read_text().splitlines()) for p in kept) == accepted


def test_bytes_that_are_no_text_come_back_as_they_were(folder: Path) -> None:
    folder.mkdir()
    odd = b"\xff\\xff\x00\xc3\xa9"
    Quarantine(folder).add([(odd, "no text")])
    [line] = (folder / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["record"].encode(errors="surrogateescape") == odd


@pytest.mark.database
def test_a_postgresql_that_commits_before_it_flushes_is_told(
    postgres_url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(postgres_url)
    assert check_log(log.state)["database"].state == "healthy"
    with log.engine.begin() as connection:
        name = connection.scalar(sa.text("SELECT current_database()"))
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    assert "synchronous_commit" in start(postgres_url).state.doubt
    assert start(postgres_url, durability="process").state.doubt == ""


def test_a_server_that_looks_during_a_repair_takes_no_half_of_a_segment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [record() for _ in range(10)]
    theirs = Origin("c0c0")
    path = left_behind(folder, [])
    path.write_bytes(header(theirs) + b"".join(map(frame, lines)))
    ours, real, looks = Origin("b7e4"), Segment.append, []

    def append(segment: Segment, data: bytes) -> None:
        if frame(lines[0]) in data:  # the header stands already
            looks.append(adopt(folder, (), ours)[0])
        real(segment, data)

    monkeypatch.setattr(Segment, "append", append)
    assert rewrite_segment(path, ours) == 10
    assert looks == [[]]
    [writer], _ = adopt(folder, (), ours)
    batch = writer.next_batch()
    assert batch is not None and batch.records == lines
    writer.release()

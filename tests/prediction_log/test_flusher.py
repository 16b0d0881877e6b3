"""What was accepted survives a power cut, as far as the level promises it; a disk that fails is told."""

import asyncio
import errno
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from power import BlockImage, ForgetfulDisk
from processes import until
from recording import append, drain, failing, heir, id_of, opened, record, stored

from housing_mlops.config import Settings
from housing_mlops.prediction_log.journal import JournalError
from housing_mlops.prediction_log.log import PredictionLog, open_log

pytestmark = pytest.mark.fault


@pytest.fixture
def away(tmp_path: Path) -> str:
    """A database that is not there: everything stays in the journal."""
    return f"sqlite:///{tmp_path}/later/predictions.db"


# power cuts, by what was flushed


def test_a_power_cut_loses_nothing_that_is_older_than_the_interval(
    tmp_path: Path,
    folder: Path,
    away: str,
    start: Callable[..., PredictionLog],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = ForgetfulDisk(monkeypatch)
    log = start(away)
    ids = append(log, 300)
    until(lambda: disk.holds(folder), 20, "every segment on disk")
    log.journal.rotation.segment_bytes = 2_000
    assert log.journal.rotation.active is not None
    log.journal.rotation.active.limit = 0
    ids |= append(log, 20)  # in several segments, each with a name to be flushed
    until(lambda: disk.holds(folder), 20, "every segment on disk")
    disk.after_the_cut(folder, tmp_path / "copy")
    good, damaged = drain(heir(tmp_path / "copy"))
    assert set(map(id_of, good)) == ids and not damaged


def test_at_level_always_no_answer_leaves_before_its_record_is_on_disk(
    tmp_path: Path,
    folder: Path,
    away: str,
    start: Callable[..., PredictionLog],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = ForgetfulDisk(monkeypatch)
    log = start(away, durability="always")
    answered: list[str] = []

    async def ask() -> None:
        line = record()
        log.journal.append_many([line])
        await log.flusher.wait()
        answered.append(id_of(line))

    async def some() -> None:
        asked = [asyncio.ensure_future(ask()) for _ in range(200)]
        while len(answered) < 50:
            await asyncio.sleep(0)
        with monkeypatch.context() as patched:  # as if the power went: nothing more gets to disk
            failing(patched, "fdatasync", errno.EIO)
            there = {*answered}
            disk.after_the_cut(folder, tmp_path / "copy")
            assert there <= {id_of(line) for line in drain(heir(tmp_path / "copy"))[0]}
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(some())


def test_at_level_process_nothing_is_flushed(
    folder: Path, away: str, start: Callable[..., PredictionLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = ForgetfulDisk(monkeypatch)
    log = start(away, durability="process")
    append(log, 10)
    asyncio.run(log.flusher.wait())
    log.close(0)
    assert not disk.sizes and list(folder.glob("*.journal"))


@pytest.mark.parametrize(("level", "wanted"), [("process", 1), ("interval", 2), ("always", 2)])
def test_sqlite_has_a_transaction_on_disk_before_a_segment_goes(
    sqlite_url: str, start: Callable[..., PredictionLog], level: str, wanted: int
) -> None:
    log = start(sqlite_url, durability=level)
    with log.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == wanted


# power cuts, by a copied block image

SERVES = """
import asyncio, os, sys, time
from pathlib import Path
from housing_mlops.config import Settings
from housing_mlops.prediction_log.log import open_log
from housing_mlops.prediction_log.record import Record, encode_record, new_id

home, level = sys.argv[1:]
log = open_log(Settings(home=Path(home), durability=level)).start(30)
journal = log.journal
journal.rotation.segment_bytes = 20_000


async def ask():
    made = new_id()
    record = Record(made, time.time_ns() // 1000, "housing", "1", 22.5, None, None, 0.2, "/predict", "", "{}")
    journal.append_many([encode_record(record)])
    if level == "always":
        await log.flusher.wait()
    os.write(1, made.encode() + b"\\n")


async def main():
    for _ in range(40):
        await asyncio.gather(*(ask() for _ in range(100)))
        await asyncio.sleep(0.01)
    while any(getattr(s, "flushed", s.size) < s.size for w in log.reader.writers for s in list(w.segments)):
        await asyncio.sleep(0.01)
    os.write(1, b"flushed\\n")
    while True:
        await asyncio.gather(*(ask() for _ in range(20)))
        await asyncio.sleep(0.001)


asyncio.run(main())
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[BlockImage]:
    made = BlockImage(tmp_path)
    yield made
    made.unmount()


@pytest.mark.process
@pytest.mark.parametrize("level", ["interval", "always"])
def test_a_copied_block_image_has_what_was_promised(disk: BlockImage, level: str) -> None:
    home = disk.mounted / "home"
    home.mkdir()
    command = [sys.executable, "-c", SERVES, str(home), level]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    lines = map(str.strip, child.stdout)
    promised = set(itertools.takewhile(lambda line: line != "flushed", lines))
    later = {*itertools.islice(lines, 500)}
    assert len(promised) == 4000 and len(later) == 500
    child.send_signal(signal.SIGSTOP)
    disk.cut()
    child.kill()
    child.communicate()
    if level == "always":
        promised |= later
    disk.restore()
    log = open_log(Settings(home=home))
    assert log is not None
    log.start(30)
    left = (home / "journal").glob  # a name may be on disk before its content: that is told
    until(
        lambda: (
            {*left("*.journal")} <= log.reader.inherited.survey.empty
            and not log.reader.backlog.rows
        )
    )
    found = stored(log.engine)
    log.close()
    assert len(found) == len(set(found))
    assert len(promised - set(found)) == 0


# a disk that does not keep what it took


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_flush_that_fails_stops_everything_until_it_succeeds(
    folder: Path,
    away: str,
    start: Callable[..., PredictionLog],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    log = start(away)
    ids = append(log, 3)
    with monkeypatch.context() as patched:
        failing(patched, "fdatasync", code)
        ids |= append(log, 1)
        until(lambda: os.strerror(code) in log.state.journal_error)
        with pytest.raises(JournalError, match=os.strerror(code)):
            log.journal.append_many([record()])
    until(lambda: not log.journal.blocked)
    assert caplog.text.count("cannot be flushed") == 1
    ids |= append(log, 1)
    until(lambda: not log.state.journal_error)
    log.close(0)
    good, damaged = drain(heir(folder))
    assert set(map(id_of, good)) == ids and not damaged


def test_pages_that_a_failed_flush_lost_are_written_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure the system may count pages as clean: the next flush flushes nothing."""
    journal, _ = opened(folder)
    from housing_mlops.prediction_log.flusher import flush_journal

    journal.append_many([b"one"])
    written: list[bytes] = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *a: written.append(a[1]) or real(*a))
    with monkeypatch.context() as patched:
        failing(patched, "fdatasync", errno.EIO)
        assert not flush_journal(journal)
    (path,) = folder.glob("*.journal")
    before = path.read_bytes()
    assert flush_journal(journal)
    assert written == [before] == [path.read_bytes()]


def test_a_folder_that_is_deleted_costs_one_turn(
    folder: Path, sqlite_url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(sqlite_url, durability="always", interval_s=60)

    async def ask() -> bool:
        log.journal.append_many([record()])
        try:
            await log.flusher.wait()
            return True
        except JournalError:
            return False

    assert asyncio.run(ask())
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert not asyncio.run(ask())
    assert asyncio.run(ask()) and list(folder.glob("*.journal"))


def test_segments_that_are_stored_while_they_are_flushed_are_no_failure(
    sqlite_url: str, start: Callable[..., PredictionLog]
) -> None:
    log = start(sqlite_url)
    log.journal.rotation.segment_bytes = 1_000
    flushing = log.flusher
    ids: set[str] = set()
    for _ in range(100):
        ids |= append(log, 10)
        flushing.flush()
    assert not log.journal.blocked and log.flush(30)
    with log.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM predictions")) == len(ids)

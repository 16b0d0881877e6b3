"""The journal under faults: disks that fill, folders that go, a backlog at its bound."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from recording import die, drain, failing, heir, left_behind, opened

from housing_mlops.prediction_log.journal import JournalError

# a disk that does not take everything


def test_a_short_write_is_refused_and_leaves_no_trace(
    folder: Path, disk_of: Callable[[int], None]
) -> None:
    journal, reader = opened(folder)
    journal.append_many([b"a" * 400])
    disk_of(1000)
    journal.append_many([b"b" * 400])
    (path,) = folder.glob("*.journal")
    accepted = path.read_bytes()
    for _ in range(2):
        with pytest.raises(JournalError, match="full"):
            journal.append_many([b"c" * 400])
        assert path.read_bytes() == accepted
    assert journal.error and reader.backlog.rows == 2
    with pytest.raises(JournalError, match="full"):
        journal.append_many([b"d"] * 100)
    disk_of(1 << 20)
    journal.append_many([b"e"])
    assert not journal.error
    assert drain(reader) == ([b"a" * 400, b"b" * 400, b"e"], [])
    assert reader.backlog == (0, 0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_is_refused_until_it_works_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    journal, reader = opened(folder)
    journal.append_many([b"one"])
    with monkeypatch.context() as patched:
        failing(patched, "write", code)
        for _ in range(2):
            with pytest.raises(JournalError, match=os.strerror(code)):
                journal.append_many([b"two"])
        assert os.strerror(code) in journal.error
    journal.append_many([b"three"])
    assert not journal.error
    assert drain(reader) == ([b"one", b"three"], [])


def test_a_torn_line_that_cannot_be_cut_off_spoils_no_other(
    folder: Path, disk_of: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, reader = opened(folder)
    journal.append_many([b"one"])
    disk_of(160)
    with monkeypatch.context() as patched:
        failing(patched, "ftruncate", errno.EIO)
        with pytest.raises(JournalError):
            journal.append_many([b"x" * 400])
        failing(patched, "open", errno.ENOSPC)
        with pytest.raises(JournalError):  # neither the old segment nor a new one
            journal.append_many([b"y"])
    disk_of(1 << 20)
    journal.append_many([b"two"])
    assert reader.backlog.rows == 2
    assert len(list(folder.glob("*.journal"))) == 2
    die(reader)
    good, damaged = drain(heir(folder))
    assert good == [b"one", b"two"]
    assert len(damaged) == 1 and damaged[0].endswith(b"xxx")


def test_a_segment_that_cannot_be_begun(
    folder: Path, disk_of: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_of(5)
    journal, reader = opened(folder, segment_bytes=30)
    with pytest.raises(JournalError, match="full"):
        journal.append_many([b"one"])
    assert not list(folder.glob("*.journal"))
    disk_of(1 << 20)
    journal.append_many([b"two"])  # and the segment is as large as it may become
    with monkeypatch.context() as patched:
        failing(patched, "open", errno.EMFILE)
        journal.append_many([b"three"])  # the old one still does
    assert len(list(folder.glob("*.journal"))) == 1
    journal.append_many([b"four", b"five"])
    assert len(list(folder.glob("*.journal"))) == 2
    assert drain(reader) == ([b"two", b"three", b"four", b"five"], [])


def test_a_segment_that_can_neither_be_begun_nor_removed(
    folder: Path, disk_of: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, reader = opened(folder)
    disk_of(5)
    with monkeypatch.context() as patched:
        failing(patched, "unlink", errno.EROFS)
        with pytest.raises(JournalError, match="full"):
            journal.append_many([b"one"])
    disk_of(1 << 20)
    journal.append_many([b"two"])
    die(reader)
    assert drain(heir(folder)) == ([b"two"], [])


# a folder that is not there, or not for long


def test_the_folder_is_a_file_and_then_is_not(folder: Path) -> None:
    folder.write_text("in the way")
    journal, reader = opened(folder)
    for _ in range(2):
        with pytest.raises(JournalError, match=r"File exists|Not a directory"):
            journal.append_many([b"one"])
        assert journal.error
    folder.unlink()
    journal.append_many([b"two"])
    assert not journal.error
    assert drain(reader) == ([b"two"], [])


def delete(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_the_folder_is_deleted_under_way(folder: Path) -> None:
    journal, reader = opened(folder)
    journal.append_many([b"one"])
    delete(folder)
    journal.append_many([b"two"])  # into a file without a name
    reader.tidy()
    journal.append_many([b"three"])
    assert len(list(folder.glob("*.journal"))) == 1
    assert sorted(drain(reader)[0]) == [b"one", b"three", b"two"]
    reader.tidy()
    assert len(reader.writers) == 1
    reader.close()
    assert not list(folder.iterdir())


def test_a_deleted_folder_that_cannot_be_made_again_is_no_place_for_records(folder: Path) -> None:
    journal, reader = opened(folder)
    journal.append_many([b"one"])
    delete(folder)
    folder.write_text("a file where the folder was")
    reader.tidy()
    for _ in range(2):
        with pytest.raises(JournalError, match="exists"):
            journal.append_many([b"lost if the process dies now"])
    folder.unlink()
    journal.append_many([b"two"])
    assert sorted(drain(reader)[0]) == [b"one", b"two"]
    reader.close()


def test_a_folder_deleted_before_its_first_segment(
    folder: Path, disk_of: Callable[[int], None]
) -> None:
    journal, reader = opened(folder)
    disk_of(5)
    with pytest.raises(JournalError, match="full"):
        journal.append_many([b"one"])
    disk_of(1 << 20)
    delete(folder)
    reader.tidy()
    journal.append_many([b"two"])
    assert drain(reader)[0] == [b"two"]
    reader.close()
    assert not list(folder.iterdir())


def test_a_file_without_a_name_is_not_gone_back_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, reader = opened(folder)
    journal.append_many([b"one"])
    delete(folder)
    reader.tidy()
    with monkeypatch.context() as patched:
        failing(patched, "open", errno.EMFILE, lambda path, *_: not str(path).endswith(".lock"))
        for _ in range(2):
            with pytest.raises(JournalError, match="Too many open files"):
                journal.append_many([b"lost if the process dies now"])
    journal.append_many([b"two"])
    assert sorted(drain(reader)[0]) == [b"one", b"two"]


# a backlog with a bound


def test_the_backlog_has_a_bound(folder: Path) -> None:
    journal, reader = opened(folder, max_bytes=1000)
    accepted = 0
    with pytest.raises(JournalError, match="bound of 1000 bytes"):
        while True:
            journal.append_many([b"x" * 90])
            accepted += 1
    assert accepted == 10 and reader.backlog == (10, 1000)
    with pytest.raises(JournalError, match="bound"):
        journal.append_many([b"x"])
    assert len(drain(reader)[0]) == 10
    journal.append_many([b"x"])
    assert not journal.error


def test_what_was_adopted_counts_towards_the_bound(folder: Path) -> None:
    left_behind(folder, [b"x" * 990])
    journal, reader = opened(folder, max_bytes=1000)
    assert reader.adopt() == 1
    assert reader.backlog == (1, 1000)
    with pytest.raises(JournalError, match="bound"):
        journal.append_many([b"y"])
    reader.note(draining=True)
    journal.append_many([b"y"])  # a recovery refuses nothing
    reader.note(draining=False)
    with pytest.raises(JournalError, match="bound"):
        journal.append_many([b"y"])
    drain(reader)
    journal.append_many([b"y"])

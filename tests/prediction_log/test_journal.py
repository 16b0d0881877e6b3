"""The journal under faults: disks that fill, files that are torn or foreign, processes that die."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from housing_mlops.prediction_log import journal as module
from housing_mlops.prediction_log.journal import HEADER, Journal, JournalError, frame
from housing_mlops.prediction_log.record import new_id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def drain(journal: Journal) -> tuple[list[bytes], list[bytes]]:
    """Everything that `journal` holds, good and damaged, noted as stored."""
    good: list[bytes] = []
    damaged: list[bytes] = []
    for owner in list(journal.owners):
        while batch := owner.take():
            good += batch.records
            damaged += batch.damaged
            journal.done(owner, batch)
    return good, damaged


def left_behind(folder: Path, records: list[bytes], tail: bytes = b"") -> Path:
    """The one segment of an owner that is gone, with `tail` behind its records."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{new_id()}-000001.journal"
    path.write_bytes(HEADER + b"".join(map(frame, records)) + tail)
    return path


def heir(folder: Path) -> Journal:
    journal = Journal(folder)
    journal.adopt()
    return journal


def failing(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    code: int,
    when: Callable[..., bool] = lambda *_: True,
) -> None:
    """Let `os.<name>` fail with `code` while `when` says so."""
    real = getattr(os, name)

    def fake(*args: object, **kwargs: object) -> object:
        if when(*args):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(module.os, name, fake)


@pytest.fixture
def disk_of() -> Iterator[Callable[[int], None]]:
    """Sets the largest size that a file may reach: writes across it are short, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# a disk that does not take everything


def test_a_short_write_is_refused_and_leaves_no_trace(
    folder: Path, disk_of: Callable[[int], None]
) -> None:
    journal = Journal(folder)
    journal.append(b"a" * 400)
    disk_of(1000)
    journal.append(b"b" * 400)
    for _ in range(2):
        with pytest.raises(JournalError, match="full"):
            journal.append(b"c" * 400)
    assert journal.error and journal.backlog.rows == 2
    assert not journal.probe()
    with pytest.raises(JournalError, match="full"):
        journal.append_many([b"d"] * 100)
    disk_of(1 << 20)
    assert journal.probe() and not journal.error
    journal.append(b"e")
    assert drain(journal) == ([b"a" * 400, b"b" * 400, b"e"], [])
    assert journal.backlog == (0, 0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_is_refused_until_it_works_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    journal = Journal(folder)
    journal.append(b"one")
    with monkeypatch.context() as patched:
        failing(patched, "write", code)
        with pytest.raises(JournalError, match=os.strerror(code)):
            journal.append(b"two")
        assert not journal.probe()
        assert os.strerror(code) in journal.error
    journal.append(b"three")
    assert not journal.error
    assert drain(journal) == ([b"one", b"three"], [])


def test_a_torn_line_that_cannot_be_cut_off_spoils_no_other(
    folder: Path, disk_of: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder)
    journal.append(b"one")
    disk_of(100)
    with monkeypatch.context() as patched:
        failing(patched, "ftruncate", errno.EIO)
        with pytest.raises(JournalError):
            journal.append(b"x" * 400)
        failing(patched, "open", errno.ENOSPC)
        with pytest.raises(JournalError):  # neither the old segment nor a new one
            journal.append(b"y")
    disk_of(1 << 20)
    journal.append(b"two")
    assert journal.backlog.rows == 2
    assert len(list(folder.glob("*.journal"))) == 2
    _die(journal)
    good, damaged = drain(heir(folder))
    assert good == [b"one", b"two"]
    assert len(damaged) == 1 and damaged[0].endswith(b"xxx")


def _die(journal: Journal) -> None:
    """Let go of the lock as a process's death does, leaving everything else."""
    for owner in journal.owners:
        fcntl.flock(owner.lock, fcntl.LOCK_UN)


def test_a_segment_that_cannot_be_begun(
    folder: Path, disk_of: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_of(5)
    journal = Journal(folder)
    with pytest.raises(JournalError, match="full"):
        journal.append(b"one")
    assert not list(folder.glob("*.journal"))
    disk_of(1 << 20)
    journal.append(b"two")
    journal._rotate_at = 0
    with monkeypatch.context() as patched:
        failing(patched, "open", errno.EMFILE)
        journal.append(b"three")  # the old one still does
    assert drain(journal) == ([b"two", b"three"], [])


def test_the_folder_is_a_file_and_then_is_not(folder: Path) -> None:
    folder.write_text("in the way")
    journal = Journal(folder)
    with pytest.raises(JournalError, match=r"File exists|Not a directory"):
        journal.append(b"one")
    assert not journal.probe() and journal.error
    folder.unlink()
    assert journal.probe()
    journal.append(b"two")
    assert drain(journal) == ([b"two"], [])


def test_the_folder_is_deleted_under_way(folder: Path) -> None:
    journal = Journal(folder)
    journal.append(b"one")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    journal.append(b"two")  # into a file without a name
    journal.check()
    journal.append(b"three")
    assert len(list(folder.glob("*.journal"))) == 1
    assert sorted(drain(journal)[0]) == [b"one", b"three", b"two"]
    journal.check()
    assert len(journal.owners) == 1
    journal.close()
    assert not list(folder.iterdir())


def test_a_deleted_folder_that_cannot_be_made_again_is_no_place_for_records(folder: Path) -> None:
    journal = Journal(folder)
    journal.append(b"one")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("a file where the folder was")
    journal.check()
    for _ in range(2):
        with pytest.raises(JournalError, match="exists"):
            journal.append(b"lost if the process dies now")
    folder.unlink()
    journal.append(b"two")
    assert sorted(drain(journal)[0]) == [b"one", b"two"]
    journal.close()


def test_the_backlog_has_a_bound(folder: Path) -> None:
    journal = Journal(folder, max_bytes=1000)
    taken = 0
    with pytest.raises(JournalError, match="bound of 1000 bytes"):
        while True:
            journal.append(b"x" * 90)
            taken += 1
    assert taken == 10 and journal.backlog == (10, 1000)
    assert not journal.probe()
    assert len(drain(journal)[0]) == 10
    assert journal.probe()
    journal.append(b"x")
    assert not journal.error


def test_what_was_adopted_counts_towards_the_bound(folder: Path) -> None:
    left_behind(folder, [b"x" * 990])
    journal = Journal(folder, max_bytes=1000)
    assert journal.adopt() == 1
    assert journal.backlog == (1, 1000)
    with pytest.raises(JournalError, match="bound"):
        journal.append(b"y")
    drain(journal)
    journal.append(b"y")


# segments


def test_segments_rotate_by_size_and_go_when_stored(folder: Path) -> None:
    journal = Journal(folder, segment_bytes=1000)
    records = [b"%04d" % i * 20 for i in range(100)]
    for record in records:
        journal.append(record)
    journal.append_many([b"a", b"b\nc"])
    assert len(list(folder.glob("*.journal"))) > 5
    assert drain(journal) == ([*records, b"a", b"b c"], [])
    assert len(list(folder.glob("*.journal"))) == 1
    journal.close()
    assert not list(folder.iterdir())


def test_segments_rotate_by_age(folder: Path) -> None:
    journal = Journal(folder, segment_s=0)
    journal.append(b"one")
    journal.check()
    journal.append(b"two")
    assert len(list(folder.glob("*.journal"))) == 2
    assert drain(journal) == ([b"one", b"two"], [])


def test_a_record_longer_than_a_batch(folder: Path) -> None:
    journal = Journal(folder)
    journal.append(b"x" * 3_000_000)
    journal.append(b"y")
    assert [len(r) for r in drain(journal)[0]] == [3_000_000, 1]


def test_a_segment_that_somebody_cut_off(folder: Path) -> None:
    journal = Journal(folder)
    journal.append(b"one")
    (path,) = folder.glob("*.journal")
    os.truncate(path, len(HEADER))
    assert drain(journal) == ([], [])
    assert journal.backlog == (0, 0)


def test_a_stored_segment_that_cannot_be_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(folder, segment_bytes=30)
    journal.append(b"one")
    journal.append(b"two")
    with monkeypatch.context() as patched:
        failing(patched, "unlink", errno.EROFS)
        assert drain(journal) == ([b"one", b"two"], [])
    assert "cannot delete" in caplog.text
    _die(journal)
    assert drain(heir(folder))[0] == [b"one", b"two"]


# what dead processes and strangers leave


def test_torn_and_garbled_lines_are_told_from_records(folder: Path) -> None:
    garbled = frame(b"two").replace(b"w", b"x")
    left_behind(folder, [b"one"], garbled + frame(b"three") + frame(b"four")[:-1])
    journal = heir(folder)
    assert journal.backlog.rows == 4
    good, damaged = drain(journal)
    assert good == [b"one", b"three"]
    assert damaged == [garbled[:-1], frame(b"four")[:-1]]
    assert journal.backlog == (0, 0)
    journal.check()
    assert not list(folder.iterdir())


def test_zeros_at_the_end_are_nothing(folder: Path) -> None:
    left_behind(folder, [b"one"], bytes(4096))
    journal = heir(folder)
    assert drain(journal) == ([b"one"], [])
    assert journal.backlog == (0, 0)


def test_foreign_files_are_set_aside(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    left_behind(folder, [b"one"])
    owner = new_id()
    (folder / "notes.journal").write_text("dear diary")
    (folder / f"{owner}-000001.journal").write_text("housing-journal 2\nfrom the future")
    (folder / f"{owner}-000002.journal").mkdir()
    (folder / f"{owner}-000003.journal").write_bytes(HEADER[:7])  # begun and not finished
    (folder / f"{new_id()}.lock").touch()  # an owner that had nothing
    (folder / "README.txt").write_text("not ours")
    journal = heir(folder)
    assert drain(journal) == ([b"one"], [])
    journal.close()
    names = sorted(p.name for p in folder.iterdir())
    assert [n.endswith(".foreign") for n in names].count(True) == 3
    assert len(names) == 4 and "README.txt" in names
    assert caplog.text.count("set aside") == 3
    assert heir(folder).owners == []


def test_files_that_resist_are_left_for_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left_behind(folder, [b"one"])
    (folder / "notes.journal").write_text("dear diary")
    with monkeypatch.context() as patched:
        failing(patched, "rename", errno.EROFS)
        failing(patched, "open", errno.EIO, lambda path, *_: str(path).endswith("1.journal"))
        assert heir(folder).owners == []
    assert "cannot be renamed" in caplog.text and "cannot be read now" in caplog.text
    assert drain(heir(folder))[0] == [b"one"]


def test_a_lock_whose_file_has_just_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    path = folder / "x.lock"
    real = fcntl.flock
    monkeypatch.setattr(module.fcntl, "flock", lambda *a: (real(*a), path.unlink()))
    assert module._lock(path) is None

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks"):
        module._lock(path)
    with pytest.raises(JournalError, match="No locks"):
        Journal(folder).append(b"one")


def test_a_new_owner_whose_lock_was_taken_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = module._lock, []

    def second_time(path: Path) -> int | None:
        tries.append(path)
        return real(path) if len(tries) > 1 else None

    monkeypatch.setattr(module, "_lock", second_time)
    journal = Journal(folder)
    journal.append(b"one")
    assert len(tries) == 2 and drain(journal)[0] == [b"one"]


APPENDS = """
import itertools, sys
from pathlib import Path
from housing_mlops.prediction_log.journal import Journal
journal = Journal(Path(sys.argv[1]), segment_bytes=10_000)
for n in itertools.count():
    journal.append(f"{sys.argv[2]} {n} ".encode() + b"x" * 300)
    sys.stdout.write(f"{sys.argv[2]} {n}\\n")
    sys.stdout.flush()
"""


def test_killed_processes_lose_nothing(folder: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", APPENDS, str(folder), name], stdout=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    accepted = []
    for child in children:
        assert child.stdout
        accepted += [child.stdout.readline() for _ in range(500)]
    assert heir(folder).owners == []  # both live
    for child in children:
        child.send_signal(signal.SIGKILL)
        accepted += child.communicate()[0].splitlines(keepends=True)
    journal = heir(folder)
    assert len(journal.owners) == 2 and heir(folder).owners == []
    good, _ = drain(journal)
    kept = [b" ".join(r.split()[:2]).decode() for r in good]
    assert len(set(kept)) == len(kept)
    assert {line.strip() for line in accepted if line.endswith("\n")} <= set(kept)
    journal.check()
    assert not list(folder.iterdir())

"""Whose journal is it: dead processes, strangers, locks that come and go."""

import errno
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recording import drain, failing, heir, left_behind, opened

from housing_mlops.prediction_log.journal import JournalError
from housing_mlops.prediction_log.record import new_id
from housing_mlops.prediction_log.segment import HEADER
from housing_mlops.prediction_log.writer import hold_lock


def test_what_is_no_segment_is_told_and_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left_behind(folder, [b"one"])
    name = new_id()
    (folder / "notes.journal").write_text("dear diary")
    (folder / f"{name}-000001.journal").write_text("housing-journal 3\nfrom the future" * 9)
    (folder / f"{name}-000002.journal").mkdir()
    (folder / f"{name}-000003.journal").write_bytes(HEADER[:7])  # begun and not finished
    (folder / f"{name}-000004.journal").write_bytes(bytes(4096))  # a power cut
    (folder / f"{new_id()}.lock").touch()  # a writer that had nothing
    (folder / "README.txt").write_text("not ours")
    reader = heir(folder)
    assert drain(reader) == ([b"one"], [])
    reader.adopt()
    found = {"foreign": 1, "strange": 1, "damaged": 1, "empty": 2}
    assert reader.inherited.survey.counts == {"waiting": 0, "unreadable": 0, **found}
    reader.close()
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) == 6 and "README.txt" in names
    assert caplog.text.count("set aside") == 1
    assert caplog.text.count("is empty") == 2, "told once"
    assert heir(folder).writers == []


def test_the_millionth_segment_of_a_writer_is_its_own(folder: Path) -> None:
    left_behind(folder, [b"one"], number=1_000_000)
    assert drain(heir(folder))[0] == [b"one"]


def test_files_that_resist_are_left_for_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left_behind(folder, [b"one"])
    (folder / "notes.journal").write_text("dear diary")
    with monkeypatch.context() as patched:
        failing(patched, "rename", errno.EROFS)
        failing(patched, "open", errno.EIO, lambda path, *_: str(path).endswith("1.journal"))
        assert heir(folder).writers == []
    assert "cannot be renamed" in caplog.text and "is unreadable" in caplog.text
    assert drain(heir(folder))[0] == [b"one"]


def test_a_lock_whose_file_has_just_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    path = folder / "x.lock"
    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *a: (real(*a), path.unlink()))
    assert hold_lock(path) is None

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks"):
        hold_lock(path)
    with pytest.raises(JournalError, match="No locks"):
        opened(folder)[0].append_many([b"one"])


def test_a_new_writer_whose_lock_was_taken_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = fcntl.flock, []

    def second_time(*args: int) -> None:
        tries.append(args)
        if len(tries) == 1:
            raise BlockingIOError
        real(*args)

    monkeypatch.setattr(fcntl, "flock", second_time)
    journal, reader = opened(folder)
    journal.append_many([b"one"])
    assert len(tries) == 2 and drain(reader)[0] == [b"one"]


def test_a_process_adopts_nothing_from_itself_whatever_became_of_its_lock(folder: Path) -> None:
    journal, reader = opened(folder)
    journal.append_many([b"one"])
    for path in folder.glob("*.lock"):
        path.unlink()
    assert reader.adopt() == 0
    assert drain(reader)[0] == [b"one"]


APPENDS = """
import itertools, sys
from pathlib import Path
from housing_mlops.prediction_log.journal import Journal
journal = Journal(Path(sys.argv[1]), segment_bytes=10_000)
for n in itertools.count():
    journal.append_many([f"{sys.argv[2]} {n} ".encode() + b"x" * 300])
    sys.stdout.write(f"{sys.argv[2]} {n}\\n")
    sys.stdout.flush()
"""


@pytest.mark.process
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
    assert heir(folder).writers == []  # both live
    for child in children:
        child.send_signal(signal.SIGKILL)
        accepted += child.communicate()[0].splitlines(keepends=True)
    reader = heir(folder)
    assert len(reader.writers) == 2 and heir(folder).writers == []
    good, _ = drain(reader)
    found = [b" ".join(r.split()[:2]).decode() for r in good]
    assert len(set(found)) == len(found)
    assert {line.strip() for line in accepted if line.endswith("\n")} <= set(found)
    reader.tidy()
    assert not list(folder.iterdir())

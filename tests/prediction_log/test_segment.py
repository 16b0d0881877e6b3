"""Segments: when one follows another, what is read back, and what is no record in them."""

import errno
import os
from pathlib import Path

import pytest
from recording import die, drain, failing, heir, left_behind, opened

from housing_mlops.prediction_log.segment import HEADER, frame


def test_segments_rotate_by_size_and_go_when_stored(folder: Path) -> None:
    journal, reader = opened(folder, segment_bytes=1000)
    records = [b"%04d" % i * 20 for i in range(100)]
    for record in records:
        journal.append_many([record])
    journal.append_many([b"a", b"b\nc"])
    assert len(list(folder.glob("*.journal"))) > 5
    assert drain(reader) == ([*records, b"a", b"b c"], [])
    assert len(list(folder.glob("*.journal"))) == 1
    reader.close()
    assert not list(folder.iterdir())


def test_segments_rotate_by_age(folder: Path) -> None:
    journal, reader = opened(folder, segment_s=0)
    journal.append_many([b"one"])
    reader.tidy()
    journal.append_many([b"two"])
    assert len(list(folder.glob("*.journal"))) == 2
    assert drain(reader) == ([b"one", b"two"], [])


def test_a_record_longer_than_a_batch(folder: Path) -> None:
    journal, reader = opened(folder)
    journal.append_many([b"x" * 3_000_000])
    journal.append_many([b"y"])
    assert [len(r) for r in drain(reader)[0]] == [3_000_000, 1]


def test_a_segment_that_somebody_cut_off(folder: Path) -> None:
    journal, reader = opened(folder)
    journal.append_many([b"one"])
    (path,) = folder.glob("*.journal")
    os.truncate(path, len(HEADER))
    assert drain(reader) == ([], [])
    assert reader.backlog == (0, 0)


def test_a_stored_segment_that_cannot_be_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal, reader = opened(folder, segment_bytes=30)
    journal.append_many([b"one"])
    journal.append_many([b"two"])
    with monkeypatch.context() as patched:
        failing(patched, "unlink", errno.EROFS)
        assert drain(reader) == ([b"one", b"two"], [])
    assert "cannot delete" in caplog.text
    die(reader)
    assert drain(heir(folder))[0] == [b"one", b"two"]


def test_torn_and_garbled_lines_are_told_from_records(folder: Path) -> None:
    garbled = frame(b"two").replace(b"w", b"x")
    left_behind(folder, [b"one"], garbled + frame(b"three") + frame(b"four")[:-1])
    reader = heir(folder)
    assert reader.backlog.rows == 4
    good, damaged = drain(reader)
    assert good == [b"one", b"three"]
    assert damaged == [garbled[:-1], frame(b"four")[:-1]]
    assert reader.backlog == (0, 0)
    reader.tidy()
    assert not list(folder.iterdir())


def test_zeros_at_the_end_are_nothing(folder: Path) -> None:
    left_behind(folder, [b"one"], bytes(4096))
    reader = heir(folder)
    assert drain(reader) == ([b"one"], [])
    assert reader.backlog == (0, 0)


def test_a_process_that_is_killed_while_it_begins_a_segment_leaves_no_empty_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = opened(folder)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        journal.append_many([b"one"])
    assert not list(folder.glob("*.journal"))


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EISDIR])
def test_a_file_system_without_nameless_files_will_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    failing(monkeypatch, "open", code, lambda path, *_: path == folder)
    journal, reader = opened(folder)
    journal.append_many([b"one"])
    assert drain(reader)[0] == [b"one"]

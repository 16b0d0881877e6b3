"""Replacing a folder where the file system cannot exchange two names, and where the second step fails."""

import os
from pathlib import Path

import pytest

from housing_mlops import files
from housing_mlops.files import replace_folder


def fill(folder: Path, text: str) -> None:
    with replace_folder(folder) as work:
        (work / "a").write_text(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file, on a system that knows no `renameat2`."""
    monkeypatch.setattr(files.ctypes, "CDLL", lambda _: object())
    fill(tmp_path / "folder", "old")
    return tmp_path / "folder"


def test_a_folder_is_replaced_in_two_steps(folder: Path) -> None:
    fill(folder, "new")
    assert (folder / "a").read_text() == "new"
    assert [p.name for p in folder.parent.iterdir()] == ["folder"]


def test_the_old_one_comes_back_when_the_new_one_cannot_take_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = os.replace, []

    def replace(one: Path, other: Path) -> None:
        calls.append(one)
        if (
            len(calls) == 3
        ):  # 1: refused, the name is taken; 2: the old one aside; 3: the new one in
            raise OSError("the disk is gone")
        whole(one, other)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="the disk is gone"):
        fill(folder, "new")
    assert (folder / "a").read_text() == "old"
    assert [p.name for p in folder.parent.iterdir()] == ["folder"]


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        fill(tmp_path / "file" / "folder", "new")

"""A power cut, by two means: a copied block image, and a record of what was flushed."""

import os
import stat
import subprocess
from pathlib import Path

import pytest


class ForgetfulDisk:
    """Notes what is flushed; after a power cut nothing else is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: dict[int, int] = {}  # bytes on disk, by inode
        self.names: dict[int, set[str]] = {}  # names on disk, by inode of the folder
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self.noting(getattr(os, name)))

    def noting(self, real: object) -> object:
        def flush(fd: int) -> None:
            about = os.fstat(fd)
            if stat.S_ISDIR(about.st_mode):
                self.names[about.st_ino] = set(os.listdir(fd))
            else:
                self.sizes[about.st_ino] = about.st_size
            real(fd)

        return flush

    def holds(self, folder: Path) -> bool:
        """Whether every byte of the segments in `folder` is on disk."""
        return all(
            self.sizes.get(path.stat().st_ino) == path.stat().st_size
            and path.name in self.names.get(folder.stat().st_ino, ())
            for path in folder.glob("*.journal")
        )

    def after_the_cut(self, folder: Path, copy: Path) -> None:
        """What of `folder` is there once the power is back."""
        copy.mkdir()
        for name in self.names.get(folder.stat().st_ino, ()):
            path = folder / name
            if path.exists():
                size = self.sizes.get(path.stat().st_ino, 0)
                (copy / name).write_bytes(path.read_bytes()[:size])


class BlockImage:
    """A file system in a file, whose blocks can be copied while it is written to."""

    def __init__(self, folder: Path, megabytes: int = 48) -> None:
        self.image, self.mounted = folder / "disk.img", folder / "disk"
        self.mounted.mkdir()
        with self.image.open("wb") as file:
            file.truncate(megabytes << 20)
        try:
            self.run("mkfs.ext4", "-q", "-F", self.image)
            self.mount()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a loop device cannot be mounted here: {error}")

    def run(self, *command: object) -> None:
        subprocess.run([*map(str, command)], check=True, capture_output=True)

    def mount(self) -> None:
        """Mount it; the file system's own timer flushes nothing within a test."""
        self.run("mount", "-o", "loop,commit=300", self.image, self.mounted)

    def cut(self) -> None:
        """What is on disk now is what will be there once `restore` was called."""
        self.run("cp", self.image, self.image.with_name("copy.img"))

    def restore(self) -> None:
        """The power is back: mount what was on disk when it went."""
        self.unmount()
        os.replace(self.image.with_name("copy.img"), self.image)
        self.mount()

    def unmount(self) -> None:
        self.run("umount", self.mounted)

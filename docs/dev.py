"""Serve the API from the notebooks: one that is saved is exported, and the server starts anew.

usage: python docs/dev.py [PORT]
"""

import subprocess
import sys
from pathlib import Path

from generate import ROOT
from nbdev.export import nb_export
from watchfiles import Change, DefaultFilter, watch

PACKAGE = ROOT / "housing_mlops"


class Sources(DefaultFilter):
    """Notebooks, and what the package carries beside its modules."""

    def __call__(self, change: Change, path: str) -> bool:
        """Whether a change is one to act on."""
        return Path(path).suffix in (
            ".ipynb",
            ".toml",
            ".html",
            ".js",
            ".css",
        ) and super().__call__(change, path)


def start(
    port: str,  # to listen on
) -> "subprocess.Popen[bytes]":
    """A server in a process of its own, as `make serve` starts it."""
    return subprocess.Popen(
        [sys.executable, "-c", "from housing_mlops.cli import app; app()", "serve", "--port", port]
    )


def export(
    paths: set[Path],  # notebooks that were saved
) -> bool:
    """Write their modules; whether all could be."""
    try:
        for path in sorted(paths):
            nb_export(path, lib_path=PACKAGE)
            print(f"exported {path.relative_to(ROOT)}", flush=True)
    except Exception as error:  # half a thought was saved: what runs goes on
        print(f"{path.relative_to(ROOT)} cannot be exported: {error}", flush=True)
        return False
    return True


def main() -> None:
    """Serve until Ctrl-C."""
    port = sys.argv[1] if sys.argv[1:] else "8000"
    server = start(port)
    try:
        for changes in watch(ROOT / "nbs", PACKAGE, watch_filter=Sources(), raise_interrupt=False):
            saved = {Path(p) for change, p in changes if change != Change.deleted}
            if export({p for p in saved if p.suffix == ".ipynb"}):
                server.terminate()
                server.wait()
                server = start(port)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

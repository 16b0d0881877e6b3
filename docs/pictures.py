"""Make the pictures of README.md: two from the stories' outputs, and the dashboard as Chromium shows it.

usage: python docs/pictures.py [HOME]      (HOME has a champion; without it only the first two are made)
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64decode
from contextlib import suppress
from pathlib import Path

import nbformat
from generate import ROOT

PICTURES = ROOT / "docs/pictures"
FROM = {  # the notebook, and the cell whose drawing it is
    "comparison.png": ("nbs/4_training/05_figures.ipynb", "96d2a9c7"),
    "explanation.png": ("nbs/3_model/06_explanation.ipynb", "b14f79ef"),
}


def drawn(
    notebook: str,  # its path from the project's root
    cell: str,  # the identifier of the cell
) -> bytes:
    """The picture that a cell of a story drew."""
    [found] = [c for c in nbformat.read(ROOT / notebook, 4).cells if c["id"] == cell]
    [picture] = [o.data["image/png"] for o in found.outputs if "image/png" in o.get("data", {})]
    return b64decode(picture)


def dashboard(
    home: Path,  # with a champion
    port: int,  # to serve on
) -> bytes:
    """The dashboard of a service that was asked for some prices, a part of them of houses of another kind."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        environ = os.environ | {
            "HOUSING_HOME": str(home),
            "HOUSING_DATABASE_URL": f"sqlite:///{folder}/log.db",
            "HOUSING_JOURNAL_DIR": f"{folder}/journal",
            "HOUSING_DRIFT_INTERVAL_S": "2",
            "HOUSING_DRIFT_LEAST_S": "1",
        }
        serve = [
            sys.executable,
            "-c",
            "from housing_mlops.cli import app; app()",
            "serve",
            "--port",
            str(port),
        ]
        server = subprocess.Popen(serve, env=environ, stderr=subprocess.DEVNULL)
        try:
            for _ in range(240):
                with suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
                    break
                time.sleep(0.5)
            traffic = [sys.executable, str(ROOT / "docs/demo_traffic.py"), "--port", str(port)]
            subprocess.run([*traffic, "400"], check=True)
            time.sleep(5)
            subprocess.run([*traffic, "400", "--move", "CRIM=+10"], check=True)
            time.sleep(8)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
                )
                page = browser.new_page(viewport={"width": 1280, "height": 900})
                page.goto(f"http://127.0.0.1:{port}/dashboard")
                page.wait_for_timeout(4000)
                shot = page.screenshot()
                browser.close()
            return bytes(shot)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, where in FROM.items():
        (PICTURES / name).write_bytes(drawn(*where))
    if sys.argv[1:]:
        (PICTURES / "dashboard.png").write_bytes(dashboard(Path(sys.argv[1]).resolve(), 18310))

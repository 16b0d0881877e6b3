"""A notebook opens and runs from top to bottom in a real JupyterLab, in a real browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ROOT = Path(__file__).resolve().parent.parent
QUIET = {  # no news, and every cell in the page rather than those in sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
READY = "/\\| Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText || '')"
ERROR = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"  # tracebacks too
DONE = f"""() => {{
    const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')];
    const state = document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status;
    const ran = prompts.length && prompts.every(p => /\\[\\d+\\]/.test(p.textContent));
    return state === 'idle' && (ran || document.querySelector("{ERROR}"));
}}"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab on a copy of the notebooks."""
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".*"))
    for name, settings in QUIET.items():
        path = tmp_path / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
        *(f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={tmp_path}"),
        *("--IdentityProvider.token=", "--ServerApp.password="),
    ]
    environ = os.environ | {
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
    }
    address = f"http://127.0.0.1:{port}"
    log = tmp_path / "lab.log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, env=environ, stdout=out, stderr=out) as lab,
    ):
        try:
            deadline = monotonic() + 60
            while True:
                with suppress(OSError), urllib.request.urlopen(f"{address}/api"):
                    break
                assert lab.poll() is None and monotonic() < deadline, log.read_text()
                sleep(0.2)
            yield address
        finally:
            lab.terminate()


@pytest.mark.skipif(
    not CHROMIUM and os.environ.get("CI", "").lower() != "true",
    reason="no chromium: sudo apt-get install chromium",
)
def test_notebook_runs_in_jupyterlab(lab: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(f"{lab}/lab/tree/nbs/01_schema.ipynb?reset", wait_until="domcontentloaded")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function(f"() => {READY}")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_function(DONE)
        errors = page.locator(
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
        )
        assert errors.all_inner_texts() == []
        shown = page.locator(".jp-OutputArea-output").all_inner_texts()
        browser.close()
    assert any("Lisbon" in text or "living area" in text for text in shown)

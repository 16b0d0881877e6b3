"""A notebook opens and runs from top to bottom in a real JupyterLab, in a real browser."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from processes import ROOT, ask, free_port, until

pytestmark = [pytest.mark.process, pytest.mark.browser]

QUIET = {  # no news, and every cell in the page rather than those in sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
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
    port = free_port()
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
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=out)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        return ask(f"{address}/api")[0] == 200

    try:
        until(answers, what=f"JupyterLab (see {log})")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_notebook_runs_in_jupyterlab(lab: str, browser: Browser) -> None:
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{lab}/lab/tree/nbs/01_schema.ipynb?reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function(f"() => {READY}")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(DONE)
    errors = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
    assert errors.all_inner_texts() == []
    shown = page.locator(".jp-OutputArea-output").all_inner_texts()
    page.close()
    assert any("Lisbon" in text or "living area" in text for text in shown)

"""Notebooks open, run from top to bottom and are saved in a real JupyterLab, in a real browser; nightly each of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from processes import ROOT, ask, free_port, until

pytestmark = [pytest.mark.process, pytest.mark.browser]

QUIET = {  # no news, and every cell in the page rather than those in sight
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
READY = "/\\| Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText || '')"
ERROR = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"  # tracebacks too
# A list that is waited for: the notebook is saved once its tab is not marked any more.
SAVED = "() => !document.querySelector('.lm-DockPanel-tabBar .jp-mod-dirty')"
QUICK = ["01_schema", "02_files", "1_data/05_dates"]  # in `make test`; all of them nightly
TRAINING = "4_training/08_training"
SMALL = {
    "models: list = []": 'models: list = ["Ridge", "LinearRegression"]',
    "folds: int = 5": "folds: int = 3",
}
SMALL |= {"repeats: int = 3": "repeats: int = 1"}
NOTEBOOKS = sorted(
    str(path.relative_to(ROOT / "nbs").with_suffix("")) for path in (ROOT / "nbs").rglob("*.ipynb")
)
DONE = f"""() => {{
    const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')];
    const state = document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status;
    const ran = prompts.every(p => /\\[\\d+\\]/.test(p.textContent));
    return state === 'idle' && (ran || document.querySelector("{ERROR}"));
}}"""


def copied(
    folder: Path,  # for the copy
) -> None:
    """Copy what notebooks look at, the training one with small parameters."""
    for name in ("nbs", "deploy", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".*"))
    shutil.copy(ROOT / "settings.ini", folder)
    training = folder / f"nbs/{TRAINING}.ipynb"
    text = training.read_text(encoding="utf-8")
    for full, small in SMALL.items():
        assert full in text
        text = text.replace(full, small.replace('"', r"\""))
    training.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a JupyterLab on a copy of the notebooks, with the settings of `make lab`; and the copy."""
    tmp_path = tmp_path_factory.mktemp("lab")
    copied(tmp_path)
    for name, settings in QUIET.items():
        path = tmp_path / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    port = free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
        *(f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={tmp_path}"),
        *("--IdentityProvider.token=", "--ServerApp.password="),
        # a kernel whose page is closed ends soon: all notebooks' together would fill the memory
        *("--MappingKernelManager.cull_idle_timeout=10", "--MappingKernelManager.cull_interval=5"),
    ]
    environ = os.environ | {
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_CONFIG_PATH": str(ROOT / "docs/lab"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
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
        yield address, tmp_path
    finally:
        process.terminate()
        process.wait(30)


def run_and_save(
    browser: Browser,  # to open it in
    lab: tuple[str, Path],  # where it lies
    name: str,  # of the notebook
    patience_s: float,  # how long it may take
) -> list[str]:
    """Run a notebook from top to bottom and save it; gives what its outputs show, and fails where a cell does."""
    address, _ = lab
    page = browser.new_page()
    page.set_default_timeout(1e3 * patience_s)
    for last in (False, True):  # on a busy machine, what a kernel that connects is told may be lost
        page.goto(f"{address}/lab/tree/nbs/{name}.ipynb?reset", wait_until="domcontentloaded")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function(f"() => {READY}")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            page.wait_for_function(DONE, timeout=1e3 * patience_s / 2)
            break
        except PlaywrightTimeout:
            if last:
                raise
    errors = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
    assert errors.all_inner_texts() == []
    shown = page.locator(".jp-OutputArea-output").all_inner_texts()
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Control+s")
    page.wait_for_function(SAVED)
    page.close()
    return shown


def is_story(path: Path) -> bool:
    """Whether a notebook carries its outputs."""
    return "story" in json.loads(path.read_text(encoding="utf-8"))["metadata"]


@pytest.mark.parametrize("name", QUICK)
def test_a_notebook_runs_in_jupyterlab_and_is_saved_as_it_was(
    lab: tuple[str, Path], browser: Browser, name: str
) -> None:
    shown = run_and_save(browser, lab, name, 120)
    assert name != "01_schema" or any("Lisbon" in t or "living area" in t for t in shown)
    path = f"nbs/{name}.ipynb"
    assert shown and (lab[1] / path).read_bytes() == (ROOT / path).read_bytes()


@pytest.mark.train
@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name not in QUICK])
def test_every_notebook_runs_in_jupyterlab(
    lab: tuple[str, Path], browser: Browser, name: str
) -> None:
    run_and_save(browser, lab, name, 900)
    path = f"nbs/{name}.ipynb"
    if name != TRAINING and not is_story(ROOT / path):
        assert (lab[1] / path).read_bytes() == (ROOT / path).read_bytes()

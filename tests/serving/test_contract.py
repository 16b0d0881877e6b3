"""Whether the API keeps the contract that it publishes, asked by a program that tries to break it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.fault]


ALL_ROLES = {f"HOUSING_{role}_KEYS": "root" for role in ("API", "FEEDBACK", "HISTORY", "ADMIN")}


@pytest.mark.parametrize(
    ("seed", "phases", "keys"),
    [
        (1, "examples,coverage,fuzzing", {"HOUSING_ADMIN_KEYS": "root"}),
        *(
            pytest.param(seed, "fuzzing", {"HOUSING_ADMIN_KEYS": "root"}, marks=pytest.mark.nightly)
            for seed in (2, 3)
        ),
        (4, "examples,coverage,fuzzing", ALL_ROLES),
    ],
    ids=["open", "open-2", "open-3", "keys"],
)
def test_schemathesis_finds_nothing(
    serve: Callable[..., Any], tmp_path: Path, seed: int, phases: str, keys: dict[str, str]
) -> None:
    server = serve(**keys)
    address = f"{server.address}/openapi.json"
    options = ["--checks=all", f"--phases={phases}", f"--seed={seed}", "--max-examples=15"]
    options += ["--no-color", "--generation-database=none", "--header=X-API-Key: root"]
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", address, *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": ""},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = server.get("/metrics")
    assert metrics["health"] in ("healthy", "degraded")

"""Whether the API keeps the contract that it publishes, asked by a program that tries to break it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.fault]


@pytest.mark.parametrize(
    ("seed", "phases"), [(1, "examples,coverage,fuzzing"), (2, "fuzzing"), (3, "fuzzing")]
)
def test_schemathesis_finds_nothing(
    serve: Callable[..., Any], tmp_path: Path, seed: int, phases: str
) -> None:
    server = serve(HOUSING_ADMIN_KEYS="root")
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

"""What is imported tells nobody about it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.process
@pytest.mark.parametrize("module", ["model.inference", "training.export"])
def test_no_number_for_this_machine_is_kept(tmp_path: Path, module: str) -> None:
    keep = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI")}
    elsewhere = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = f"import housing_mlops.{module}, onnxruntime"
    subprocess.run([sys.executable, "-c", code], env=keep | elsewhere, check=True)
    assert [p for p in tmp_path.rglob("*") if "onnxruntime" in p.name] == []

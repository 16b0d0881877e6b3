"""What the pipeline publishes, signs and deploys, and when; and that what it trained can be promoted."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import ROOT

from housing_mlops.config import HousingError, Settings
from housing_mlops.operations.up import Process
from housing_mlops.registry.aliases import promote
from housing_mlops.registry.fetch import fetch_champion
from housing_mlops.registry.store import find_version

FOLDER = ROOT / ".github/workflows"
MAIN_ALONE = "github.event_name == 'push' && github.ref == 'refs/heads/main'"


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["jobs"]
    return found


def test_only_main_publishes_and_goes_to_staging() -> None:
    pipeline = jobs("ml-pipeline.yml")
    assert [n for n, job in pipeline.items() if "environment" in job] == ["staging"]
    assert pipeline["staging"]["if"] == MAIN_ALONE
    build = pipeline["build"]
    assert build["env"]["PUBLISH"] == f"${{{{ {MAIN_ALONE} }}}}"
    for step in build["steps"]:
        if re.search("docker login|make push|cosign", str(step)):
            assert step["if"] == "env.PUBLISH == 'true'", step
    text = (FOLDER / "ml-pipeline.yml").read_text(encoding="utf-8")
    assert "production" not in text.split("jobs:")[1]


def test_a_tag_releases_what_was_signed() -> None:
    given = yaml.safe_load((FOLDER / "release.yml").read_text(encoding="utf-8"))
    assert given[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as true
    release = given["jobs"]
    assert {n for n, job in release.items() if "environment" in job} == {"production"}
    assert "images" in release["production"]["needs"]
    script = release["images"]["steps"][-1]["run"]
    assert script.index("cosign verify") < script.index("imagetools create")
    assert "ml-pipeline.yml@refs/heads/main" in script
    assert "make images" not in str(release)  # nothing is built anew


def test_each_image_that_is_pushed_is_looked_through_signed_and_released() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [pushed] = re.findall(r"^push:.*?for target in ([a-z ]+);", makefile, re.M | re.S)
    pipeline, release = jobs("ml-pipeline.yml")["build"], jobs("release.yml")
    steps = pipeline["steps"]
    for text in (steps[-1]["run"], release["images"]["steps"][-1]["run"]):
        assert f"for target in {pushed}; do" in text
    for target in pushed.split():
        assert f"--name {target}.spdx.json" in release["notes"]["steps"][0]["run"]
        sboms = [s["with"]["image"] for s in steps if "sbom-action" in s.get("uses", "")]
        scans = [s["with"]["sbom"] for s in steps if "scan-action" in s.get("uses", "")]
        assert f"housing-mlops-{target}:latest" in sboms and f"{target}.spdx.json" in scans


def test_what_is_deployed_is_named_by_its_digest() -> None:
    for deploys, name, comes_from in (
        ("staging", "ml-pipeline.yml", "build"),
        ("production", "release.yml", "images"),
    ):
        given = jobs(name)
        told = given[deploys]["steps"][-1]["env"]
        for target in ("api", "train"):
            wanted = f"needs.{comes_from}.outputs.{target}"
            assert told[f"{target.upper()}_DIGEST"] == f"${{{{ {wanted} }}}}"
            assert given[comes_from]["outputs"][target].endswith(f".outputs.{target} }}}}")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yml")), ids=lambda p: p.name)
def test_no_credential_is_kept_and_names_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"secrets\.(\w+)", text)) <= {"GITHUB_TOKEN"}
    for owner in re.findall(r"ghcr\.io/(\S+)", text):
        assert owner.startswith(("${GITHUB_REPOSITORY_OWNER,,}", "--username")), owner
    for name, job in jobs(path.name).items():
        if "environment" in job and name in ("staging", "production"):
            assert job["permissions"] == {"contents": "read", "id-token": "write"}


@pytest.mark.process
def test_what_the_pipeline_trained_can_be_served(
    mlflow_server: tuple[Settings, Process],
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "deploy"), *sys.path])
    from register_trained import register_trained

    settings = mlflow_server[0].model_copy(update={"model_name": "from-the-pipeline"})
    folder = tmp_path / "run"
    shutil.copytree(bundles["Ridge"], folder / "bundle")
    with pytest.raises(HousingError, match="no folder of a training"):
        register_trained(folder, settings)
    (folder / "training.json").write_text(json.dumps({"run_id": "abc", "winner": "Ridge"}))
    version = register_trained(folder, settings)
    assert find_version(settings, "challenger") == version
    promote(version, settings)
    serving = settings.model_copy(update={"home": tmp_path})
    found = fetch_champion(serving)
    assert found is not None and found.version == version
    assert (found.folder / "bundle.json").read_bytes() == (
        folder / "bundle/bundle.json"
    ).read_bytes()

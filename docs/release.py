"""Make what is released: the changelog's heading, a wheel and a sdist, each checked.

usage: python docs/release.py

The version is that of settings.ini. What stands below "Unreleased" in CHANGELOG.md gets its heading; the wheel and the
sdist are built into dist/, their metadata checked, and the wheel is installed into an environment of its own, where it
has to price. Nothing is committed, tagged or published: the last line says how.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHANGELOG = ROOT / "CHANGELOG.md"
DIST = ROOT / "dist"
TWINE = "twine==6.2.0"  # no part of .venv: it is needed here alone
UNRELEASED = "## Unreleased\n"


def released(
    changelog: str,  # CHANGELOG.md
    version: str,  # to release
    day: str,  # on which
) -> str:
    """The changelog with what is unreleased under the version's heading; raises `ValueError` where nothing is."""
    if re.search(rf"^## {re.escape(version)} ", changelog, re.M):
        return changelog
    _, found, rest = changelog.partition(UNRELEASED)
    entries = re.split(r"^## ", rest, maxsplit=1, flags=re.M)[0].strip()
    if not found or not entries:
        raise ValueError("CHANGELOG.md has nothing below `## Unreleased`: what is new?")
    return changelog.replace(UNRELEASED, f"{UNRELEASED}\n## {version} ({day})\n", 1)


def run(
    *command: str,  # and its arguments
    folder: Path = ROOT,  # where to run it
) -> None:
    """Run a command; stops where it fails."""
    print("$", *command, flush=True)
    if subprocess.run(command, cwd=folder, check=False).returncode:
        raise SystemExit(f"That failed: {' '.join(command)}")


def main() -> None:
    """Write, build and check."""
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    version = ini["DEFAULT"]["version"]
    try:
        text = released(CHANGELOG.read_text("utf-8"), version, f"{datetime.now(UTC):%Y-%m-%d}")
    except ValueError as error:
        raise SystemExit(str(error)) from None
    shutil.rmtree(DIST, ignore_errors=True)
    run("uv", "build", "--quiet", "--out-dir", str(DIST))
    made = sorted(str(path) for path in DIST.iterdir() if path.suffix in (".whl", ".gz"))
    run("uv", "tool", "run", "--quiet", TWINE, "check", "--strict", *made)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run("uv", "venv", "--quiet", "--python", sys.executable, folder + "/env")
        python = folder + "/env/bin/python"
        [wheel] = [name for name in made if name.endswith(".whl")]
        lock = str(ROOT / "requirements/serve.lock")
        run("uv", "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", lock)
        run("uv", "pip", "install", "--quiet", "--python", python, "--no-deps", wheel)
        tool = folder + "/env/bin/housing-mlops"
        run(tool, "schema", "boston", folder=place)
        run(tool, "log", "upgrade", folder=place)
        run(python, "-W", "error", "-c", "import housing_mlops.serving.api", folder=place)
    CHANGELOG.write_text(text, encoding="utf-8")
    print(f"dist/ has {version}. Then: git commit -am 'Release {version}' && git tag v{version}")


if __name__ == "__main__":
    main()

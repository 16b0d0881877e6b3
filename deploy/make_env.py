"""Make .env from .env.example: every empty password gets a random value; one that is set stays.

usage: python deploy/make_env.py [FILE]     (default: .env)
"""

import os
import re
import secrets
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / ".env.example"
EMPTY = re.compile(r"^(\w+_PASSWORD)=$", re.M)


def filled(text: str) -> str:
    """`text` with a random value behind every password that is empty."""
    return EMPTY.sub(lambda line: f"{line[1]}={secrets.token_hex(20)}", text)


def main(target: Path) -> None:
    """Write `target`, readable by its owner alone."""
    present = target.read_text(encoding="utf-8") if target.exists() else ""
    text = filled(present or EXAMPLE.read_text(encoding="utf-8"))
    known = set(re.findall(r"^(\w+)=", text, re.M))
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        name = line.partition("=")[0]
        if "=" in line and not line.startswith("#") and name not in known:
            text += filled(line + "\n")
    if text == present:
        print(f"{target} has all it needs")
        return
    fresh = target.with_name(f"{target.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    os.replace(fresh, target)
    print(f"{target} is made: passwords for this machine alone, readable by you alone")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".env"))

"""Refuse to commit what nobody wants to: a mark of a conflict that was not solved, and a file of more than 1 MB.

usage: python docs/staged.py FILE...
"""

import sys
from pathlib import Path

LARGEST = 1_000_000
MARKS = (b"<<<<<<< ", b">>>>>>> ")


def objections(
    path: Path,  # a file that is about to be committed
) -> list[str]:
    """A sentence for each reason against it."""
    content = path.read_bytes()
    said = [f"{path} has {len(content):,} bytes."] if len(content) > LARGEST else []
    for number, line in enumerate(content.splitlines(), 1):
        if line.startswith(MARKS):
            said.append(f"{path}:{number} is a mark of a conflict.")
    return said


if __name__ == "__main__":
    found = [text for name in sys.argv[1:] for text in objections(Path(name))]
    print(*found, sep="\n")
    sys.exit(bool(found))

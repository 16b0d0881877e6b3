"""Print the newest training under runs/ as Markdown: the winner, its errors, the decision.

usage: python deploy/training_summary.py
"""

import json
import sys
from pathlib import Path


def main() -> int:
    """0 when there is a training to tell of."""
    found = sorted(Path("runs").glob("*/training.json"))
    if not found:
        print("No training under runs/.", file=sys.stderr)
        return 1
    said = json.loads(found[-1].read_text(encoding="utf-8"))
    info = json.loads((found[-1].parent / "bundle/bundle.json").read_text(encoding="utf-8"))
    print(f"### {said['winner']}: {said.get('reason', 'not registered')}\n")
    print("| error | |\n|---|---:|")
    for name, value in sorted(info["metrics"].items()):
        print(f"| {name} | {value:.4f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

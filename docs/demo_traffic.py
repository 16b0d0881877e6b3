"""Ask a running API for prices of houses of the embedded table, drawn by chance.

usage: python docs/demo_traffic.py [N] [--port 8000] [--move FEATURE=BY]
"""

import argparse
import csv
import json
import random
import urllib.request

from housing_mlops.data.sources import embedded
from housing_mlops.schema import load_dataset


def main() -> None:
    """Send N requests, and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", nargs="?", type=int, default=400)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--move", default="", help="such as CRIM=+10: houses of another kind")
    asked = parser.parse_args()
    dataset, chance = load_dataset("boston"), random.Random(0)
    with embedded(dataset).open(newline="", encoding="utf-8") as file:
        rows = [
            {name: float(row[name]) for name in dataset.columns} for row in csv.DictReader(file)
        ]
    name, _, by = asked.move.partition("=")
    for row in chance.choices(rows, k=asked.n):
        house = row | ({name: round(row[name] + float(by), 3)} if name else {})
        request = urllib.request.Request(
            f"http://127.0.0.1:{asked.port}/predict",
            json.dumps(house).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=30).close()
    print(f"{asked.n} houses asked about" + (f", {name} moved by {by}" if name else ""))


if __name__ == "__main__":
    main()

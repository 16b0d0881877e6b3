"""How fast a file of houses is priced, by columns and house by house, and how much memory it takes.

usage: python benchmarks/batch.py [--rows 1000000]

House by house is what the API does with a request: a mapping is validated by the request model.
Both read and write the same CSV file in one process; the ratio is the figure to compare.
"""

import argparse
import csv
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path

from champion import make

from housing_mlops.data.table import load_table
from housing_mlops.model.batch import PIECE, price_file
from housing_mlops.model.inference import Model, row_of
from housing_mlops.schema import load_dataset


def write_houses(path: Path, rows: int) -> None:
    """The embedded table, over and over, with an identifier that nobody declared."""
    lines = load_table(load_dataset("boston")).features.to_csv(index=False).splitlines()
    with path.open("w") as file:
        file.write(f"id,{lines[0]}\n")
        for i in range(rows):
            file.write(f"{i},{lines[1 + i % (len(lines) - 1)]}\n")


def house_by_house(model: Model, source: Path, target: Path) -> None:
    """Prices of a file, each house validated by itself."""
    validate, columns = model.dataset.request_model.model_validate, model.dataset.columns
    with source.open() as read, target.open("w") as write:
        reader = csv.DictReader(read)
        writer = csv.DictWriter(write, [*reader.fieldnames, "prediction"])
        writer.writeheader()
        while houses := list(islice(reader, PIECE)):
            rows = [row_of(validate({c: float(h[c]) for c in columns})) for h in houses]
            prices = model.quote(rows).prices.tolist()
            writer.writerows({**h, "prediction": p} for h, p in zip(houses, prices, strict=True))


def main() -> None:
    """Print rows a second both ways, their ratio, and the largest memory by columns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    model = Model.open(make(Path(tempfile.gettempdir()) / "housing-benchmarks"), "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        speeds = {}
        for way, count in {"by columns": rows, "house by house": max(rows // 10, 1)}.items():
            write_houses(folder / "houses.csv", count)
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            if way == "by columns":
                price_file(model, folder / "houses.csv", folder / "priced.csv", progress=False)
            else:
                house_by_house(model, folder / "houses.csv", folder / "priced.csv")
            speeds[way] = count / (time.process_time() - start)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            print(f"{way:15} {count:9,} rows, {speeds[way]:9,.0f} rows a second, +{grown:.0f} MB")
    print(f"ratio {speeds['by columns'] / speeds['house by house']:.2f}")


if __name__ == "__main__":
    main()

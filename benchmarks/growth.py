"""How training and a price grow with rows and columns: a law with figures, and a plot.

    python benchmarks/growth.py                           # modest sizes, some minutes
    python benchmarks/growth.py --rows 20000 --columns 80 # one size

The tables are made, not real: column j is lognormal with a sigma of 0.5, and the logarithm of the
price is 10 + sum over j of 0.3 x log(column j) / (1 + j) + noise of 0.1, with 2 % of the values
missing. Each candidate that the training notebook would afford is fitted once on four fifths of the
rows, each size in a process of its own, so that the peak of memory is its own; a price is that of
one row by the ONNX graph, the median of 300.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from housing_mlops.model.inference import Graph, open_session
from housing_mlops.preprocessing.pipeline import model_input
from housing_mlops.schema import Dataset, parse
from housing_mlops.training.candidates import CANDIDATES, Cost, affordable, candidates
from housing_mlops.training.export import as_tensors, to_graph

MOST = Cost(30, 2_000)  # as the training notebook has it
ROWS, COLUMNS = (500, 2_000, 8_000), (13, 40)


def make_table(rows: int, columns: int) -> tuple[Dataset, pd.DataFrame, np.ndarray]:
    """A declaration, its model input and prices, by the formula above."""
    rng = np.random.default_rng(0)
    logs = rng.normal(0, 0.5, (rows, columns))
    weights = 0.3 / (1 + np.arange(columns))
    prices = np.exp(10 + logs @ weights + rng.normal(0, 0.1, rows))
    values = np.where(rng.random(logs.shape) < 0.02, np.nan, np.exp(logs))
    names = [f"x{j}" for j in range(columns)]
    features = [{"name": name, "example": 1.0, "nullable": True} for name in names]
    about = {"format": 1, "name": "made", "title": "A table made by a formula", "source": {}}
    target = {"name": "price", "unit": "EUR"}
    dataset = parse({**about, "target": target, "features": features})
    return dataset, model_input(dataset, pd.DataFrame(values, columns=names)), prices


def price_us(dataset: Dataset, graph: bytes, X: pd.DataFrame, folder: Path) -> float:
    """The median of 300 prices of one row, in microseconds."""
    path = folder / f"growth-{X.shape[1]}-{len(X)}.onnx"
    path.write_bytes(graph)
    priced, one = Graph(open_session(path)), as_tensors(dataset, X.head(1))
    path.unlink()
    took = []
    for _ in range(300):
        begun = time.perf_counter_ns()
        priced.price(one)
        took.append(time.perf_counter_ns() - begun)
    return float(np.median(took)) / 1000


def measure(rows: int, columns: int, folder: Path) -> None:
    """Print a line a candidate: model, rows, columns, seconds, megabytes, microseconds."""
    dataset, X, y = make_table(rows, columns)
    fit = int(0.8 * rows)
    chosen, left = affordable(candidates([]), fit, columns, MOST)
    for sentence in left:
        print(sentence, file=sys.stderr)
    for name in (c.name for c in chosen):
        begun = time.process_time()
        with threadpool_limits(1):
            model = CANDIDATES[name].build(dataset, 42).fit(X[:fit], y[:fit])
        seconds = time.process_time() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        us = price_us(dataset, to_graph(dataset, model), X, folder)
        print(name, rows, columns, f"{seconds:.3f} {peak:.0f} {us:.1f}", flush=True)


def law(table: pd.DataFrame) -> pd.DataFrame:
    """A row a model: seconds of a fit as factor x rows^a x columns^b, by least squares of logs."""
    found = []
    for name, own in table.groupby("model", sort=False):
        x = np.column_stack([np.ones(len(own)), np.log(own["rows"]), np.log(own["columns"])])
        c, a, b = np.linalg.lstsq(x, np.log(own["seconds"].clip(lower=1e-3)), rcond=None)[0]
        found.append({"model": name, "factor": np.exp(c), "rows^": a, "columns^": b})
    return pd.DataFrame(found).set_index("model")


def plot(table: pd.DataFrame, path: Path) -> None:
    """Two charts: seconds of a fit, and microseconds of a price, by rows."""
    figure, models = Figure(figsize=(10, 4), layout="constrained"), list(table["model"].unique())
    sizes, narrow = sorted(table["rows"].unique()), table["columns"].min()
    for axis, column in zip(figure.subplots(1, 2), ("seconds", "microseconds"), strict=True):
        for (name, width), own in table.groupby(["model", "columns"], sort=False):
            look = {"color": f"C{models.index(name)}", "ls": "-" if width == narrow else "--"}
            label = name if width == narrow else None
            axis.plot(own["rows"], own[column], marker="o", ms=3, label=label, **look)
        axis.set(xscale="log", yscale="log", xlabel="rows")
        axis.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        axis.minorticks_off()
        axis.set_title({"seconds": "seconds of a fit", "microseconds": "µs of a price"}[column])
    widths = " and ".join(f"{width:.0f}" for width in sorted(table["columns"].unique()))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right", title=f"{widths} columns")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure every size in a process of its own; print the table and the law, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--columns", type=int, nargs="+", default=list(COLUMNS))
    parser.add_argument("--out", type=Path, default=Path("runs/growth"), help="folder of the plot")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.one:
        measure(given.rows[0], given.columns[0], given.out)
        return
    lines: list[list[str]] = []
    sizes = [(rows, columns) for rows in given.rows for columns in given.columns]
    for rows, columns in tqdm(sizes, unit="size"):
        command = [sys.executable, __file__, "--one", "--out", str(given.out)]
        command += ["--rows", str(rows), "--columns", str(columns)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        lines += [line.split() for line in done.stdout.splitlines()]
    names = ["model", "rows", "columns", "seconds", "megabytes", "microseconds"]
    table = pd.DataFrame(lines, columns=names).astype(dict.fromkeys(names[1:], float))
    print(table.to_string(index=False))
    if len(sizes) > 2:
        print(law(table).to_string(float_format=lambda v: f"{v:.3g}"))
        plot(table, given.out / "growth.png")
        print(given.out / "growth.png")
    table.to_csv(given.out / "growth.csv", index=False)


if __name__ == "__main__":
    main()

"""What it costs to price houses by the million, side by side, and how it grows.

    python benchmarks/scoring.py [--rows 100000 1000000 10000000] [--turns 3] [--plot scoring.png]

Each way runs in a process of its own (two workers: with theirs), over the same Parquet file, and
tells processor time, time, and the largest memory of any of its processes. The ways take turns,
and what is printed at the end are the medians. `onnx` is ONNX Runtime alone, which gives prices
and nothing else, on an array that is in memory before the clock starts, in the same steps of 128
rows. `house by house` validates each by the request model. The slow ways take a tenth of the rows,
and no less than 100,000.
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
from champion import make

from housing_mlops.config import Settings
from housing_mlops.data.table import load_table
from housing_mlops.model import inference
from housing_mlops.model.batch import open_houses
from housing_mlops.model.bundle import MODEL
from housing_mlops.model.inference import CHUNK, Model, open_session, row_of
from housing_mlops.model.scoring import score
from housing_mlops.schema import load_dataset

WAYS = {  # and the share of the rows that each gets
    "onnx": 1.0,
    "one process": 1.0,
    "two workers": 1.0,
    "house by house": 0.1,
    "scikit-learn": 0.1,
    "pyfunc": 0.1,
}
GROUP = 100_000  # rows of a row group


def write_houses(path: Path, rows: int) -> None:
    """The embedded table, over and over, with an identifier that nobody declared."""
    features = load_table(load_dataset("boston"), Settings(data_path=None)).features
    writer = None
    for start in range(0, rows, GROUP):
        numbers = np.arange(start, min(start + GROUP, rows))
        frame = features.iloc[numbers % len(features)].reset_index(drop=True)
        table = pa.Table.from_pandas(frame.assign(id=numbers), preserve_index=False)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def price(way: str, bundle: Path, source: Path, target: Path, rows: int) -> float:
    """Seconds of wall time for the first rows of the file; what is written goes to `target`."""
    model = Model.open(bundle, "1")
    columns = model.dataset.columns
    if way in ("one process", "two workers"):
        scheduler = "local" if way == "two workers" else ""
        settings = Settings(scheduler=scheduler, scale_workers=2)
        start = time.perf_counter()
        score(bundle, "1", source, target, settings, progress=False)
        return time.perf_counter() - start
    groups = -(-rows // GROUP)
    reader = parquet.ParquetFile(source)
    if way == "onnx":
        spent, session = 0.0, open_session(bundle / MODEL)
        price = [session.get_outputs()[0].name]
        for group in range(groups):
            frame = reader.read_row_group(group, columns).to_pandas()
            numbers = frame[columns].to_numpy(np.float32)
            start = time.process_time()  # it never waits
            for i in range(0, len(numbers), CHUNK):
                session.run(price, {"numbers": numbers[i : i + CHUNK]})
            spent += time.process_time() - start
        return spent
    start = time.perf_counter()
    if way == "house by house":
        validate = model.dataset.request_model.model_validate
        with open_houses(source, model.dataset, tuple(range(groups))) as houses:
            for piece in houses.pieces:
                lists = [piece.columns[c].to_pylist() for c in columns]
                found = [
                    row_of(validate(dict(zip(columns, h, strict=True))))
                    for h in zip(*lists, strict=True)
                ]
                model.quote(found)
    else:
        known = (
            inference._load_pyfunc(str(bundle.parent / bundle.name))
            if way == "pyfunc"
            else joblib.load(bundle.parent / f"{bundle.name}.joblib")
        )
        for group in range(groups):
            known.predict(reader.read_row_group(group, columns).to_pandas())
    return time.perf_counter() - start


def peak() -> int:
    """The largest memory of this process, in KB; `getrusage` would begin with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def measure(way: str, bundle: Path, source: Path, rows: int) -> dict[str, object]:
    """A row of the table, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        # not as the program itself, which each worker would import, with all that it needs
        command = [sys.executable, "-c", "from scoring import main; main()", "--way", way]
        command += ["--source", str(source), "--bundle", str(bundle)]
        command += ["--rows", str(rows), "--out", f"{out}/priced"]
        here = Path(__file__).resolve().parent
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=here)
    wall, cpu, memory = map(float, done.stdout.split()[-3:])
    return {
        "way": way,
        "rows": rows,
        "rows/s": rows / wall,
        "us of cpu a row": cpu / rows * 1e6,
        "wall s": wall,
        "MB": memory,
    }


def plot(table: pd.DataFrame, path: Path) -> None:
    """The cost of each way as rows grow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    labels = {"wall s": "seconds", "MB": "memory of the largest process (MB)"}
    for axes, (column, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for way, some in table.groupby("way", sort=False):
            axes.plot(some["rows"], some[column], marker="o", label=way)
        axes.set(xscale="log", xlabel="rows", ylabel=label)
    figure.axes[0].set(yscale="log")
    figure.axes[1].set(ylim=(0, None))
    figure.axes[1].legend()
    figure.savefig(path)


def main() -> None:
    """Print a row for each way and number of rows; with --way, be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--ways", nargs="+", default=[*WAYS])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--way")
    for name in ("source", "bundle", "out"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    if given.way:
        before = time.process_time()
        wall = price(given.way, given.bundle, given.source, given.out, given.rows[0])
        others = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time() - before + others.ru_utime + others.ru_stime
        cpu = wall if given.way == "onnx" else cpu  # without reading
        print(wall, cpu, max(peak(), others.ru_maxrss) / 1024)
        return
    bundle, found = make(Path(tempfile.gettempdir()) / "housing-benchmarks"), []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "houses.parquet"
        for rows in given.rows:
            write_houses(source, rows)
            for way in given.ways * given.turns:
                some = min(rows, math.ceil(rows * WAYS[way] / GROUP) * GROUP)  # whole row groups
                found.append(measure(way, bundle, source, some))
                print({k: v if isinstance(v, str) else round(v, 1) for k, v in found[-1].items()})
    table = pd.DataFrame(found).groupby(["way", "rows"], sort=False).median().reset_index()
    if given.plot:
        plot(table, given.plot)
    print(table.round(1).to_string(index=False))
    for rows in given.rows:
        walls = table[table["rows"] == rows].set_index("way")["wall s"]
        for one, other in (("one process", "onnx"), ("one process", "two workers")):
            if one in walls and other in walls:
                print(f"{rows:,} rows: {one} takes {walls[one] / walls[other]:.2f} times {other}")


if __name__ == "__main__":
    main()

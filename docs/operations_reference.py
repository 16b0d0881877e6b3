"""What a server says of itself, as a page: its metrics, the reasons that it counts, and what it logs; read from the code.

usage: python docs/operations_reference.py      (prints the page; docs/look_up.py makes it a page among others)
"""

import ast
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client.core import Metric

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "housing_mlops"
# What no process that serves runs.
ELSEWHERE = ("training", "data", "operations", "registry/aliases", "cli")
LEVELS = ("info", "warning", "error", "exception")
HEAD = """\
<!-- Generated from the code by `make export`. -->

# Metrics and logs

> What a server publishes on `/metrics` and writes to its log, as the code has it. What to do about it: [operations](operations.md).
"""


def families() -> Iterator[Metric]:
    """Every metric, of a server that has something to say about everything."""
    from housing_mlops.monitoring.counters import Counters, process_use
    from housing_mlops.monitoring.judgement import NOT_JUDGED
    from housing_mlops.monitoring.metrics import Numbers, NumbersCollector
    from housing_mlops.prediction_log.log import LogState

    counters = Counters()
    counters.histogram("/predict", 200).add(0.001)
    counters.error("busy")
    counters.version("7").add(24.0)
    metrics = {"cv_mae": 2.0, "cv_rmse": 3.0}
    info = SimpleNamespace(model="Ridge", created=datetime.now(UTC), metrics=metrics)
    model: Any = SimpleNamespace(version="7", info=info)
    log = LogState(
        *(True, "", "", 0, 0, 1, 0, 0, 0, 0),
        folder={"own": 1, "waiting": 0, "refused": 0},
    )
    error: Any = SimpleNamespace(verdict="ok")
    row = {
        "model": "Ridge",
        "model_version": "7",
        "n": 1,
        "quarters": [{"quarter": 1, "within": 1.0}],
    }
    live = ({**row, **dict.fromkeys(("mae", "rmse", "bias", "within"), 1.0)},)
    numbers = Numbers(
        *(counters, model, log, NOT_JUDGED, live),
        loop=("wait", 0, ("8", "7", 0.2, "go on"), 0.0),
        error=error,
        checks={"model": "healthy"},
        disk=(1, 2),
        use={**process_use(), "housing_workers": 1.0},
    )
    yield from NumbersCollector(numbers).collect()


def metric_rows() -> Iterator[str]:
    """A row a metric: its name as Prometheus has it, type, labels, meaning."""
    for family in families():
        total = "_total" if family.type == "counter" else ""
        labels = ", ".join(f"`{name}`" for name in getattr(family, "_labelnames", ()))
        yield f"| `{family.name}{total}` | {family.type} | {labels} | {family.documentation} |"


def modules() -> Iterator[tuple[str, ast.Module]]:
    """The modules that a server runs, by name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if not name.startswith(ELSEWHERE) and "migrations" not in name:
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Of each call of a method with a text: what it is called on, the method, the text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield ast.unparse(node.func.value), node.func.attr, first.value


def log_rows() -> Iterator[str]:
    """A row a message."""
    for name, tree in modules():
        for owner, method, text in calls(tree):
            if owner == "logger" and method in LEVELS:
                level = "error" if method == "exception" else method
                said = text.replace("|", "\\|")
                yield f"| {level} | `housing_mlops.{name.replace('/', '.')}` | {said} |"


def reasons() -> list[str]:
    """The words that `housing_errors_total` counts by: as they are counted, and in the tables of statuses."""
    found: set[str] = set()
    for _, tree in modules():
        found |= {t for on, how, t in calls(tree) if how == "error" and on.endswith("counters")}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if ast.unparse(target) in ("REASONS", "STATUS"):
                    values = [
                        v.elts[-1] if isinstance(v, ast.Tuple) else v for v in node.value.values
                    ]
                    found |= {str(ast.literal_eval(value)) for value in values}
    return sorted(found)


def page() -> str:
    """The page, as Markdown."""
    from housing_mlops.serving.access_log import REFUSED

    words = ", ".join(f"`{word}`" for word in reasons() if word not in REFUSED)
    refused = "\n".join(f"| `{word}` | {text} |" for word, text in REFUSED.items())
    parts = [
        HEAD,
        "## Metrics\n",
        "Prometheus adds `job` and `instance`. A histogram has `_bucket`, `_sum` and `_count`; `HOUSING_WORKERS` share "
        "one answer. Without `Accept` of Prometheus' the same numbers come as JSON.\n",
        "| metric | type | labels | meaning |\n|---|---|---|---|",
        *metric_rows(),
        f"\n`housing_errors_total` counts by reason. What is refused though it was asked well:\n\n| reason | status, and what decides |\n|---|---|\n{refused}\n\nAnd what was asked badly: {words}.\n",
        "## The log\n",
        "One JSON object a line, on standard error, with `time` (UTC), `level`, `logger` and `message`; passwords are "
        "masked. Lines of `housing_mlops.access` have the request in place of the message; `HOUSING_ACCESS_LOG` says "
        "which requests get one.\n",
        "| level | logger | message |\n|---|---|---|",
        *sorted(log_rows()),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")

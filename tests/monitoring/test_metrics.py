"""What the alerts and the dashboard of the stack ask for is what is published."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from processes import ROOT
from prometheus_client.parser import text_string_to_metric_families

from housing_mlops.model.inference import Model
from housing_mlops.monitoring.counters import Counters, gather_use
from housing_mlops.monitoring.drift import Observations
from housing_mlops.monitoring.judgement import drift_reference, judge
from housing_mlops.monitoring.live_error import judge_errors, promise_of
from housing_mlops.monitoring.metrics import Numbers, exposition
from housing_mlops.prediction_log.log import LogState
from housing_mlops.prediction_log.queries import LiveError

METRIC = re.compile(r"(?<![\w:])(?:housing|process)_\w+")


@pytest.fixture(scope="module")
def published(bundles: dict[str, Path]) -> set[str]:
    """The names of all samples of a service that has everything to say."""
    model = Model.open(bundles["Ridge"], "1")
    reference = drift_reference(model.dataset, model.reference)
    drift = judge(reference, Observations(reference.numbers, reference.texts, ()))
    counters = Counters()
    counters.histogram("/predict", 200).add(0.001)
    counters.version("1").add(20.0)
    counters.error("invalid")
    log = LogState(True, "", "", 0, 0, 1, 1, 0, 0, 0)
    live = LiveError("Ridge", "1", 1, 1.0, 1.0, 0.0, 1.0)._asdict()
    error = judge_errors(np.zeros(0), np.zeros(0), promise_of(reference.residuals))
    told = Numbers(
        *(counters, model, log, drift, (live,)),
        loop=("train", 0, ("2", "1", 0.2, "go on"), 1.8e9),
        error=error,
        checks={"registry": "healthy"},
        disk=(1, 2),
        use=gather_use(),
    )
    text, _ = exposition(told, "text/plain")
    families = text_string_to_metric_families(text.decode())
    return {sample.name for family in families for sample in family.samples}


def test_every_metric_of_an_alert_is_published(published: set[str]) -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    used = {
        name
        for group in rules["groups"]
        for rule in group["rules"]
        for name in METRIC.findall(rule["expr"])
    }
    assert used and used <= published


def test_every_metric_of_the_dashboard_is_published(published: set[str]) -> None:
    [path] = (ROOT / "deploy/grafana/dashboards").glob("*.json")
    panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    used = {name for query in queries for name in METRIC.findall(query)}
    assert used and used <= published


def test_a_figure_that_is_not_known_is_no_figure(published: set[str]) -> None:
    text, _ = exposition(Numbers(Counters(), None, None), "text/plain")
    families = list(text_string_to_metric_families(text.decode()))
    assert all(np.isfinite(s.value) for family in families for s in family.samples)
    told = {sample.name: sample.value for family in families for sample in family.samples}
    assert told["housing_outcomes_total"] == told["housing_errors_total"] == 0, "from the start"
    bare = told.keys()
    assert bare < published and "housing_model_info" not in bare

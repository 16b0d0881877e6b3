"""Simulation: it decides as production does, and counts what it should."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from flats import DISTRICTS, reference
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.config import Settings
from housing_mlops.data.table import load_table
from housing_mlops.monitoring.drift import DriftError, DriftReference, Observations
from housing_mlops.monitoring.judgement import WINDOWS, Origin, judge
from housing_mlops.monitoring.simulation import (
    STEP,
    SimulationResult,
    Traffic,
    draw_blocks,
    draw_reference,
    draw_stream,
    first_alarm,
    shift_stream,
    simulate,
    simulate_all,
    simulate_log,
    simulation_table,
)
from housing_mlops.prediction_log.database import connect, migrate
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.record import Record, encode_record, new_id
from housing_mlops.registry.shelf import install_bundle
from housing_mlops.schema import load_dataset


def houses() -> DriftReference:
    """The embedded table, in the order of its towns."""
    table = load_table(load_dataset("boston"))
    rows, prices = table.features.to_numpy(dtype=float), table.prices.to_numpy()
    return DriftReference(rows, np.empty((506, 0)), prices, columns=table.features.columns)


# Simulation and production


@pytest.mark.parametrize("windows", [WINDOWS, (100,), (200,), (150, 300)])
@pytest.mark.parametrize("seed", range(4))
def test_the_simulation_raises_the_alarm_when_production_does(known, seed, windows):
    rng = np.random.default_rng(seed)
    old, places = draw_reference(known, "resampled", rng)
    stream = draw_stream(known, places, 1100, rng)
    stream = shift_stream(stream, known, "area", -0.35, 400, rng)
    stream.numbers[700:, 1] = 1990  # a column that breaks
    ends = range(STEP, len(stream) + 1, STEP)
    judged = {end: judge(old, stream.newest(end, skip=len(stream) - end), windows) for end in ends}
    for past in range(0, 1100, 150):
        for feature in (None, "area", "year"):
            alarms = [
                end - past
                for end, j in judged.items()
                if end > past and (feature in j.features if feature else j.verdict == "drift")
            ]
            assert first_alarm(old, stream, past, feature, windows) == min(alarms, default=None)
    assert "year" in judged[1100].degenerate


def test_a_town_that_vanishes_is_missed_by_its_columns_and_found_by_support():
    found = simulate(houses(), 1500, runs=4, feature="RM", change="town-gone", progress=False)
    assert found.share() == 1 and (found.median or 2000) < 1100


# Simulation


def test_a_simulation_is_quiet_without_drift_and_finds_it_with(known):
    quiet = simulate(known, rows=1000, runs=10, progress=False)
    assert quiet.share() <= 0.1
    many = reference(2000)  # hardly a flat comes twice within a window
    moved = simulate(many, rows=500, runs=10, shift=-0.5, feature="area", progress=False)
    assert moved.share() >= 0.9 and moved.median is not None and moved.median <= 250
    again = simulate(many, rows=500, runs=10, shift=-0.5, feature="area", progress=False)
    assert again == moved


@pytest.mark.parametrize("mode", ["same", "split", "resampled"])
def test_modes_and_designs(known, mode):
    found = simulate(known, rows=200, runs=2, mode=mode, windows=(100,), checks=1, progress=False)
    assert found.mode == mode and found.windows == (100,) and found.checks == 1


def test_a_flag_moves_by_its_share(known):
    up = simulate(known, rows=500, runs=5, shift=0.8, feature="lift", progress=False)
    assert up.share() == 1.0
    down = simulate(known, rows=500, runs=5, shift=-5, feature="lift", progress=False)
    assert down.share() == 1.0  # all of them flipped: degenerate


def test_moved_houses_are_priced_again(known):
    priced = []

    def predict(numbers, texts):
        priced.append((numbers.shape, texts.shape))
        return numbers[:, 0] * 3

    simulate(known, rows=200, runs=1, shift=1, feature="area", predict=predict, progress=False)
    assert priced == [((200, 3), (200, 1))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift": 0.5}, "together"),
        ({"feature": "area"}, "together"),
        ({"shift": 0.5, "feature": "district"}, "area, year, lift"),
        ({"windows": (110,)}, "divides"),
        ({"runs": 0}, "at least one run"),
        ({"step": 0}, "at least one run"),
        ({"mode": "live"}, "resampled, same or split"),
        ({"windows": (20,)}, "at least 100"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused(known, arguments, message):
    with pytest.raises(DriftError, match=message):
        simulate(known, progress=False, **arguments)


def test_a_table_too_small_to_simulate_is_refused():
    with pytest.raises(DriftError, match="table of at least 100"):
        simulate(reference(60), progress=False)


def test_the_table_of_results():
    some = SimulationResult("x", -0.5, "same", 500, (100,), 25, 2, (100, 200, None, 300))
    none = replace(some, alarms=(None, None, 100))
    assert some.share() == 0.75 and some.share(within=200) == 0.5 and some.median == 250
    assert none.median is None and 0 < none.interval[0] < 1 / 3 < none.interval[1] < 1
    lines = simulation_table([some, replace(some, feature=None)])
    assert [row["feature"] for row in lines] == ["x", "none (quiet)"]
    assert json.dumps(lines, allow_nan=False)


def test_all_features_in_turn(known):
    found = simulate_all(known, runs=1, rows=100, horizon=100, progress=False)
    assert [r.feature for r in found] == [None, "area", "year", "lift"]


def test_a_table_of_categories_alone_is_simulated():
    rng = np.random.default_rng(0)
    texts = DriftReference(np.empty((300, 0)), rng.choice(DISTRICTS, (300, 1)), (), columns=("d",))
    assert simulate(texts, rows=200, runs=2, progress=False).runs == 2


# Traffic as it is


@pytest.mark.parametrize("stream", ["repeated-5", "batches-25", "poller-20", "burst-100"])
def test_quiet_traffic_that_depends_on_itself_raises_nothing(stream):
    by_town = houses()
    before = simulate(by_town, 600, 4, stream=stream, plain=True, progress=False)
    after = simulate(by_town, 600, 4, stream=stream, progress=False)
    assert after.share() == 0 < before.share()


@pytest.mark.parametrize("change", ["unit-slip", "correlation-gone"])
def test_changes_that_no_distance_shows_are_found(change):
    found = simulate(houses(), 600, 2, feature="RM", change=change, step=50, progress=False)
    assert found.share() == 1


def test_a_town_that_vanishes_is_missed_by_the_distance_and_mostly_found():
    found = simulate(houses(), 1500, 2, feature="RM", change="town-gone", step=100, progress=False)
    assert found.share() >= 0.5, "four runs in five, by the notebook"


def test_streams_and_changes_have_names(known):
    with pytest.raises(DriftError, match="poller-20"):
        simulate(known, runs=1, stream="rush hour", progress=False)
    with pytest.raises(DriftError, match="town-gone"):
        simulate(known, runs=1, change="weather", feature="area", progress=False)
    assert len(draw_stream(known, np.arange(500), 77, np.random.default_rng(0), "batches-25")) == 77


# Traffic of one's own


def logged(rows: int) -> Traffic:
    """A poller, a portal and an agent's batches."""
    table, rng = houses(), np.random.default_rng(1)
    polled = draw_stream(table, np.arange(506), rows // 2, rng, "poller-20")
    batches = draw_stream(table, np.arange(506), rows // 2, rng, "batches-5")
    turns = np.repeat(rng.random(rows // 10), 5)
    order = np.argsort(np.concatenate([rng.random(rows // 2), turns]), kind="stable")
    sides = [
        np.concatenate(pair)[order]
        for pair in zip(
            (polled.numbers, polled.texts, polled.predictions),
            (batches.numbers, batches.texts, batches.predictions),
            strict=True,
        )
    ]
    names = np.array(["portal"] * (rows // 2) + ["agent"] * (rows // 2))[order].tolist()
    return Traffic(Observations(*sides), Origin(clients=names))


def test_resampled_traffic_is_quiet_and_what_moves_in_it_is_found():
    traffic, columns = logged(2000), houses().columns
    quiet = simulate_log(traffic, columns, 506, 1000, 8, progress=False)
    moved = simulate_log(traffic, columns, 506, 1500, 4, -0.5, "RM", progress=False)
    assert (quiet.share(), moved.share(), quiet.stream) == (0, 1, "log")
    with pytest.raises(DriftError, match="feature together"):
        simulate_log(traffic, columns, 506, 500, 1, -0.5, progress=False)
    with pytest.raises(DriftError, match="The log has 990 rows"):
        logged(990)


def test_blocks_keep_neighbours_together_and_wrap_around():
    places = draw_blocks(1000, 50_000, np.random.default_rng(0))
    follows = (np.diff(places) == 1) | ((places[1:] == 0) & (places[:-1] == 999))
    assert 1 / 130 < 1 - follows.mean() < 1 / 80
    assert np.bincount(places, minlength=1000).min() > 0


def test_the_command_draws_from_the_log(tmp_path, bundles, monkeypatch):
    monkeypatch.setenv("HOUSING_HOME", str(tmp_path))
    install_bundle(bundles["Ridge"], "1", Settings(home=tmp_path))
    engine = connect(Settings(home=tmp_path).database)
    migrate(engine)
    command = ["simulate", "log", "--runs", "2", "--rows", "200", "--feature", "RM"]
    assert "1000 and 100 are needed" in CliRunner().invoke(app, command).output
    sample, now = load_table(load_dataset("boston")).features, time.time_ns() // 1000
    lines = []
    for i, house in enumerate(sample.sample(1200, replace=True, random_state=0).to_dict("records")):
        about = (20.0 + i % 7, None, None, 0.2, "/predict", "", json.dumps(house))
        lines.append(encode_record(Record(new_id(), now + i, "Ridge", "1", *about)))
    insert(engine, lines)
    engine.dispose()
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    told = [line.split()[:2] for line in done.stdout.splitlines()]
    assert told[0] == ["stream", "feature"] and [t[0] for t in told[1:]] == ["log", "log"]

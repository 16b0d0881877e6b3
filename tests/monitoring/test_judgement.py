"""The alarm: what it takes to raise it, and what it says."""

import json
import time

import numpy as np
import pytest
from flats import join, rows

from housing_mlops.data.table import load_table
from housing_mlops.model.inference import Model
from housing_mlops.monitoring.drift import DriftError, DriftReference, Observations
from housing_mlops.monitoring.judgement import (
    Checks,
    Origin,
    as_observations,
    judge,
    judge_log,
    judge_window,
    look_at,
    named_columns,
    read_rows,
)
from housing_mlops.prediction_log.database import connect, migrate
from housing_mlops.prediction_log.insertion import insert
from housing_mlops.prediction_log.queries import Window
from housing_mlops.prediction_log.record import Record, encode_record, new_id
from housing_mlops.schema import load_dataset


def test_drift_needs_two_windows_that_name_the_same_column(known):
    quiet, moved = rows(400, 18), rows(400, 19, shift=-0.8)
    other = rows(100, 20, districts=(0.1, 0.1, 0.1, 0.7))
    assert judge(known, quiet).verdict == "ok"
    once = judge(known, join(quiet, moved.newest(100)))
    assert once.verdict == "ok" and "area" in once.suspects and once.features == ()
    twice = judge(known, join(quiet, moved.newest(200)))
    assert twice.verdict == "drift" and "area" in twice.features
    differing = judge(known, join(quiet, other, moved.newest(100)), windows=(100,))
    assert differing.verdict == "ok" and "area" in differing.suspects


def test_one_window_alone_clears_but_does_not_accuse(known):
    assert judge(known, rows(150, 21)).verdict == "ok"
    suspicion = judge(known, rows(150, 22, shift=-1.0))
    assert suspicion.verdict == "unknown" and "area" in suspicion.suspects


def test_a_degenerate_column_raises_the_alarm(known):
    window = rows(400, 23)
    window.numbers[:, 0] = 80
    found = judge(known, window)
    assert found.verdict == "drift" and found.features[0] == "area"
    assert found.degenerate == ("area",)


def test_the_steady_pair_keeps_the_alarm_standing(known):
    lasting = [rows(400, seed, shift=-0.5) for seed in range(30, 60)]
    agreed = [[*named_columns(Checks(known, look_at(r)))[0].values()] for r in lasting]
    quick, steady = sum(bool(a[0]) for a in agreed), sum(bool(a[-1]) for a in agreed)
    assert steady >= 28 > quick
    assert sum(judge(known, r).verdict == "drift" for r in lasting) >= 28


def test_a_window_longer_than_the_log_is_judged_by_what_there_is(known):
    found = judge(known, rows(150, 24), windows=(1000,))
    assert found.verdict == "ok" and found.report.rows == 150
    with pytest.raises(DriftError, match="at least 100"):
        judge(known, rows(150, 24), windows=(50,))
    with pytest.raises(DriftError, match="at least 100"):
        judge(known, rows(150, 24), windows=())


def test_a_judgement_is_json_without_nan(known):
    blank = Observations(np.full((300, 3), np.nan), np.full((300, 1), ""), np.full(300, np.nan))
    for window in (rows(0, 0), rows(150, 1), rows(400, 2, shift=-0.5, residuals=300), blank):
        payload = json.loads(json.dumps(judge(known, window).as_dict(), allow_nan=False))
        assert payload["verdict"] in ("ok", "drift", "unknown")
        assert set(payload["degenerate"]) <= set(payload["features"])
        assert len(payload["report"]["features"]) == 7


def test_the_table_itself_is_quiet_until_its_rooms_fall():
    houses = load_table(load_dataset("boston")).features
    table, RM = houses.to_numpy(dtype=float), houses.columns.get_loc("RM")
    old = DriftReference(table, np.empty((506, 0)), table[:, RM] * 9, columns=houses.columns)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        order = np.concatenate([rng.permutation(506) for _ in range(5)])[:2400]
        live = table[order]
        live[2000:, RM] -= table[:, RM].std() / 2
        stream = Observations(live, np.empty((2400, 0)), live[:, RM] * 9)
        found = [judge(old, stream.newest(400, skip=2400 - end)) for end in range(25, 2401, 25)]
        spoken = [judgement.verdict for judgement in found]
        assert "drift" not in spoken[:80] and spoken[79] == "ok"
        assert spoken[-1] == "drift" and "RM" in found[-1].features


def test_the_rows_of_the_log_become_observations():
    window = Window(
        numbers=np.array([[0.538, np.nan], [2.0, 3.0]]),
        categories=np.array([["Belem"], [None]], dtype=object),
        prices=np.array([10.0, 20.0]),
        actual=np.array([np.nan, 21.5]),
        times=np.array([0, 1], dtype="datetime64[us]"),
        versions=["1", "1"],
    )
    found = as_observations(window)
    assert found.texts.tolist() == [["Belem"], [""]] and found.residuals.tolist() == [1.5]
    assert found.numbers[0, 0] == float(np.float32(0.538)) != 0.538, "as the reference holds it"
    assert np.isnan(found.numbers[0, 1])


def test_no_rows_at_all_are_unknown(known):
    nobody = Observations(np.empty((0, 3)), np.empty((0, 1), dtype=np.str_), ())
    assert judge(known, nobody).verdict == "unknown"


def test_one_flat_asked_for_again_and_again_is_one_flat(known):
    quiet, moved = rows(400, 18), rows(3, 19, shift=-3)
    polled = moved.take(np.arange(300) % 3)
    assert judge(known, join(quiet, polled)).verdict == "ok"
    alone = judge(known, polled)
    assert alone.verdict == "unknown" and alone.reason == "3 different houses in 300 rows"
    assert (alone.asked, alone.houses, alone.needs) == (300, 3, "97 more different houses")


def test_neighbours_count_for_what_they_are_worth(known):
    sizes = np.sort(rows(500, 5).numbers[:, 0])  # a street has flats of one size
    street = rows(500, 6)
    begin = np.random.default_rng(1).integers(0, 475, 20)
    street.numbers[:, 0] = sizes[(begin[:, None] + np.arange(25)).ravel()]
    found = judge(known, street)
    assert found.effective < 250 and found.verdict != "drift"


def test_one_client_alone_is_not_the_traffic(known):
    moved = rows(400, 19, shift=-0.8)
    alone = judge(known, moved, origin=Origin(clients=["agent"] * 400))
    assert (alone.verdict, alone.reason) == ("unknown", "one client") and "area" in alone.suspects
    assert alone.features == () and alone.needs == "requests of another client"
    two = judge(known, moved, origin=Origin(clients=["agent", "portal"] * 200))
    assert two.verdict == "drift" and two.p < 0.001 and two.needs == ""
    without_keys = judge(known, moved, origin=Origin(clients=[""] * 400))
    assert without_keys.verdict == "drift"


def test_a_client_of_long_ago_is_no_second_one(known):
    long_ago, moved = rows(20, 21), rows(1100, 19, shift=-0.8)
    origin = Origin(clients=["portal"] * 20 + ["agent"] * 1100)
    alone = judge(known, join(long_ago, moved), origin=origin)
    assert (alone.verdict, alone.reason) == ("unknown", "one client")


def test_a_minute_of_rows_is_one_event(known):
    moved = rows(400, 19, shift=-0.8)
    quick = judge(known, moved, origin=Origin(times=np.linspace(0, 60, 400)), least_s=600)
    assert quick.verdict == "unknown" and quick.reason == "all within 60 s"
    assert quick.needs == "540 s more of traffic" and "area" in quick.suspects
    slow = judge(known, moved, origin=Origin(times=np.linspace(0, 700, 400)), least_s=600)
    assert slow.verdict == "drift"


def test_a_busy_log_is_read_in_slices_of_the_least_time(tmp_path, bundles):
    model = Model.open(bundles["Ridge"], "1")
    engine = connect(f"sqlite:///{tmp_path}/log.db")
    migrate(engine)
    houses = load_table(load_dataset("boston")).features.sample(506, random_state=0)
    now, lines = time.time_ns() // 1000, []
    for i, house in enumerate(houses.to_dict("records") * 4):
        about = (20.0, None, None, 0.2, "/predict", "", json.dumps(house))
        lines.append(encode_record(Record(new_id(), now - i * 200_000, "Ridge", "1", *about)))
    insert(engine, lines)  # 2,024 houses within 405 seconds
    newest = judge_window(read_rows(engine, model, 500), model, least_s=300)
    assert (newest.verdict, newest.reason) == ("unknown", "all within 100 s")
    spread = judge_log(engine, model, 500, least_s=300)
    assert (spread.asked, spread.reason, spread.features) == (500, "", ("prediction",))
    soon = judge_log(engine, model, 500, least_s=3600)
    assert (soon.reason, soon.needs) == ("all within 100 s", "3500 s more of traffic")
    engine.dispose()

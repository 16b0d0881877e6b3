"""Prices paid from a file: the good lines are kept, each bad one is told, twice changes nothing."""

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from processes import ask, until
from servers import Server
from typer.testing import CliRunner

from housing_mlops.cli import app
from housing_mlops.config import Settings
from housing_mlops.prediction_log.database import connect
from housing_mlops.prediction_log.queries import read_sales
from housing_mlops.prediction_log.record import new_id
from housing_mlops.schema import load_dataset

HOUSE = load_dataset("boston").example


def run(*arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, the last line of what was printed, and the lines of the complaints."""
    done = CliRunner().invoke(app, ["feedback", "--quiet", *arguments], catch_exceptions=False)
    return done.exit_code, done.stdout.strip(), done.stderr.splitlines()


def write(path: Path, rows: list[tuple[object, ...]]) -> Path:
    frame = pd.DataFrame(rows, columns=["prediction_id", "price", "date"], dtype=object)
    frame.astype(str).to_csv(path, index=False)
    return path


def test_every_bad_line_is_told_and_the_good_ones_are_kept(
    home: Settings, priced: Callable[..., list[str]], tmp_path: Path
) -> None:
    ids = priced(8)
    rows = [
        (ids[0], 21.5, "2026-05-01"),
        (ids[1], 24_000, "2026-05-02"),  # another unit
        (ids[2], -3, "2026-05-02"),
        (ids[3], 22.0, "2999-01-01"),  # still to come
        (new_id(), 20.0, "2026-05-03"),  # nobody's
        (ids[4], "much", "2026-05-03"),
        (ids[5], 26.25, "2026-05-04T10:00:00Z"),
    ]
    file = write(tmp_path / "sold.csv", rows)
    code, said, told = run(str(file), "--source", "registry")
    assert code == 1 and said.endswith("2 stored, 0 unchanged, 0 replaced, 5 refused.")
    assert [line.split(":")[0] for line in told] == [f"line {n}" for n in (3, 4, 5, 6, 7)]
    for line, word in zip(told, ["another unit", "from 0", "still to come", "No prediction", "no number"], strict=True):  # fmt: skip
        assert word in line
    engine = connect(home.database)
    before = read_sales(engine)
    assert [(s.price, s.source) for s in before] == [(21.5, "registry"), (26.25, "registry")]
    assert run(str(file))[1].endswith("0 stored, 2 unchanged, 0 replaced, 5 refused.")
    assert read_sales(engine) == before, "twice changes nothing"
    assert run(str(write(tmp_path / "more.csv", [(ids[0], 22.5, "2026-05-09")])))[2] == [
        f"line 2: 21.5 was reported for {ids[0]} before, and now 22.5: say --replace to correct it."
    ]
    code, said, _ = run(str(tmp_path / "more.csv"), "--replace")
    assert code == 0 and "1 replaced" in said
    assert [s.price for s in read_sales(engine)] == [26.25, 22.5]
    engine.dispose()


def test_parquet_with_days_as_dates(
    home: Settings, priced: Callable[..., list[str]], tmp_path: Path
) -> None:
    ids = priced(2)
    days = pd.to_datetime(["2026-05-01", "2026-05-02"]).date
    frame = pd.DataFrame({"prediction_id": ids, "price": [20.0, 21.0], "date": days})
    frame.to_parquet(tmp_path / "sold.parquet")
    assert run(str(tmp_path / "sold.parquet"))[:2] == (
        0,
        f"{tmp_path / 'sold.parquet'}: 2 stored, 0 unchanged, 0 replaced, 0 refused.",
    )
    frame.drop(columns="date").to_parquet(tmp_path / "sold.parquet")
    assert "has no column date" in run(str(tmp_path / "sold.parquet"))[2][0]


def test_a_database_that_is_gone_stops_the_file_and_says_where(
    home: Settings,
    priced: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from housing_mlops.operations import feedback
    from housing_mlops.prediction_log.record import LogUnavailable

    ids = priced(3)
    file = write(tmp_path / "sold.csv", [(i, 20 + n, "2026-05-01") for n, i in enumerate(ids)])
    real, calls = feedback.save_feedback, []

    def save(*given: object, **more: object) -> str:
        calls.append(given)
        if len(calls) == 2:
            raise LogUnavailable("The prediction log does not answer: gone.")
        return real(*given, **more)

    with monkeypatch.context() as broken:
        broken.setattr(feedback, "save_feedback", save)
        code, _, told = run(str(file))
    assert code == 1 and "line 3: The prediction log does not answer" in told[-1]
    assert "1 stored" in told[-1]
    assert run(str(file))[1].endswith("2 stored, 1 unchanged, 0 replaced, 0 refused.")


def test_through_the_api(serve: Callable[..., Server], tmp_path: Path) -> None:
    api = serve(HOUSING_API_KEYS="mine", HOUSING_FEEDBACK_KEYS="office")
    ids = [ask(f"{api.address}/predict", HOUSE, {"X-API-Key": "mine"})[1]["prediction_id"] for _ in range(2)]  # fmt: skip
    rows = [(ids[0], 21.5, "2026-05-01"), (ids[1], 24_000, "2026-05-02"), (new_id(), 20, "2026-05-03")]  # fmt: skip
    file = write(tmp_path / "sold.csv", rows)
    code, _, told = run(str(file), "--url", api.address)
    assert code == 1 and "line 2" in told[-1] and "401" in told[-1], "without a key nothing is sent"
    os.environ["HOUSING_API_KEY"] = "office"
    try:
        code, said, told = run(str(file), "--url", api.address)
    finally:
        del os.environ["HOUSING_API_KEY"]
    assert code == 1 and said.endswith("1 stored, 0 unchanged, 0 replaced, 2 refused.")
    assert "another unit" in told[0] and "No prediction" in told[1]
    api.kill()
    until(lambda: run(str(file), "--url", api.address)[0] == 1)
    assert "does not answer" in run(str(file), "--url", api.address)[2][-1]

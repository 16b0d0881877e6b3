"""Houses by their id, from a file to a price: in the stack's own database, and in a real Feast.

The stack as it stands has no store: each test adds the setting, as a person does in `.env`.
"""

import csv
import json
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from processes import ask, free_port, until
from running import NOTES, TAG, Stack, run

pytestmark = pytest.mark.process
FEAST = ("--profile", "feast")
LIT = (
    (files("housing_mlops") / "datasets/boston.toml").read_text(encoding="utf-8")
    + """
[[features]]
name = "LIGHT"
unit = "lamps"
meaning = "street lamps a house sees"
minimum = 0
maximum = 100
nullable = true
example = 3.0
"""
)
MAY, JUNE = "2026-05-01T00:00:00Z", "2026-06-01T00:00:00Z"


def settings(stack: Stack, **more: object) -> Path:
    """An env file of the stack that says more."""
    path = stack.folder / "store.env"
    lines = "".join(f"{name}={value}\n" for name, value in more.items())
    path.write_text(stack.env_file.read_text() + lines)
    return path


def table(path: Path, house: dict[str, Any], count: int) -> Path:
    """A file of houses, the one above with more rooms than the one before."""
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, ["house_id", *house])
        rows.writeheader()
        rows.writerows(
            {"house_id": f"12-{i:05}", **house, "RM": 5 + i / count} for i in range(count)
        )
    return path


def load(stack: Stack, given: Path, path: Path, at: str, *more: str, check: bool = True) -> str:
    """What the command says that deploy/README.md has for it."""
    mounted = ("-v", f"{path}:/{path.name}:ro", *more)
    command = ("--entrypoint", "housing-mlops", "monitor", "features", "load", f"/{path.name}")
    words = ("run", "--rm", "-T", "--no-deps", *mounted, *command, "--at", at)
    done = stack.do(*words, env_file=given, check=check)
    assert check or done.returncode, f"it should have failed: {done.stdout}"
    return done.stdout + done.stderr


def prices_by_id(stack: Stack, url: str, house_id: str, house: dict[str, Any]) -> None:
    """What is asked by its id has the price, and the line in the log, of its features."""
    status, told = ask(url, {"house_id": house_id})
    assert status == 200, told
    assert told["prediction"] == ask(url, house)[1]["prediction"]
    status, other = ask(url, {"house_id": house_id, "LSTAT": 30.0})
    assert (
        status == 200 and other["prediction"] == ask(url, house | {"LSTAT": 30.0})[1]["prediction"]
    )
    status, stranger = ask(url, {"house_id": "99-99999"})
    assert status == 404 and "99-99999" in stranger["detail"], stranger
    query = f"SELECT features FROM predictions WHERE id = '{told['prediction_id']}'"
    assert json.loads(until(lambda: stack.sql(query), 30, "it is in the log")) == {
        "house_id": house_id,
        **house,
    }


@pytest.mark.nightly
def test_the_stacks_own_database_prices_houses_by_their_id(stack: Stack, tmp_path: Path) -> None:
    stack.wait_ready()
    status, told = ask(stack.url("api", "/predict"), {"house_id": "12-00003"})
    assert status == 422 and "no feature store" in json.dumps(told)
    given = settings(stack, HOUSING_FEATURE_STORE="postgresql://housing@db/housing")
    path = table(tmp_path / "houses.csv", stack.house, 10)
    assert "10 rows, 10 of them written" in load(stack, given, path, MAY)
    name, port = "housing-test-by-id", free_port()  # beside the API of the stack, which stays
    run("docker", "rm", "-f", name, check=False)
    beside = ("--no-deps", "--name", name, "-p", f"127.0.0.1:{port}:8000")
    stack.do("run", "-d", *beside, "api", env_file=given)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: ask(f"{url}/readyz")[0] == 200, 60, "it is ready")
        prices_by_id(stack, f"{url}/predict", "12-00003", stack.house | {"RM": 5.3})
    finally:
        run("docker", "rm", "-f", name, check=False)


@pytest.fixture(scope="module")
def feast(stack: Stack) -> Iterator[Path]:
    """The setting with which the stack asks a Feast that holds a hundred houses."""
    given = settings(stack, HOUSING_FEATURE_STORE="http://feast:6566")
    stack.do(*FEAST, "up", "-d", "--no-deps", "feast", "api", env_file=given, timeout=1500)
    try:
        stack.wait_ready()
        stack.wait_healthy("feast")
        path = table(stack.folder / "hundred.csv", stack.house, 100)
        assert "100 rows, 100 of them written" in load(stack, given, path, MAY)
        yield given
    finally:
        stack.do(*FEAST, "rm", "-sf", "feast")
        stack.do("up", "-d", "--no-deps", "api")
        stack.wait_ready()


def asked(stack: Stack, house_id: str = "12-00030") -> tuple[int, Any]:
    return ask(stack.url("api", "/predict"), {"house_id": house_id})


def priced(stack: Stack) -> bool:
    return asked(stack)[0] == 200


@pytest.mark.nightly
def test_feast_prices_houses_by_their_id_and_may_do_little(stack: Stack, feast: Path) -> None:
    prices_by_id(stack, stack.url("api", "/predict"), "12-00030", stack.house | {"RM": 5.3})
    found = json.loads(stack.make_exec("housing-mlops features get 12-00030").stdout)
    assert found["RM"] == 5.3 and found["event_timestamp"] == "2026-05-01T00:00:00+00:00"
    assert stack.inside("feast", "id", "-u").stdout.strip() == "10001"
    touch = stack.inside("feast", "touch", "/app/x", check=False)
    assert touch.returncode and "Read-only" in touch.stderr
    host = stack.inspect("feast")["HostConfig"]
    assert host["Memory"] == 2**30 and host["CapDrop"] == ["ALL"]
    assert not host["PortBindings"], "it asks nobody for a password"
    shown = ("--no-stream", "--format", "{{.MemUsage}}", stack.container("feast"))
    size = run("docker", "image", "inspect", "-f", "{{.Size}}", f"housing-mlops-feast:{TAG}").stdout
    memory = run("docker", "stats", *shown).stdout.strip()
    NOTES.append(f"feast: {memory} of memory, an image of {int(size) / 1e6:.0f} MB")


@pytest.mark.nightly
@pytest.mark.fault
def test_feast_is_away_and_comes_back_with_what_it_held(stack: Stack, feast: Path) -> None:
    before = stack.inspect("api")["State"]["StartedAt"]
    stack.do(*FEAST, "stop", "feast", env_file=feast)
    status, told = asked(stack)
    assert status == 503 and "Feast" in told["detail"], told
    assert ask(stack.url("api", "/predict"), stack.house)[0] == 200
    checks = ask(stack.url("api", "/health"))[1]["checks"]
    assert checks["feature_store"]["state"] == "degraded", checks
    stack.do(*FEAST, "start", "feast", env_file=feast)
    assert asked(stack)[0] == 503, "it takes some seconds to start, and nobody waits for it"
    until(lambda: priced(stack), 90, "prices again")
    assert ask(stack.url("api", "/health"))[1]["checks"]["feature_store"]["state"] == "healthy"
    assert stack.inspect("api")["State"]["StartedAt"] == before, "the API was not started anew"


@pytest.mark.nightly
@pytest.mark.fault
def test_a_kill_in_mid_load_loses_nothing_that_was_written(
    stack: Stack, feast: Path, tmp_path: Path
) -> None:
    path, before = table(tmp_path / "many.csv", stack.house, 20_000), stack.inspect("feast")
    seen = stack.logs("feast").count("Materializing")

    def kill() -> None:
        until(lambda: stack.logs("feast").count("Materializing") > seen, 90, "it materialises")
        stack.kill("feast")

    killer = threading.Thread(target=kill)
    killer.start()
    told = load(stack, feast, path, JUNE, check=False)
    killer.join()
    assert "taken 20000 of the 20000 rows" in told and "load the file again" in told, told
    until(lambda: priced(stack), 90, "prices again")
    assert stack.inspect("feast")["RestartCount"] > before["RestartCount"]
    get = "housing-mlops features get 12-00099"  # of the hundred, in case the last row came in
    assert "2026-0" in stack.make_exec(get).stdout, "what was said to be written is there"
    assert "20000 rows, 20000 of them written" in load(stack, feast, path, JUNE)
    found = json.loads(stack.make_exec("housing-mlops features get 12-19999").stdout)
    assert found["event_timestamp"] == "2026-06-01T00:00:00+00:00"


@pytest.mark.nightly
def test_a_changed_declaration_and_age_hold_after_a_start(
    stack: Stack, feast: Path, tmp_path: Path
) -> None:
    up = (*FEAST, "up", "-d", "--no-deps", "feast", "api")
    short = {"HOUSING_FEATURE_STORE": "http://feast:6566", "HOUSING_FEATURE_TTL_DAYS": 1}
    stack.do(*up, env_file=settings(stack, **short))
    stack.wait_ready()
    until(lambda: asked(stack)[0] == 404, 90, "the rows are too old")
    assert "days old" in asked(stack)[1]["detail"]
    ttl = "ttl=timedelta(seconds=86400)"
    assert ttl in stack.inside("feast", "cat", "/data/feast/features.py").stdout
    # One more column: rows that are there have nothing in it, and are priced as before.
    (tmp_path / "lit.toml").write_text(LIT)
    put = "import pathlib, sys; pathlib.Path('/data/lit.toml').write_text(sys.argv[1])"
    stack.inside("feast", "python", "-c", put, LIT)
    there = {"HOUSING_FEATURE_STORE": "http://feast:6566"}
    given = settings(stack, **there, HOUSING_DATASET="/data/lit.toml")
    stack.do(*FEAST, "up", "-d", "--no-deps", "feast", env_file=given)
    stack.wait_healthy("feast")
    stack.do("up", "-d", "--no-deps", "api", env_file=settings(stack, **there))
    stack.wait_ready()
    until(lambda: priced(stack), 90, "prices again, with what was loaded before")
    given = settings(stack, **there, HOUSING_DATASET="/data/lit.toml")
    path = table(tmp_path / "lit.csv", stack.house | {"LIGHT": 3.0}, 5)
    mount = ("-v", f"{tmp_path / 'lit.toml'}:/data/lit.toml:ro")
    assert "5 rows, 5 of them written" in load(stack, given, path, "now", *mount)
    assert asked(stack, "12-00004")[0] == 200

"""Whatever answers in the registry's place, a good champion on the shelf serves, and soon."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from registries import ALIAS, FILES, WHERE, Answer, Raw, Registry, in_time, running

from housing_mlops.config import HousingError, Settings
from housing_mlops.model.bundle import INFO, MODEL, REFERENCE
from housing_mlops.registry import fetch
from housing_mlops.registry.fetch import fetch_champion, fetch_version
from housing_mlops.registry.shelf import cached_champion, install_bundle
from housing_mlops.registry.store import bundle_digest, find_version
from housing_mlops.serving.service import ChampionWatch

pytestmark = pytest.mark.fault

OK = b"HTTP/1.1 200 OK\r\n"


def raw(content: bytes) -> Raw:
    """An answer of exactly these bytes, after which the connection ends."""
    return lambda file: file.write(content) and None


FAULTS: dict[str, Callable[[Registry], Answer | Raw]] = {
    "a gateway's 502": lambda _: (502, "<h1>Bad Gateway</h1>"),
    "a page with 200": lambda _: (200, "<title>Sign in</title>"),
    "a proxy's 404": lambda _: (404, "<h1>Not Found</h1>"),
    "an empty object": lambda _: (200, {}),
    "a list": lambda _: (200, []),
    "null": lambda _: (200, "null"),
    "a number too large": lambda _: (200, '{"model_version": ' + "9" * 5_000 + "}"),
    "nested without end": lambda _: (200, "[" * 200_000),
    "no UTF-8": lambda _: (200, b'{"model_version": "\xff\xfe"}'),
    "nothing": lambda _: (200, b""),
    "no answer": lambda _: raw(b""),
    "a cut answer": lambda _: raw(OK + b"Content-Length: 500\r\n\r\n{"),
    "a cut chunk": lambda _: raw(OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{"),
    "another protocol": lambda _: raw(b"220 mail.example.com ESMTP\r\n"),
    "a redirect": lambda r: raw(
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: "
        + f"{r.address}/elsewhere\r\n\r\n".encode()
    ),
    "a header without end": lambda r: r.endless(OK + b"X: "),
    "headers without end": lambda r: r.drip(OK, b"X: y\r\n"),
    "a header byte by byte": lambda r: r.drip(OK + b"X: ", b"x"),
    "a body byte by byte": lambda r: r.drip(OK + b"Content-Length: 9000\r\n\r\n", b" "),
    "an error byte by byte": lambda r: r.drip(b"HTTP/1.1 500 No\r\n\r\n", b" "),
    "a body without end": lambda r: r.endless(OK + b"\r\n"),
    "an error without end": lambda r: r.endless(b"HTTP/1.1 500 No\r\n\r\n"),
    "a body of terabytes": lambda r: r.endless(OK + b"Content-Length: 9999999999999\r\n\r\n"),
    "silence": lambda r: r.wait,
}
PLACES = {"alias": ALIAS, "address": WHERE, "file": f"{FILES}/{MODEL}"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", FAULTS)
def test_a_good_champion_on_the_shelf_serves(
    kind: str, place: str, registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    install_bundle(bundles["LinearRegression"], "1", serving)
    cached = cached_champion(serving)
    registry.hold(bundles["Ridge"], "2")
    registry.answers[PLACES[place]] = FAULTS[kind](registry)
    found = in_time(lambda: fetch_champion(serving))
    assert cached is not None and found is not None
    assert (found.version, found.folder) == ("1", cached.folder)
    assert found.problem and len(found.problem) < 800
    assert cached_champion(serving) == cached
    assert not [path for path, _ in registry.requests if path == "/elsewhere"]
    left = {path.name for path in cached.folder.parent.iterdir()}
    assert left == {cached.folder.name, "champion.json"}


@pytest.mark.parametrize("kind", FAULTS)
def test_without_one_it_is_told_and_not_waited_for(
    kind: str, registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    registry.answers[ALIAS] = FAULTS[kind](registry)
    with pytest.raises(HousingError, match=registry.address):
        in_time(lambda: fetch_champion(serving))


def test_all_that_is_asked_has_one_deadline(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    for name in (REFERENCE, INFO, MODEL):
        content = (bundles["Ridge"] / name).read_bytes()
        registry.answers[f"{FILES}/{name}"] = registry.drip(OK + b"\r\n" + content, b"\n")
    with pytest.raises(HousingError, match="longer than 2 s"):
        in_time(lambda: fetch_champion(serving))
    files = [path for path, _ in registry.requests if path.startswith(FILES)]
    assert len(files) == 1, "the deadline passed in the first, and no other was asked for"


@pytest.mark.parametrize(
    "version", ["../../../x", "..", "/etc/x", "1/../../x", "", ["1"], {"1": 1}, None, True, "1\n"]
)
def test_a_version_that_is_no_number_is_written_nowhere(
    version: object, registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    registry.tell(version, {"bundle": bundle_digest(bundles["Ridge"]), "folder": "Ridge"})
    with pytest.raises(HousingError):
        fetch_champion(serving)
    assert not [*serving.home.iterdir()], "nothing was written"


@pytest.mark.parametrize(
    "tags",
    [
        {"bundle": "../../../../../x", "folder": "Ridge"},
        {"bundle": "", "folder": "Ridge"},
        {"folder": "Ridge"},
        {"bundle": None, "folder": "Ridge"},
        {"bundle": "0" * 64, "folder": "../../../../../secrets"},
        {"bundle": "0" * 64, "folder": ["Ridge"]},
        {"bundle": "0" * 64, "folder": "Ridge?x=1"},
    ],
)
def test_tags_are_no_way_out_of_the_cache(
    tags: dict[str, object], registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    registry.tell("1", tags)
    with pytest.raises(HousingError, match="cannot be"):
        fetch_champion(serving)
    asked = [path for path, _ in registry.requests if "artifacts/" in path]
    assert not asked and not [*serving.home.rglob("*.*")]


@pytest.mark.parametrize(
    "uri",
    [
        *("mlflow-artifacts:/../../1", "mlflow-artifacts:/1/./2", "mlflow-artifacts:relative"),
        *("mlflow-artifacts://elsewhere.example/1", "http://elsewhere.example/1", "http://["),
        *(7, None, ["x"], "", "s3://models/1", "mlflow-artifacts:/1/a\r\nX: y", "/dev/zero\0"),
    ],
)
def test_an_address_of_files_that_is_none_is_told(
    uri: object, registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    install_bundle(bundles["LinearRegression"], "1", serving)
    registry.hold(bundles["Ridge"], "2")
    registry.answers[WHERE] = 200, {"artifact_uri": uri}
    found = fetch_champion(serving)
    assert found is not None and found.version == "1" and found.problem
    assert len(registry.requests) == 2, "nothing was asked for"


def test_a_server_elsewhere_names_no_file_of_this_machine(
    serving: Settings, bundles: dict[str, Path], tmp_path: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    shutil.copytree(bundles["Ridge"], artifacts / "data" / "Ridge")
    for host, taken in {"127.0.0.1": True, "127.0.0.2": False}.items():
        with running(host) as registry:  # the second stands for another machine
            settings = serving.model_copy(
                update={"tracking_uri": registry.address, "model_dir": Path(host)}
            )
            registry.hold(bundles["Ridge"])
            registry.answers[WHERE] = 200, {"artifact_uri": artifacts.as_uri()}
            if taken:
                assert fetch_champion(settings) is not None
            else:
                with pytest.raises(HousingError, match="--serve-artifacts"):
                    fetch_champion(settings)


def test_a_pipe_in_place_of_a_file_holds_nothing_up(
    registry: Registry, serving: Settings, bundles: dict[str, Path], tmp_path: Path
) -> None:
    place = tmp_path / "artifacts" / "data" / "Ridge"
    place.mkdir(parents=True)
    os.mkfifo(place / MODEL)
    registry.hold(bundles["Ridge"])
    registry.answers[WHERE] = 200, {"artifact_uri": str(tmp_path / "artifacts")}
    with pytest.raises(HousingError, match="is no file"):
        in_time(lambda: fetch_champion(serving))


def test_a_large_file_is_refused_by_its_bound(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    registry.answers[f"{FILES}/{MODEL}"] = 200, b"x" * 2_000_001
    with pytest.raises(HousingError, match="larger than 2,000,000 bytes"):
        fetch_champion(serving)
    assert not [*serving.home.rglob(MODEL)]


def test_a_registry_without_a_champion_stops_no_restart(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    install_bundle(bundles["Ridge"], "1", serving)
    code = "RESOURCE_DOES_NOT_EXIST"
    registry.answers[ALIAS] = 404, {"error_code": code, "message": "no such model"}
    found = fetch_champion(serving)
    assert found is not None and found.version == "1" and "has no champion" in found.problem


@pytest.mark.parametrize("name", [MODEL, REFERENCE, INFO])
@pytest.mark.parametrize("how", ["changed", "emptied", "lost", "a folder"])
def test_a_damaged_bundle_is_fetched_anew(
    name: str, how: str, registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    first = fetch_champion(serving)
    assert first is not None
    damage(first.folder / name, how)
    again = fetch_champion(serving)
    assert again == first and not again.problem
    for file in bundles["Ridge"].iterdir():
        assert (again.folder / file.name).read_bytes() == file.read_bytes()
    assert {path.name for path in again.folder.parent.iterdir()} == {
        again.folder.name,
        "champion.json",
    }


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "changed":  # JSON stays JSON, and of the same form
        path.write_bytes(content.replace(b"Ridge", b"Lasso") + (b"" if path.name == INFO else b" "))
    elif how == "emptied":
        path.touch()
    elif how == "a folder":
        path.mkdir()


def test_a_promotion_mends_a_damaged_bundle(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    place = fetch_version("1", serving)
    damage(place / INFO, "changed")
    assert fetch_version("1", serving) == place
    assert bundle_digest(place) == bundle_digest(bundles["Ridge"])


def test_a_damaged_champion_does_not_serve_while_the_registry_is_away(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    damage(install_bundle(bundles["Ridge"], "1", serving) / INFO, "changed")
    registry.answers[ALIAS] = 502, "<h1>Bad Gateway</h1>"
    for settings in (serving, serving.model_copy(update={"tracking_uri": "sqlite:///mlflow.db"})):
        with pytest.raises(HousingError, match="is damaged"):
            fetch_champion(settings)


def test_a_pointer_that_leads_elsewhere_is_none(
    serving: Settings, bundles: dict[str, Path], tmp_path: Path
) -> None:
    installed = install_bundle(bundles["Ridge"], "1", serving)
    pointer = installed.parent / "champion.json"
    for folder in ("../../elsewhere", "/etc", ["x"], None, ""):
        pointer.write_text(json.dumps({"version": "1", "folder": folder}))
        assert cached_champion(serving) is None


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """A block in which nothing below `folder` can be written, by root either."""

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    real = fetch.replace_folder
    patch = pytest.MonkeyPatch()
    patch.setattr(
        fetch,
        "replace_folder",
        lambda path: refuse(path) if path.is_relative_to(folder) else real(path),
    )
    patch.setattr(fetch, "point_to", lambda version, path, settings: refuse(path), raising=False)
    try:
        yield
    finally:
        patch.undo()


def test_a_shelf_that_cannot_be_written_is_worked_round(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["LinearRegression"])
    watch = ChampionWatch(serving)
    first = watch.load()
    registry.hold(bundles["Ridge"], "2")
    with unwritable(serving.home):
        second = watch.load()
        assert first is not None and second is not None
        assert (second.version, watch.registry.state, watch.problem) == ("2", "degraded", "")
        assert "temporary folder" in watch.registry.detail
        requests = len(registry.requests)
        assert watch.load() is None and len(registry.requests) == requests + 2, "it is kept"
        registry.answers[ALIAS] = 502, "<h1>Bad Gateway</h1>"
        assert watch.load() is None, "the older one on the shelf does not come back"
    cached = cached_champion(serving)
    assert cached is not None and cached.version == "1"
    registry.hold(bundles["LinearRegression"], "3")
    third = watch.load()
    assert third is not None and third.version == "3" and watch.registry.state == "healthy"


def test_an_empty_shelf_that_cannot_be_written_serves_too(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    watch = ChampionWatch(serving.model_copy(update={"model_dir": Path("/dev/null")}))
    model = watch.load()
    assert model is not None and model.version == "1"
    assert watch.registry.state == "degraded" and "/dev/null" in watch.registry.detail


def test_a_pointer_that_cannot_be_written_is_told(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    installed = install_bundle(bundles["LinearRegression"], "1", serving)
    (installed.parent / "champion.json").unlink()
    (installed.parent / "champion.json").mkdir()
    registry.hold(bundles["Ridge"], "2")
    found = fetch_champion(serving)
    assert found is not None and found.version == "2" and "cannot be written" in found.problem


def test_a_login_reaches_its_server_and_no_other(
    registry: Registry, serving: Settings, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    registry.hold(bundles["Ridge"])
    assert fetch_champion(serving) is not None
    assert {login for _, login in registry.requests} == {"Bearer s3cret"}
    with running() as other:
        other.hold(bundles["Ridge"])
        where = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {other.address}{ALIAS}\r\n"
        registry.answers[ALIAS] = raw(where.encode() + b"Content-Length: 0\r\n\r\n")
        found = fetch_champion(serving)
        assert found is not None and other.address in found.problem
        registry.hold(bundles["Ridge"], "2")
        uri = f"mlflow-artifacts://{other.address.removeprefix('http://')}/1"
        registry.answers[WHERE] = 200, {"artifact_uri": uri}
        assert fetch_champion(serving) is not None
        assert not other.requests


def test_mlflows_own_client_takes_no_login_elsewhere(
    registry: Registry, serving: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    with running("127.0.0.2") as other:
        where = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {other.address}{ALIAS}\r\n"
        registry.answers[ALIAS] = raw(where.encode() + b"Content-Length: 0\r\n\r\n")
        with pytest.raises(HousingError):
            find_version(serving, "champion")
        assert registry.requests[0][1] == "Bearer s3cret"
        assert not [login for _, login in other.requests if login]


def test_a_login_in_the_address_is_used(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    registry.hold(bundles["Ridge"])
    address = registry.address.replace("://", "://me:s3%2Fcret@")
    found = fetch_champion(serving.model_copy(update={"tracking_uri": address}))
    assert found is not None and not found.problem
    assert {login for _, login in registry.requests} == {"Basic bWU6czMvY3JldA=="}


def test_a_token_that_no_header_may_hold_is_told_and_not_shown(
    serving: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret\n")
    with pytest.raises(HousingError, match="MLFLOW_TRACKING_TOKEN") as raised:
        fetch_champion(serving)
    assert "s3cret" not in str(raised.value)


def test_what_a_stranger_says_is_short_and_printable(registry: Registry, serving: Settings) -> None:
    message = "\ud800\x1b[2J" + "x" * 100_000
    registry.answers[ALIAS] = 403, {"error_code": "PERMISSION_DENIED", "message": message}
    with pytest.raises(HousingError, match="PERMISSION_DENIED") as raised:
        fetch_champion(serving)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 600


def test_a_start_whose_champion_is_damaged_has_the_time_that_a_fetch_needs(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    damage(install_bundle(bundles["LinearRegression"], "1", serving) / MODEL, "changed")
    registry.hold(bundles["Ridge"], "2")
    graph = (bundles["Ridge"] / MODEL).read_bytes()

    def late(file: BinaryIO) -> None:
        registry.over.wait(1)
        file.write(OK + b"\r\n" + graph)

    registry.answers[f"{FILES}/{MODEL}"] = late
    watch = ChampionWatch(
        serving.model_copy(update={"registry_timeout_s": 0.5, "registry_deadline_s": 60})
    )
    model = watch.load()
    assert model is not None and model.version == "2", watch.problem


def test_a_start_with_a_champion_waits_no_longer_than_for_one_answer(
    registry: Registry, serving: Settings, bundles: dict[str, Path]
) -> None:
    install_bundle(bundles["LinearRegression"], "1", serving)
    registry.hold(bundles["Ridge"], "2")
    registry.answers[f"{FILES}/{MODEL}"] = registry.drip(OK + b"\r\n", b" ")
    patient = serving.model_copy(update={"registry_deadline_s": 3600})
    watch = ChampionWatch(patient)
    model = in_time(watch.load)
    assert model is not None and model.version == "1" and watch.registry.state == "degraded"

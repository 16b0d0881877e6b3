"""The table: the embedded copy against another, Kaggle's client against a local server, files."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlxtend.data import boston_housing_data

from housing_mlops.config import Settings
from housing_mlops.data.table import (
    DataError,
    Table,
    download,
    load_table,
    read_file,
    split,
    validate,
)
from housing_mlops.schema import load_dataset

BOSTON = load_dataset("boston")


def test_the_embedded_table_is_the_one_that_mlxtend_ships(table: Table) -> None:
    X, y = boston_housing_data()
    assert np.array_equal(table.features.to_numpy(), X)
    assert np.array_equal(table.prices.to_numpy(), y)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_path_wins_and_the_format_changes_nothing(
    table: Table, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"homes.{suffix}"
    shuffled = table.frame[table.frame.columns[::-1]]
    shuffled.to_csv(path, index=False) if suffix == "csv" else shuffled.to_parquet(path)
    found = load_table(BOSTON, Settings(data_path=path, data_source="kaggle"))
    assert found.fingerprint == table.fingerprint
    assert found.origin == str(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "No table at"),
        ("table.xlsx", b"", "neither .csv nor .parquet"),
        ("bad.parquet", b"not parquet", "cannot be read as a table"),
        ("bad.csv", b"\xff\xfe\x00", "cannot be read as a table"),
        ("empty.csv", b"", "cannot be read as a table"),
        ("header.csv", b"CRIM,POOL\n1,2\n", "missing: ZN"),
    ],
)
def test_a_file_that_is_no_table_is_named(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_table(BOSTON, Settings(data_path=tmp_path / name))


def test_a_header_alone_is_no_table(table: Table, tmp_path: Path) -> None:
    table.frame.head(0).to_csv(tmp_path / "head.csv", index=False)
    with pytest.raises(DataError, match="no row"):
        load_table(BOSTON, Settings(data_path=tmp_path / "head.csv"))


def test_a_changed_embedded_file_is_refused(tmp_path: Path) -> None:
    moved = BOSTON.model_copy(update={"folder": tmp_path})
    (tmp_path / "boston.csv").write_text("CRIM\n1\n")
    with pytest.raises(DataError, match="was changed"):
        load_table(moved)
    with pytest.raises(DataError, match="no embedded table"):
        load_table(BOSTON.model_copy(update={"folder": None}))


def test_categories_are_held_to_their_list() -> None:
    town = {"name": "town", "type": "category", "categories": ["north", "south"], "example": "n"}
    from housing_mlops.schema import parse

    towns = parse({**BOSTON.model_dump(), "features": [town], "exclude": []})
    raw = pd.DataFrame({"town": ["north", "west", None], "MEDV": ["1", "2", "3"]})
    with pytest.raises(DataError, match=r"row 2, town = west: one of north, south") as caught:
        validate(towns, raw)
    assert "row 3, town" in str(caught.value)
    open_list = parse({**BOSTON.model_dump(), "features": [{**town, "categories": []}]})
    assert len(validate(open_list, raw.head(2))) == 2


def test_a_split_that_leaves_nothing_is_refused(table: Table) -> None:
    with pytest.raises(DataError, match="does not divide"):
        split(table, 0.9999, 0)


class Kaggle(BaseHTTPRequestHandler):
    """The two calls that Kaggle's client makes for a file of a data set."""

    stalled = threading.Event()  # set: never answer
    ended = threading.Event()  # set: no use to be silent any longer
    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).asked += 1
        if self.stalled.is_set():
            self.ended.wait(30)
        elif self.path.endswith("/GetDataset"):
            said = {"ownerName": "a", "currentVersionNumber": 1, "ref": "a/b"}
            self.reply(json.dumps(said).encode(), "application/json")
        elif self.path.endswith("/DownloadDataset"):
            assert BOSTON.folder is not None and BOSTON.source.embedded is not None
            frame = read_file(BOSTON.folder / BOSTON.source.embedded)
            frame.loc[:19, "LSTAT"] = "NA"
            self.reply(frame.to_csv(index=False).encode(), "text/csv")
        else:
            self.send_error(404)

    do_GET = do_POST

    def reply(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Kaggle]]:
    """A stand-in for Kaggle where its client looks in a test: port 7777 of this machine."""
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    server = ThreadingHTTPServer(("127.0.0.1", 7777), Kaggle)
    Kaggle.ended.clear()
    Kaggle.stalled.clear()
    Kaggle.asked = 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Kaggle
    Kaggle.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_kaggles_table_is_downloaded_once_and_keeps_its_gaps(
    kaggle: type[Kaggle], table: Table, tmp_path: Path
) -> None:
    settings = Settings(data_source="kaggle", data_cache=tmp_path, data_strict=True)
    found = load_table(BOSTON, settings)
    assert found.origin == "Kaggle altavish/boston-housing-dataset/versions/1"
    assert found.features["LSTAT"].isna().sum() == 20
    assert found.fingerprint != table.fingerprint
    asked = kaggle.asked
    assert load_table(BOSTON, settings).fingerprint == found.fingerprint
    assert kaggle.asked == asked, "the second time it comes from the cache"


def test_a_silent_kaggle_is_given_up(
    kaggle: type[Kaggle], table: Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kaggle.stalled.set()
    settings = Settings(data_source="kaggle", data_cache=tmp_path, data_timeout_s=6)
    assert load_table(BOSTON, settings).fingerprint == table.fingerprint
    assert "sent no altavish" in caplog.text and "Falling back" in caplog.text
    assert kaggle.asked, "the time limit has to cover a real request"


def test_without_a_handle_there_is_no_download(tmp_path: Path) -> None:
    source = BOSTON.source.model_copy(update={"kaggle": None})
    with pytest.raises(DataError, match="no Kaggle handle"):
        download(BOSTON.model_copy(update={"source": source}), Settings(data_cache=tmp_path))

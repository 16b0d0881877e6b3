"""Where a table comes from: files, the embedded copy, Kaggle's client against a local server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from processes import until

from housing_mlops.config import Settings
from housing_mlops.data.sources import DataError, download, read_file
from housing_mlops.data.table import Table, load_table
from housing_mlops.schema import load_dataset

BOSTON = load_dataset("boston")


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
    ("name", "content", "message"),
    [
        ("none.csv", None, "No table at"),
        ("table.xlsx", b"", "neither .csv nor .parquet"),
        ("bad.parquet", b"not parquet", "cannot be read as a table"),
        ("bad.csv", b"\xff\xfe\x00", "not UTF-8"),
        ("empty.csv", b"", "cannot be read as a table"),
        ("header.csv", b"CRIM,POOL\n1,2\n", "missing: ZN"),
    ],
)
def test_a_file_that_is_no_table_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_table(BOSTON, Settings(data_path=tmp_path / name))


def test_a_changed_embedded_file_is_refused(tmp_path: Path) -> None:
    moved = BOSTON.model_copy(update={"folder": tmp_path})
    with pytest.raises(DataError, match="No table at"):
        load_table(moved)
    (tmp_path / "boston.csv").write_text("CRIM\n1\n")
    with pytest.raises(DataError, match="was changed"):
        load_table(moved)
    with pytest.raises(DataError, match="no embedded table"):
        load_table(BOSTON.model_copy(update={"folder": None}))


class Kaggle(BaseHTTPRequestHandler):
    """The two calls that Kaggle's client makes for a file of a data set."""

    stalled = threading.Event()  # set: never answer
    ended = threading.Event()  # set: no use to be silent any longer
    requests = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).requests += 1
        if self.stalled.is_set():
            self.ended.wait(30)
        elif self.path.endswith("/GetDataset"):
            about = {"ownerName": "a", "currentVersionNumber": 1, "ref": "a/b"}
            self.reply(json.dumps(about).encode(), "application/json")
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
    # the port is one for all tests of this machine, those of another run too
    server = until(lambda: ThreadingHTTPServer(("127.0.0.1", 7777), Kaggle), what="port 7777")
    Kaggle.ended.clear()
    Kaggle.stalled.clear()
    Kaggle.requests = 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Kaggle
    Kaggle.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.process
def test_kaggles_table_is_downloaded_once_and_keeps_its_gaps(
    kaggle: type[Kaggle], table: Table, tmp_path: Path
) -> None:
    settings = Settings(data_source="kaggle", data_cache=tmp_path, data_strict=True)
    found = load_table(BOSTON, settings)
    assert found.origin == "Kaggle altavish/boston-housing-dataset/versions/1"
    assert found.features["LSTAT"].isna().sum() == 20
    assert found.fingerprint != table.fingerprint
    requests = kaggle.requests
    assert load_table(BOSTON, settings).fingerprint == found.fingerprint
    assert kaggle.requests == requests, "the second time it comes from the cache"


@pytest.mark.process
def test_a_silent_kaggle_is_given_up(
    kaggle: type[Kaggle], table: Table, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kaggle.stalled.set()
    settings = Settings(data_source="kaggle", data_cache=tmp_path, data_timeout_s=6)
    assert load_table(BOSTON, settings).fingerprint == table.fingerprint
    assert "sent no altavish" in caplog.text and "Falling back" in caplog.text
    assert kaggle.requests, "the time limit has to cover a real request"


def test_without_a_handle_there_is_no_download(tmp_path: Path) -> None:
    source = BOSTON.source.model_copy(update={"kaggle": None})
    with pytest.raises(DataError, match="no Kaggle handle"):
        download(BOSTON.model_copy(update={"source": source}), Settings(data_cache=tmp_path))

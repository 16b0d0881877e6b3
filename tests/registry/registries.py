"""A small HTTP server in MLflow's place: it answers as MLflow does, or in any other way."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

from housing_mlops.registry.store import bundle_digest

API = "/api/2.0/mlflow"
ALIAS = f"{API}/registered-models/alias"
VERSION = f"{API}/model-versions/get"
WHERE = f"{API}/model-versions/get-download-uri"
FILES = "/api/2.0/mlflow-artifacts/artifacts/1/models/m/artifacts/data/Ridge"

T = TypeVar("T")
Answer = tuple[int, object]
Raw = Callable[[BinaryIO], None]  # writes what it likes


@dataclass
class Registry:
    """Answers by path, and the requests that came."""

    answers: dict[str, Answer | Raw] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""
    cut: bool = False  # whether an answer breaks off in the middle
    over: threading.Event = field(default_factory=threading.Event)  # the test is

    def hold(self, bundle: Path, version: str = "1") -> None:
        """Have `bundle` be the champion, as a server with proxied artifacts tells it."""
        self.tell(version, {"bundle": bundle_digest(bundle), "folder": "Ridge"})
        self.answers[WHERE] = 200, {"artifact_uri": "mlflow-artifacts:/1/models/m/artifacts"}
        for path in bundle.iterdir():
            self.answers[f"{FILES}/{path.name}"] = 200, path.read_bytes()

    def tell(self, version: object, tags: dict[str, object]) -> None:
        """Have `version` be the champion, whatever that is."""
        listed = [{"key": key, "value": value} for key, value in tags.items()]
        about = {"name": "housing", "version": version, "tags": listed}
        self.answers |= {ALIAS: (200, {"model_version": about})}
        self.answers |= {VERSION: self.answers[ALIAS]}

    def drip(self, start: bytes, byte: bytes) -> Raw:
        """An answer that begins with `start` and goes on byte by byte for as long as the test."""

        def write(file: BinaryIO) -> None:
            file.write(start)
            while not self.over.wait(0.05):
                file.write(byte)
                file.flush()

        return write

    def endless(self, start: bytes) -> Raw:
        """An answer that begins with `start` and never ends."""

        def write(file: BinaryIO) -> None:
            file.write(start)
            while not self.over.is_set():
                file.write(b"x" * 60_000 + b"\r\n")

        return write

    def wait(self, _: BinaryIO) -> None:
        """No answer, for as long as the test."""
        self.over.wait()


@contextmanager
def running(host: str = "127.0.0.1") -> Iterator[Registry]:
    """A server on this machine that answers as it is told to."""
    told = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.requests.append((self.path, self.headers["Authorization"]))
            answer = told.answers.get(urlsplit(self.path).path, (404, "<h1>Nothing</h1>"))
            try:
                if callable(answer):
                    answer(self.wfile)
                else:
                    self.reply(*answer)
            except OSError:
                pass  # who asked has gone

        def reply(self, status: int, content: object) -> None:
            if not isinstance(content, bytes):
                text = content if isinstance(content, str) else json.dumps(content)
                content = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) + told.cut))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    told.address = f"http://{host}:{server.server_port}"
    try:
        yield told
    finally:
        told.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def in_time(job: Callable[[], T], patience_s: float = 30) -> T:
    """What `job` returns or raises; the test fails when it does not end."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(job())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    late = time.monotonic() + patience_s
    while thread.is_alive() and time.monotonic() < late:
        thread.join(0.05)
    assert not thread.is_alive(), "it waits and waits"
    if raised:
        raise raised[0]
    return found[0]

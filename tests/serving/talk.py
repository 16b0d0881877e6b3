"""An API behind a real uvicorn, and HTTP as bytes: what tests of connections share."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from houses import BODY
from processes import until

from housing_mlops.config import Settings
from housing_mlops.serving.api import create_app
from housing_mlops.serving.fast_path import PriceQueue
from housing_mlops.serving.gateway import HousingAPI
from housing_mlops.serving.server import http_protocol
from housing_mlops.serving.service import Service

Answer = tuple[int, dict[bytes, bytes], bytes]


class Api:
    """An application behind uvicorn and its protocol; counts what became a task of the loop."""

    def __init__(self, app: HousingAPI, http: str) -> None:
        self.app, self.tasks = app, 0
        config = uvicorn.Config(self, http=http, port=0, log_level="warning", access_log=False)
        self.server = uvicorn.Server(config)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.tasks += scope["type"] == "http"
        await self.app(scope, receive, send)

    @property
    def service(self) -> Service:
        return self.app.service

    @property
    def prices(self) -> PriceQueue:
        return self.app.prices

    def talk(
        self, *parts: bytes, between: Callable[[], bool] | None = None, in_turn: bool = False
    ) -> list[Answer]:
        """The answers to `parts` on one connection, each sent once `between` holds, or answered."""
        port = self.server.servers[0].sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            end, received, wanted = time.monotonic() + 20, b"", 0
            for i, part in enumerate(parts):
                while i and between and not between():
                    assert time.monotonic() < end
                    time.sleep(0.001)
                line.sendall(part)
                wanted += part.count(b" HTTP/1.")
                while in_turn and len(answers(received)) < wanted and (more := line.recv(1 << 16)):
                    received += more
            while len(found := answers(received)) < wanted and (more := line.recv(1 << 16)):
                received += more
        return found


def answers(received: bytes) -> list[Answer]:
    """The whole answers in what a server sent; one that goes on (100) is none."""
    found = []
    while match := re.match(rb"HTTP/1.1 (\d+) .*?\r\n(.*?\r\n)??\r\n", received, re.DOTALL):
        lines = [line.split(b": ", 1) for line in (match[2] or b"").split(b"\r\n") if line]
        headers = {name.lower(): value for name, value in lines}
        length, received = int(headers.get(b"content-length", 0)), received[match.end() :]
        if match[1] != b"100":
            if len(received) < length:
                break
            found.append((int(match[1]), headers, received[:length]))
        received = received[length:]
    return found


def post(
    body: bytes = BODY, *headers: bytes, path: bytes = b"/predict", http: str = "1.1"
) -> bytes:
    first = b"POST %b HTTP/%b" % (path, http.encode())
    own = [b"Host: x", b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([first, *own, *headers, b"", body])


@contextmanager
def running(home: Path, http: str = "", **values: Any) -> Iterator[Api]:
    api = Api(create_app(Settings(home=home, **values)), http or http_protocol())
    thread = threading.Thread(target=api.server.run)
    thread.start()
    try:
        until(lambda: api.server.started or not thread.is_alive())
        yield api
    finally:
        api.server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()

"""Write each alert that Alertmanager sends as a line of JSON: a receiver to look at.

usage: python pager.py [PORT]    listen on PORT (9095), on all addresses, until SIGTERM
"""

import json
import signal
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOST = 1_000_000  # bytes of a message
LEVELS = {"critical": "critical", "warning": "warning"}


def lines(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each alert of a message of Alertmanager's."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return [
        {
            "time": now,
            "level": LEVELS.get(one["labels"].get("severity", ""), "info"),
            "logger": "pager",
            "status": one["status"],
            "alert": one["labels"].get("alertname", ""),
            "message": one["annotations"].get("summary", ""),
            "runbook": one["annotations"].get("runbook", ""),
            "since": one["startsAt"],
            "labels": one["labels"],
        }
        for one in message["alerts"]
    ]


class Pager(BaseHTTPRequestHandler):
    """Takes what Alertmanager sends."""

    timeout = 10

    def do_POST(self) -> None:
        """Write a line for each alert."""
        try:
            length = int(self.headers["Content-Length"])
            if not 0 <= length <= MOST:
                raise ValueError(f"a message of {length} bytes")
            found = lines(json.loads(self.rfile.read(length)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.answer(400, f"no message of Alertmanager's: {error!r}")
            return
        for line in found:
            print(json.dumps(line), flush=True)
        self.answer(200, "written")

    def do_GET(self) -> None:
        """Say that it runs."""
        self.answer(200, "alerts are written to standard output")

    def answer(self, status: int, text: str) -> None:
        """Answer with a line of text."""
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode()) + 1))
        self.end_headers()
        self.wfile.write(text.encode() + b"\n")

    def log_message(self, format: str, *args: object) -> None:
        """A request is no news."""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer(("", int(sys.argv[1]) if sys.argv[1:] else 9095), Pager).serve_forever()

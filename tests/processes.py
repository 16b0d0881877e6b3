"""What tests of processes share: the project's folder, a free port, a patient look, a request."""

import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(
    holds: Callable[[], Any],  # what is waited for; a connection that fails is no answer yet
    patience_s: float = 60,  # how long; a machine under load is waited for long
    what: str = "",  # what to say when it never comes
) -> Any:
    """The first true answer of `holds`; the test fails once patience has run out."""
    end = time.monotonic() + patience_s
    found: object = None
    while time.monotonic() < end:
        try:
            if found := holds():
                return found
        except (OSError, http.client.HTTPException) as error:
            found = error
        time.sleep(0.02)
    raise AssertionError(
        f"{what or 'what was waited for'}: not within {patience_s:g} s ({found!r})"
    )


def ask(
    url: str,  # of a server on this machine
    body: Any = None,  # sent as JSON by POST; None: GET
    headers: Mapping[str, str] | None = None,  # beside the content type
) -> tuple[int, Any]:
    """The status and the body of an answer, parsed when it is JSON."""
    data = None if body is None else json.dumps(body).encode()
    kind = {"Content-Type": "application/json"} if data else {}
    request = urllib.request.Request(url, data, {**kind, **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    return status, json.loads(text) if text.startswith(("{", "[")) else text

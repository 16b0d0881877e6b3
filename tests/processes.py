"""What tests of processes share: the project's folder, a free port, a patient look, a request."""

import http.client
import itertools
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Below those that Linux gives to clients (from 32768), so that no connection takes one before its
# server does; processes that run beside each other begin at different ones.
PORTS = itertools.cycle(12_000 + (os.getpid() * 37 + n) % 20_000 for n in range(20_000))


def free_port() -> int:
    """A port that nobody listens on, and that this process has not given out before."""
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("ports come without end")


def until(
    holds: Callable[[], Any],  # what is waited for; a connection that fails is no answer yet
    patience_s: float = 60,  # how long; a machine under load is waited for long
    what: str = "",  # what to say when it never comes
) -> Any:
    """The first true answer of `holds`; the test fails once patience has run out."""
    waited, begun = 0.0, time.monotonic()
    found: object = None
    while waited < patience_s:
        try:
            if found := holds():
                return found
        except (OSError, http.client.HTTPException) as error:
            found = error
        time.sleep(min(0.02 + waited / 20, 0.5))  # the longer it takes, the less often
        waited = time.monotonic() - begun
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

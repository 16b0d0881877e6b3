"""Ask the proxy about its APIs, and take some of them out of its sight before they end.

usage: python servers.py up ADDRESS ...       wait until each is ready
       python servers.py drain ADDRESS ...    no new request to these; wait until the last answer is given
       python servers.py release ADDRESS ...  wait until they are gone; their places are free again
"""

import csv
import socket
import sys
import time
from collections.abc import Callable

SOCKET = "/tmp/haproxy.sock"
PATIENCE_S = {"up": 180.0, "drain": 60.0, "release": 60.0}


def ask(command: str) -> str:
    """HAProxy's answer to a command of its administrator."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(SOCKET)
        connection.sendall(f"{command}\n".encode())
        parts = iter(lambda: connection.recv(65536), b"")
        return b"".join(parts).decode()


def servers(addresses: list[str]) -> list[dict[str, str]]:
    """The places in either backend that stand for one of `addresses`; none is named: all places."""
    lines = ask("show stat -1 4 -1").removeprefix("# ").strip().splitlines()
    places = csv.DictReader(lines)
    return [p for p in places if not addresses or p["addr"].rpartition(":")[0] in addresses]


def wait(holds: Callable[[], bool], patience_s: float) -> bool:
    """Whether it held before patience ran out."""
    end = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def main(command: str, addresses: list[str]) -> int:
    """0 when it came to be; 1 when it took too long."""
    if command == "up":

        def holds() -> bool:
            ready = [s for s in servers(addresses) if s["pxname"] == "ready"]
            up = {s["addr"].rpartition(":")[0] for s in ready if s["status"].startswith("UP")}
            return up == set(addresses)

        return not wait(holds, PATIENCE_S[command])
    if command == "drain":
        for server in servers(addresses):
            ask(f"set server {server['pxname']}/{server['svname']} state drain")
        return not wait(
            lambda: all(s["scur"] == "0" for s in servers(addresses)), PATIENCE_S[command]
        )
    gone = wait(
        lambda: not any(s["status"].startswith(("UP", "DRAIN")) for s in servers(addresses)),
        PATIENCE_S[command],
    )
    # The next one that gets a place is not to inherit what the last one was told.
    for server in servers([]):
        ask(f"set server {server['pxname']}/{server['svname']} state ready")
    return not gone


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in PATIENCE_S:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))

"""Judge drift and write the report, at start and then every MONITOR_INTERVAL_S seconds (3600).

usage: python monitor.py           run until SIGTERM; what is found goes to standard output as JSON lines
       python monitor.py --check   exit 0 when the last round is no older than two intervals (a health check)

A check that fails is told and tried again in the next round: what it watches may be starting.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

INTERVAL = float(os.environ.get("MONITOR_INTERVAL_S") or 3600)
RETRY = 30.0  # seconds until a round that failed is tried again
PULSE = Path(os.environ.get("MONITOR_PULSE", "/tmp/monitor.pulse"))  # touched after every round


def say(level: str, check: str, message: str) -> None:
    """Print one JSON line."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": now, "level": level, "logger": "monitor", "check": check, "message": message}
    print(json.dumps(line), flush=True)


def command(check: str) -> list[str]:
    """What runs the check; of the reports, the last of each day is kept."""
    day = f"reports/{datetime.now(UTC):%Y-%m-%d}"
    more = {"drift": [], "report": ["--out", day]}
    return ["housing-mlops", check, *more[check]]


def run(check: str) -> bool:
    """Whether the check could be made; its result is printed."""
    try:
        done = subprocess.run(
            command(check), capture_output=True, text=True, timeout=600, check=False
        )
    except subprocess.TimeoutExpired:
        say("warning", check, "did not end within 600 s")
        return False
    said = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()
    found = done.returncode == 0
    alarm = check == "drift" and found and said.startswith("drift")
    lines = said.splitlines() or [f"exit {done.returncode}"]
    first = lines[0] if check == "drift" or not found else lines[-1]
    say("info" if found and not alarm else "warning", check, first)
    return found


def main() -> None:
    """Run the checks until a signal comes."""
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    say("info", "start", f"drift and report every {INTERVAL:g} s")
    while not done.is_set():
        fine = run("drift") and run("report")
        PULSE.touch()
        done.wait(INTERVAL if fine else min(RETRY, INTERVAL))


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(time.time() - PULSE.stat().st_mtime > 2 * INTERVAL + 600)
    main()

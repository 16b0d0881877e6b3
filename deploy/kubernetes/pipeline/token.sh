#!/usr/bin/env bash
# For kubectl: a token that says which repository, environment and job is asking. GitHub signs it, and it lives for
# minutes; kubectl asks again when it has run out. The job needs `permissions: id-token: write`.
set -euo pipefail
: "${ACTIONS_ID_TOKEN_REQUEST_URL:?is not set: the job needs the permission id-token: write}"
curl -sSf --max-time 20 -H "Authorization: bearer ${ACTIONS_ID_TOKEN_REQUEST_TOKEN:?}" \
  "$ACTIONS_ID_TOKEN_REQUEST_URL&audience=${KUBE_AUDIENCE:-housing-mlops}" |
  python3 -c '
import base64, datetime, json, sys
token = json.load(sys.stdin)["value"]
body = token.split(".")[1]
ends = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["exp"]
until = datetime.datetime.fromtimestamp(ends, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
status = {"token": token, "expirationTimestamp": until}
print(json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}))'

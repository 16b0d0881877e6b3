#!/bin/bash
# Two databases, each with an owner of its own; run once, when the server's folder is empty.
set -euo pipefail
: "${MLFLOW_DB_PASSWORD:?}" "${PREDICTIONS_DB_PASSWORD:?}"
for pair in "mlflow:$MLFLOW_DB_PASSWORD" "housing:$PREDICTIONS_DB_PASSWORD"; do
  psql -q -v ON_ERROR_STOP=1 -v name="${pair%%:*}" -v password="${pair#*:}" -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name" TEMPLATE template0 ENCODING 'UTF8';
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done

#!/bin/bash
# Start PostgreSQL with the passwords that `secrets` keeps, and give them to the roles at every start: what stands
# in the files is what holds, whatever became of the database or of them meanwhile.
set -euo pipefail
kept=/run/passwords done=/tmp/passwords-are-set
rm -f "$done"
# For the first start; databases.sh reads the last two.
POSTGRES_PASSWORD=$(cat "$kept/postgres") MLFLOW_DB_PASSWORD=$(cat "$kept/mlflow")
PREDICTIONS_DB_PASSWORD=$(cat "$kept/housing")
export POSTGRES_PASSWORD MLFLOW_DB_PASSWORD PREDICTIONS_DB_PASSWORD

set_passwords() {
  until pg_isready -q -h 127.0.0.1 -U postgres; do sleep 0.2; done
  psql -q -v ON_ERROR_STOP=1 -U postgres -d postgres <<'SQL'
\set password `cat /run/passwords/mlflow`
ALTER ROLE mlflow PASSWORD :'password';
\set password `cat /run/passwords/housing`
ALTER ROLE housing PASSWORD :'password';
\set password `cat /run/passwords/postgres`
ALTER ROLE postgres PASSWORD :'password';
SQL
  touch "$done"
}

set_passwords &
exec docker-entrypoint.sh postgres

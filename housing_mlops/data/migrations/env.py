"""How Alembic runs the migrations: on the connection that `feature_store.migrate` hands over."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="features_alembic_version",  # the prediction log and MLflow may lie beside it
)
with context.begin_transaction():
    context.run_migrations()

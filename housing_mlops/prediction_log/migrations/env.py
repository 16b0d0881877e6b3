"""How Alembic runs the migrations: on the connection that `database.migrate` hands over."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="housing_alembic_version",  # MLflow keeps one of the usual name
)
with context.begin_transaction():
    context.run_migrations()

"""The identifier of this database, by which journals know it wherever it moves."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table, and the one row of it."""
    table = op.create_table("log_identity", sa.Column("id", sa.String(36), primary_key=True))
    op.bulk_insert(table, [{"id": str(uuid4())}])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("log_identity")

"""Every version of what is known of a house."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "feature_rows",
        sa.Column("view", sa.String(64), primary_key=True),
        sa.Column("house_id", sa.String(64), primary_key=True),
        sa.Column("event_us", sa.BigInteger, primary_key=True),
        sa.Column("created_us", sa.BigInteger, primary_key=True),
        sa.Column("features", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("feature_rows")

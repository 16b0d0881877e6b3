"""Which version became champion, when, by whom and why."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table; what was moved before is known to nobody."""
    key = sa.String(36).with_variant(sa.String(36, collation="C"), "postgresql")
    op.create_table(
        "moves",
        sa.Column("id", key, primary_key=True),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("version_from", sa.Text),
        sa.Column("version_to", sa.Text),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("forced", sa.Boolean, nullable=False),
        sa.Column("verdict", sa.JSON),
    )
    op.create_index("moves_time", "moves", ["model", "time_us", "id"])


def downgrade() -> None:
    """Drop it; MLflow has most of it too."""
    op.drop_table("moves")

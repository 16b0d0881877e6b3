"""Who reported an actual price, and every decision about training anew."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column, of which nobody knows what it was before, and make the table."""
    op.add_column("feedback", sa.Column("source", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "decisions",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("act", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("ended_us", sa.BigInteger),
        sa.Column("run_id", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("promoted", sa.Boolean),
        sa.Column("verdict", sa.Text),
    )
    op.create_index("decisions_time", "decisions", ["time_us", "id"])


def downgrade() -> None:
    """Drop both."""
    op.drop_index("decisions_time", "decisions")
    op.drop_table("decisions")
    op.drop_column("feedback", "source")

"""The judgements that all workers tell."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "judgements",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("model_version", sa.Text, primary_key=True),
        sa.Column("claimed_us", sa.BigInteger, nullable=False),
        sa.Column("judged_us", sa.BigInteger),
        sa.Column("since_us", sa.BigInteger),
        sa.Column("verdict", sa.String(16)),
        sa.Column("body", sa.JSON),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("judgements")

"""What another version of the model would have said."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the table."""
    key = sa.String(36).with_variant(sa.String(36, collation="C"), "postgresql")
    of = sa.ForeignKey("predictions.id", ondelete="CASCADE")
    op.create_table(
        "second_prices",
        sa.Column("prediction_id", key, of, primary_key=True),
        sa.Column("model_version", sa.Text, primary_key=True),
        sa.Column("price", sa.Double),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("second_prices")

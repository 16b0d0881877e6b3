"""Predictions, and the actual prices that are reported for them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make both tables."""
    # A collation that follows a language's rules is slower, and changes with the C library.
    key = sa.String(36).with_variant(sa.String(36, collation="C"), "postgresql")
    checks = []
    if op.get_bind().dialect.name == "sqlite":  # which stores any text in a column of any type
        rule = (
            "typeof(time_us) = 'integer' AND typeof(price) = 'real' "
            "AND typeof(latency_ms) = 'real' AND json_valid(features)"
        )
        checks.append(sa.CheckConstraint(rule, name="predictions_types"))
    op.create_table(
        "predictions",
        sa.Column("id", key, primary_key=True),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("price", sa.Double, nullable=False),
        sa.Column("low", sa.Double),
        sa.Column("high", sa.Double),
        sa.Column("latency_ms", sa.Double, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("features", sa.JSON, nullable=False),
        *checks,
    )
    op.create_index("predictions_time", "predictions", ["time_us", "id"])
    op.create_index("predictions_version_time", "predictions", ["model_version", "time_us", "id"])
    op.create_table(
        "feedback",
        sa.Column(
            "prediction_id",
            key,
            sa.ForeignKey("predictions.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("price", sa.Double, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("reported_us", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop both tables."""
    op.drop_table("feedback")
    op.drop_table("predictions")

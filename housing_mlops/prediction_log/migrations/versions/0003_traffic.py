"""Traffic by the minute; and beside an actual price, the price that was predicted.

Makes tables and columns, which takes no time however large the database is. What fills them is
noted in `upgrade_progress`, and done afterwards in bounded steps by `database.migrate`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

COPIED = {
    **{"model": sa.Text, "model_version": sa.Text, "predicted_us": sa.BigInteger},
    **{"predicted": sa.Double, "low": sa.Double, "high": sa.Double},
}


def upgrade() -> None:
    """Make them, and note what there is to fill."""
    op.create_table(
        "traffic",
        sa.Column("width", sa.Integer, primary_key=True),
        sa.Column("slot", sa.BigInteger, primary_key=True),
        sa.Column("model_version", sa.Text, primary_key=True),
        sa.Column("bucket", sa.Integer, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("price", sa.Double, nullable=False),
        sa.Column("latency", sa.Double, nullable=False),
        sa.Column("slowest", sa.Double, nullable=False),
        sqlite_with_rowid=False,
    )
    progress = op.create_table(
        "upgrade_progress",
        sa.Column("task", sa.String(32), primary_key=True),
        sa.Column("position", sa.Text, nullable=False),
    )
    assert progress is not None
    for name, kind in COPIED.items():
        op.add_column("feedback", sa.Column(name, kind))
    columns = ["model", "model_version", "predicted_us", "prediction_id"]
    columns += ["predicted", "price", "low", "high"]
    op.create_index("feedback_version_time", "feedback", columns)
    tasks = [{"task": task, "position": ""} for task in ("traffic", "feedback")]
    op.bulk_insert(progress, tasks)


def downgrade() -> None:
    """Drop them; nothing is lost that cannot be filled again."""
    op.drop_index("feedback_version_time", "feedback")
    for name in COPIED:
        op.drop_column("feedback", name)
    op.drop_table("upgrade_progress")
    op.drop_table("traffic")

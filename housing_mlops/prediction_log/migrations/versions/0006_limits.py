"""What was odd about a price or about its house."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column; of what is there already nobody knows it."""
    op.add_column("predictions", sa.Column("limits", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("predictions", "limits")

"""Who asked for a price, by the name of the key."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; of what is there already nobody knows it."""
    op.add_column("predictions", sa.Column("client", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("predictions", "client")

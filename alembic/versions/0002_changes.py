"""Edits and deletions: which change replaced an event."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("dialogue_events", sa.Column("replaced_by", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("dialogue_events") as table:
        table.drop_column("replaced_by")

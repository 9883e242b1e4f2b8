"""Rooms made while running, sessions, and a user's markers by an index."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Byte by byte, whatever language the database speaks.
    def key_text(length: int) -> sa.String:
        return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")

    op.create_table(
        "dialogue_created_rooms",
        sa.Column("room_id", key_text(255), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("max_size", sa.BigInteger(), nullable=True),
        sa.Column("created_by_id", key_text(255), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("room_id", name="pk_dialogue_created_rooms"),
    )
    op.create_table(
        "dialogue_sessions",
        sa.Column("client_id", key_text(255), nullable=False),
        sa.Column("user_id", key_text(255), nullable=False),
        sa.Column("first_seen", sa.BigInteger(), nullable=False),
        sa.Column("last_seen", sa.BigInteger(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("rooms", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("client_id", name="pk_dialogue_sessions"),
    )
    op.create_index(
        "ix_dialogue_sessions_user_id_last_seen_client_id",
        "dialogue_sessions",
        ["user_id", "last_seen", "client_id"],
    )
    op.create_index(
        "ix_dialogue_sessions_last_seen_client_id", "dialogue_sessions", ["last_seen", "client_id"]
    )
    op.create_index("ix_dialogue_markers_user_id_room_id", "dialogue_markers", ["user_id", "room_id"])


def downgrade() -> None:
    op.drop_index("ix_dialogue_markers_user_id_room_id", "dialogue_markers")
    op.drop_table("dialogue_sessions")
    op.drop_table("dialogue_created_rooms")

"""The log: events, rooms, streams, markers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    encoded_json = sa.Text().with_variant(postgresql.JSONB(), "postgresql")

    # Byte by byte, whatever language the database speaks.
    def key_text(length: int) -> sa.String:
        return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")

    counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "dialogue_log",
        sa.Column("log_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.String(64), nullable=False),
        sa.Column("last_id", sa.BigInteger(), nullable=False),
        sa.Column("removed_through_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("log_id", name="pk_dialogue_log"),
        sa.CheckConstraint("log_id = 1", name=op.f("ck_dialogue_log_one_row")),
    )
    op.create_table(
        "dialogue_rooms",
        sa.Column("room_id", key_text(255), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_timestamp", sa.BigInteger(), nullable=False),
        sa.Column("last_unread_position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("room_id", name="pk_dialogue_rooms"),
    )
    op.create_table(
        "dialogue_events",
        sa.Column("id", counter, autoincrement=False, nullable=False),
        sa.Column("room_id", key_text(255), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("event_name", key_text(100), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("event_data", encoded_json, nullable=False),
        sa.Column("from_user", key_text(255), nullable=False),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.Column("meta", encoded_json, nullable=True),
        sa.Column("key", key_text(255), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("unread_position", sa.BigInteger(), nullable=False),
        sa.Column("is_edited", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("is_deleted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dialogue_events"),
        sa.UniqueConstraint("room_id", "seq", name="uq_dialogue_events_room_id_seq"),
        sa.UniqueConstraint("room_id", "key", "from_user", name="uq_dialogue_events_room_id_key_from_user"),
        sa.UniqueConstraint(
            "room_id", "event_name", "position", name="uq_dialogue_events_room_id_event_name_position"
        ),
    )
    op.create_index(
        "ix_dialogue_events_room_id_event_name_seq", "dialogue_events", ["room_id", "event_name", "seq"]
    )
    op.create_table(
        "dialogue_streams",
        sa.Column("room_id", key_text(255), nullable=False),
        sa.Column("event_name", key_text(100), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("handed_through", sa.BigInteger(), nullable=False),
        sa.Column("removed_through", sa.BigInteger(), nullable=False),
        sa.Column("removed_through_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("room_id", "event_name", name="pk_dialogue_streams"),
    )
    op.create_table(
        "dialogue_markers",
        sa.Column("room_id", key_text(255), nullable=False),
        sa.Column("user_id", key_text(255), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("unread_position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("room_id", "user_id", name="pk_dialogue_markers"),
    )


def downgrade() -> None:
    for name in ("markers", "streams", "events", "rooms", "log"):
        op.drop_table(f"dialogue_{name}")

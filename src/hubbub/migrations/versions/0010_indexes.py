"""The seed's indexes for the questions that are asked; `docs/schema.md` has the reason for each."""

from __future__ import annotations

from alembic.operations import Operations

from hubbub.migrations.indexes import Index

revision = "0010"
down_revision = "0009"

LOSS = "nothing"

INDEXES = (
    Index("idx_rooms_name", "rooms", "(name, id) WHERE NOT is_private"),
    Index("idx_messages_user_id", "messages", "(user_id, created_at DESC, id DESC)"),
    Index("idx_messages_created_at", "messages", "USING brin (created_at)"),
    Index("idx_room_users_user_id", "room_users", "(user_id, room_id)"),
    Index("idx_message_read_receipts_user_id", "message_read_receipts", "(user_id)"),
)

SEED_INDEXES = (
    Index("idx_rooms_name", "rooms", "(name)"),
    Index("idx_messages_user_id", "messages", "(user_id)"),
    Index("idx_messages_created_at", "messages", "(created_at DESC)"),
    Index("idx_room_users_user_id", "room_users", "(user_id)"),
)


def upgrade(op: Operations) -> None:
    for index in INDEXES:
        index.build(op, to=revision)
    for index in INDEXES:
        index.replace(op, to=revision)
    # Every message bumps last_seq of its room. With space left on the page that is a HOT update: no index changes.
    op.execute("ALTER TABLE rooms SET (fillfactor = 50)")


def downgrade(op: Operations) -> None:
    for index in SEED_INDEXES:
        index.build(op, to=down_revision)
    for index in SEED_INDEXES:
        index.replace(op, to=down_revision)
    op.execute("DROP INDEX idx_message_read_receipts_user_id")
    op.execute("ALTER TABLE rooms RESET (fillfactor)")

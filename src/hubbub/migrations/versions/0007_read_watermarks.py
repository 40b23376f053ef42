"""Up to where each member has read, as a seq; and the room of each read receipt."""

from __future__ import annotations

from alembic.operations import Operations

from hubbub.migrations.autocommit import autocommit
from hubbub.migrations.indexes import Index

revision = "0007"
down_revision = "0006"

LOSS = "how far each member has read, except where it is a message"

INDEX = Index(
    "idx_room_users_last_read_message_id",
    "room_users",
    "(last_read_message_id) WHERE last_read_message_id IS NOT NULL",
)


def upgrade(op: Operations) -> None:
    INDEX.build(op, to=revision)
    _add_watermarks(op)
    _add_rooms_to_receipts(op)
    INDEX.replace(op, to=revision)
    _refer_to_last_read_message(op, "ON DELETE SET NULL")


def _add_watermarks(op: Operations) -> None:
    op.execute("""
        ALTER TABLE room_users
            ADD COLUMN IF NOT EXISTS last_read_seq bigint NOT NULL DEFAULT 0
    """)
    # A last read message of another room, which the seed's foreign key allows, says nothing about this one.
    op.execute("""
        UPDATE room_users
        SET last_read_message_id = NULL
        FROM messages
        WHERE messages.id = room_users.last_read_message_id
            AND messages.room_id <> room_users.room_id
    """)
    op.execute("""
        UPDATE room_users
        SET last_read_seq = messages.seq
        FROM messages
        WHERE messages.id = room_users.last_read_message_id
    """)


def _add_rooms_to_receipts(op: Operations) -> None:
    op.execute("""
        ALTER TABLE message_read_receipts
            ADD COLUMN IF NOT EXISTS room_id uuid
    """)
    op.execute("""
        UPDATE message_read_receipts
        SET room_id = messages.room_id
        FROM messages
        WHERE messages.id = message_read_receipts.message_id
            AND message_read_receipts.room_id IS NULL
    """)
    op.execute("""
        ALTER TABLE message_read_receipts
            ALTER COLUMN room_id SET NOT NULL
    """)


def _refer_to_last_read_message(op: Operations, on_delete: str) -> None:
    """Both tables are locked for the exchange only. The rows, which the old foreign key vouches for, are checked
    after that is committed, while the application goes on."""
    op.execute(f"""
        ALTER TABLE room_users
            DROP CONSTRAINT room_users_last_read_message_id_fkey,
            ADD CONSTRAINT room_users_last_read_message_id_fkey
                FOREIGN KEY (last_read_message_id) REFERENCES messages (id) {on_delete} NOT VALID
    """)
    with autocommit(op):
        op.execute("ALTER TABLE room_users VALIDATE CONSTRAINT room_users_last_read_message_id_fkey")


def downgrade(op: Operations) -> None:
    _refer_to_last_read_message(op, "")
    op.execute("ALTER TABLE message_read_receipts DROP COLUMN room_id")
    op.execute("DROP INDEX idx_room_users_last_read_message_id")
    op.execute("ALTER TABLE room_users DROP COLUMN last_read_seq")

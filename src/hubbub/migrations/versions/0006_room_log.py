"""Each room is one ordered log: every message and every other durable change takes the next seq of its room.

On a filled database this numbers all messages, in one transaction that holds `rooms` and `messages`: the one
revision to plan a quiet minute for (docs/migrations.md). To spare the lock would gain nothing, since whoever does
not write a seq cannot write messages afterwards.
"""

from __future__ import annotations

from alembic.operations import Operations

from hubbub.migrations.indexes import Index
from hubbub.migrations.rows import refuse

revision = "0006"
down_revision = "0005"

LOSS = "the order of the log in each room, all its events but the messages, and deleted messages for good"

SEED_INDEX = Index("idx_messages_room_id", "messages", "(room_id)")


def upgrade(op: Operations) -> None:
    refuse(op, "room_id", "are messages without a room", "SELECT id FROM messages WHERE room_id IS NULL")
    # In the order in which an INSERT of a message locks them, so that the two do not deadlock.
    op.execute("""
        ALTER TABLE messages
            ADD COLUMN seq bigint,
            ADD COLUMN deleted_at timestamptz
    """)
    op.execute("""
        ALTER TABLE rooms
            ADD COLUMN last_seq bigint NOT NULL DEFAULT 0
    """)
    _number_messages(op)
    op.execute("DROP INDEX idx_messages_room_id")
    op.execute("""
        ALTER TABLE messages
            ALTER COLUMN room_id SET NOT NULL,
            ALTER COLUMN seq SET NOT NULL,
            ADD CONSTRAINT idx_messages_room_id UNIQUE (room_id, seq)
    """)
    op.execute("""
        CREATE TABLE room_events (
            room_id uuid NOT NULL REFERENCES rooms (id) ON DELETE CASCADE,
            seq bigint NOT NULL,
            kind varchar(20) NOT NULL,
            message_id uuid,
            user_id uuid,
            payload jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
            PRIMARY KEY (room_id, seq)
        )
    """)


def _number_messages(op: Operations) -> None:
    op.execute("""
        UPDATE messages
        SET seq = numbered.seq
        FROM (
            SELECT
                id,
                row_number() OVER (PARTITION BY room_id ORDER BY created_at, id) AS seq
            FROM messages
        ) AS numbered
        WHERE numbered.id = messages.id
    """)
    op.execute("""
        UPDATE rooms
        SET last_seq = heads.seq
        FROM (
            SELECT
                room_id,
                max(seq) AS seq
            FROM messages
            GROUP BY room_id
        ) AS heads
        WHERE heads.room_id = rooms.id
    """)


def downgrade(op: Operations) -> None:
    SEED_INDEX.build(op, to=down_revision)
    _remove_deleted_messages(op)
    op.execute("DROP TABLE room_events")
    op.execute("""
        ALTER TABLE messages
            DROP CONSTRAINT idx_messages_room_id,
            ALTER COLUMN room_id DROP NOT NULL,
            DROP COLUMN seq,
            DROP COLUMN deleted_at
    """)
    op.execute("ALTER TABLE rooms DROP COLUMN last_seq")
    SEED_INDEX.replace(op, to=down_revision)


def _remove_deleted_messages(op: Operations) -> None:
    """Without `deleted_at` a tombstone would come back as an empty message. Who has read up to one has read up to
    the message before it."""
    op.execute("""
        UPDATE room_users
        SET last_read_message_id = (
            SELECT before.id
            FROM messages AS before
            WHERE before.room_id = deleted.room_id
                AND before.seq < deleted.seq
                AND before.deleted_at IS NULL
            ORDER BY before.seq DESC
            LIMIT 1
        )
        FROM messages AS deleted
        WHERE deleted.id = room_users.last_read_message_id
            AND deleted.deleted_at IS NOT NULL
    """)
    op.execute("DELETE FROM messages WHERE deleted_at IS NOT NULL")

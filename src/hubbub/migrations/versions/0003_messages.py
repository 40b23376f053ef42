"""The table of messages, as the seed has it."""

from __future__ import annotations

from alembic.operations import Operations

revision = "0003"
down_revision = "0002"

LOSS = "every message"


def upgrade(op: Operations) -> None:
    op.execute("""
        CREATE TABLE messages (
            id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
            room_id UUID REFERENCES rooms(id) ON DELETE CASCADE,
            user_id UUID REFERENCES users(id) ON DELETE SET NULL,
            content TEXT NOT NULL,
            message_type VARCHAR(20) DEFAULT 'text',
            is_edited BOOLEAN DEFAULT false,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
            updated_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP
        )
    """)
    op.execute("CREATE INDEX idx_messages_room_id ON messages(room_id)")
    op.execute("CREATE INDEX idx_messages_user_id ON messages(user_id)")
    op.execute("CREATE INDEX idx_messages_created_at ON messages(created_at DESC)")


def downgrade(op: Operations) -> None:
    op.execute("DROP TABLE messages")

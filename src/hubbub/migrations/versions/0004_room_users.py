"""The members of rooms, as the seed has them."""

from __future__ import annotations

from alembic.operations import Operations

revision = "0004"
down_revision = "0003"

LOSS = "every membership"


def upgrade(op: Operations) -> None:
    op.execute("""
        CREATE TABLE room_users (
            room_id UUID REFERENCES rooms(id) ON DELETE CASCADE,
            user_id UUID REFERENCES users(id) ON DELETE CASCADE,
            joined_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
            role VARCHAR(20) DEFAULT 'member',
            last_read_message_id UUID REFERENCES messages(id),
            PRIMARY KEY (room_id, user_id)
        )
    """)
    op.execute("CREATE INDEX idx_room_users_user_id ON room_users(user_id)")


def downgrade(op: Operations) -> None:
    op.execute("DROP TABLE room_users")

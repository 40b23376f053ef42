"""The receipts of read messages, as the seed has them."""

from __future__ import annotations

from alembic.operations import Operations

revision = "0005"
down_revision = "0004"

LOSS = "every read receipt"


def upgrade(op: Operations) -> None:
    op.execute("""
        CREATE TABLE message_read_receipts (
            message_id UUID REFERENCES messages(id) ON DELETE CASCADE,
            user_id UUID REFERENCES users(id) ON DELETE CASCADE,
            read_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
            PRIMARY KEY (message_id, user_id)
        )
    """)


def downgrade(op: Operations) -> None:
    op.execute("DROP TABLE message_read_receipts")

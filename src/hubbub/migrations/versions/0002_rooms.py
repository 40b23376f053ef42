"""The table of rooms, as the seed has it."""

from __future__ import annotations

from alembic.operations import Operations

revision = "0002"
down_revision = "0001"

LOSS = "every room"


def upgrade(op: Operations) -> None:
    op.execute("""
        CREATE TABLE rooms (
            id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
            name VARCHAR(100) NOT NULL,
            description TEXT,
            is_private BOOLEAN DEFAULT false,
            created_by UUID REFERENCES users(id) ON DELETE SET NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
            updated_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP
        )
    """)
    op.execute("CREATE INDEX idx_rooms_created_by ON rooms(created_by)")
    op.execute("CREATE INDEX idx_rooms_name ON rooms(name)")


def downgrade(op: Operations) -> None:
    op.execute("DROP TABLE rooms")

"""The table of users, as the seed has it."""

from __future__ import annotations

from alembic.operations import Operations

revision = "0001"
down_revision = None

LOSS = "every user"


def upgrade(op: Operations) -> None:
    op.execute("""
        CREATE TABLE users (
            id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
            email VARCHAR(255) UNIQUE NOT NULL,
            username VARCHAR(50) UNIQUE NOT NULL,
            password_hash VARCHAR(255) NOT NULL,
            avatar_url VARCHAR(500),
            is_online BOOLEAN DEFAULT false,
            last_seen TIMESTAMP WITH TIME ZONE,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP,
            updated_at TIMESTAMP WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP
        )
    """)
    op.execute("CREATE INDEX idx_users_email ON users(email)")
    op.execute("CREATE INDEX idx_users_username ON users(username)")


def downgrade(op: Operations) -> None:
    op.execute("DROP TABLE users")

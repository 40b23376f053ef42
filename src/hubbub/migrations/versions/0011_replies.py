"""Replies and metadata of messages, receipts as a room asks for them, and how far an import of history came.

New columns without a default cost an instant. Every step commits on its own and can be repeated: the rules are
added for new rows, and validated without a lock that would hold up writers.
"""

from __future__ import annotations

from alembic.operations import Operations

from hubbub.migrations.autocommit import autocommit

revision = "0011"
down_revision = "0010"

LOSS = "what messages reply to, their metadata, the receipts setting of rooms, and how far imports came"

# The limit of 8 KiB is hubbub's, on the JSON text that the application gives. What PostgreSQL stores of such a text
# is at most about four times as large; this rule keeps other writers from storing novels.
RULES = {
    "messages_metadata_check": "jsonb_typeof(metadata) = 'object' AND pg_column_size(metadata) <= 65536",
    "messages_reply_to_check": "reply_to <> id",
}


def upgrade(op: Operations) -> None:
    op.execute("ALTER TABLE rooms ADD COLUMN IF NOT EXISTS keeps_receipts boolean")
    op.execute("""
        ALTER TABLE messages
            ADD COLUMN IF NOT EXISTS reply_to uuid,
            ADD COLUMN IF NOT EXISTS metadata jsonb
    """)
    op.execute("""
        CREATE TABLE IF NOT EXISTS hubbub_imports (
            digest bytea PRIMARY KEY,
            lines bigint NOT NULL,
            updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
            CONSTRAINT hubbub_imports_digest_check CHECK (octet_length(digest) = 32),
            CONSTRAINT hubbub_imports_lines_check CHECK (lines > 0)
        )
    """)
    with autocommit(op):
        for name, rule in RULES.items():
            op.execute(f"ALTER TABLE messages DROP CONSTRAINT IF EXISTS {name}")
            op.execute(f"ALTER TABLE messages ADD CONSTRAINT {name} CHECK ({rule}) NOT VALID")
        for name in RULES:
            op.execute(f"ALTER TABLE messages VALIDATE CONSTRAINT {name}")


def downgrade(op: Operations) -> None:
    op.execute("DROP TABLE hubbub_imports")
    op.execute("""
        ALTER TABLE messages
            DROP COLUMN metadata,
            DROP COLUMN reply_to
    """)
    op.execute("ALTER TABLE rooms DROP COLUMN keeps_receipts")

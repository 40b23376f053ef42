"""Replies and metadata of messages, receipts as a room asks for them, and how far an import came.

Every step but the last commits on its own and can be repeated: no two tables are locked at once, each for an
instant, and rows are read through while the application goes on.
"""

from __future__ import annotations

from alembic.operations import Operations

from hubbub.migrations.autocommit import autocommit

revision = "0011"
down_revision = "0010"

LOSS = (
    "what messages reply to and their metadata, the receipts setting of rooms, which messages a member was there "
    "for, and how far imports came"
)

COLUMNS = {
    "messages": {"reply_to": "uuid", "metadata": "jsonb"},
    "rooms": {"keeps_receipts": "boolean"},
    "room_users": {"joined_seq": "bigint NOT NULL DEFAULT 0"},
}

# hubbub takes 8 KiB of JSON. This is about what a reader gets, which can be more: PostgreSQL writes a space after
# each comma and colon, and 1e308 with all of its zeros. pg_column_size would not do: it tells of the same value
# differently once it is compressed, so that a dump might not be restored.
RULES = {
    "messages": {
        "messages_metadata_check": "jsonb_typeof(metadata) = 'object' AND octet_length(metadata::text) <= 65536",
        "messages_reply_to_check": "reply_to <> id",
    },
    "room_users": {
        "room_users_joined_seq_check": "joined_seq >= 0",
    },
}


def upgrade(op: Operations) -> None:
    with autocommit(op):
        for table in COLUMNS:
            _add_columns_and_rules(op, table)
        for table, rules in RULES.items():
            for name in rules:
                op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
    op.execute("""
        CREATE TABLE hubbub_imports (
            digest bytea PRIMARY KEY,
            lines bigint NOT NULL,
            updated_at timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
            CONSTRAINT hubbub_imports_digest_check CHECK (octet_length(digest) = 32),
            CONSTRAINT hubbub_imports_lines_check CHECK (lines > 0)
        )
    """)


def _add_columns_and_rules(op: Operations, table: str) -> None:
    """All of a table in one statement, which locks it once. The rules hold for new rows from here on."""
    changes = [f"ADD COLUMN IF NOT EXISTS {column} {kind}" for column, kind in COLUMNS[table].items()]
    for name, rule in RULES.get(table, {}).items():
        changes += [f"DROP CONSTRAINT IF EXISTS {name}", f"ADD CONSTRAINT {name} CHECK ({rule}) NOT VALID"]
    one_a_line = ",\n    ".join(changes)
    op.execute(f"ALTER TABLE {table}\n    {one_a_line}")


def downgrade(op: Operations) -> None:
    op.execute("DROP TABLE hubbub_imports")
    for table, columns in COLUMNS.items():
        dropped = ", ".join(f"DROP COLUMN {column}" for column in columns)
        op.execute(f"ALTER TABLE {table} {dropped}")

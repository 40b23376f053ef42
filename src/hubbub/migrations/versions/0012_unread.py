"""Unread messages are counted, and rooms put in the order of their newest message, from an index alone."""

from __future__ import annotations

from alembic.operations import Operations

from hubbub.migrations.indexes import Index

revision = "0012"
down_revision = "0011"

LOSS = "nothing"

COVERING = Index(
    "idx_messages_room_id", "messages", "(room_id, seq) INCLUDE (user_id, created_at, deleted_at)", unique=True
)
NARROW = Index("idx_messages_room_id", "messages", "(room_id, seq)", unique=True)


def upgrade(op: Operations) -> None:
    _exchange(op, COVERING, to=revision)
    # An index alone will do where VACUUM has been. By default it comes by when a fifth of all messages is new, but
    # what is unread is newer than that. It reads the new pages only.
    op.execute("ALTER TABLE messages SET (autovacuum_vacuum_insert_scale_factor = 0.02)")


def _exchange(op: Operations, index: Index, *, to: str) -> None:
    index.build(op, to=to)
    op.execute(f"ALTER TABLE messages DROP CONSTRAINT {index.name}")
    index.constrain(op, to=to)


def downgrade(op: Operations) -> None:
    _exchange(op, NARROW, to=down_revision)
    op.execute("ALTER TABLE messages RESET (autovacuum_vacuum_insert_scale_factor)")

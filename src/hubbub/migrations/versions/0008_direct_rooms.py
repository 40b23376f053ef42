"""Two people have one direct room, also under a race: its key is the SHA-256 of their ids."""

from __future__ import annotations

from alembic.operations import Operations

from hubbub.migrations.indexes import Index

revision = "0008"
down_revision = "0007"

LOSS = "which rooms are the direct rooms of two people; the rooms themselves stay"

KEY = Index("rooms_direct_key_key", "rooms", "(direct_key)", unique=True)


def upgrade(op: Operations) -> None:
    op.execute("ALTER TABLE rooms ADD COLUMN IF NOT EXISTS direct_key bytea")
    KEY.build(op, to=revision)
    KEY.constrain(op, to=revision)


def downgrade(op: Operations) -> None:
    op.execute("ALTER TABLE rooms DROP COLUMN direct_key")

"""What a row may hold: named rules, no NULL where there is a default, one email and username whatever the case.

Rows that break a rule stop this revision before it has changed anything. Then every step commits on its own and
can be repeated: a table is locked for an instant at a time, and read through while the application goes on.
"""

from __future__ import annotations

from alembic.operations import Operations

from hubbub.migrations.autocommit import autocommit
from hubbub.migrations.indexes import Index
from hubbub.migrations.rows import refuse

revision = "0009"
down_revision = "0008"

LOSS = "nothing"

# White space is that of ASCII here: what else counts as such depends on the server's locale, and a rule must not.
RULES = {
    "users": {
        "users_email_check": "position('@' IN email) BETWEEN 2 AND char_length(email) - 1",
        "users_username_check": (
            "username <> '' AND position('@' IN username) = 0 AND (username COLLATE \"C\") !~ '^\\s|\\s$'"
        ),
        "users_password_hash_check": "password_hash <> ''",
    },
    "rooms": {
        "rooms_name_check": "(name COLLATE \"C\") ~ '\\S'",
        "rooms_description_check": "char_length(description) <= 4000",
        "rooms_last_seq_check": "last_seq >= 0",
        "rooms_direct_key_check": "direct_key IS NULL OR (octet_length(direct_key) = 32 AND is_private)",
    },
    "messages": {
        "messages_content_check": (
            "CASE WHEN deleted_at IS NULL THEN char_length(content) BETWEEN 1 AND 20000 ELSE content = '' END"
        ),
        "messages_message_type_check": "message_type IN ('text', 'image', 'file')",
        "messages_seq_check": "seq > 0",
    },
    "room_users": {
        "room_users_role_check": "role IN ('admin', 'moderator', 'member')",
        "room_users_last_read_seq_check": "last_read_seq >= 0",
    },
    "room_events": {
        "room_events_seq_check": "seq > 0",
        "room_events_kind_check": (
            "kind IN ('edited', 'deleted', 'joined', 'left', 'role_changed', 'room_changed')"
        ),
    },
}

# What finds a row that breaks a rule.
KEYS = {
    "users": "id",
    "rooms": "id",
    "messages": "id",
    "room_users": "room_id, user_id",
    "room_events": "room_id, seq",
}

# The columns that have a default in the seed. A NULL in one of them becomes the default.
DEFAULTS = {
    "users": {
        "is_online": "false",
        "created_at": "CURRENT_TIMESTAMP",
        "updated_at": "CURRENT_TIMESTAMP",
    },
    "rooms": {
        "is_private": "false",
        "created_at": "CURRENT_TIMESTAMP",
        "updated_at": "CURRENT_TIMESTAMP",
    },
    "messages": {
        "message_type": "'text'",
        "is_edited": "false",
        "created_at": "CURRENT_TIMESTAMP",
        "updated_at": "CURRENT_TIMESTAMP",
    },
    "room_users": {
        "joined_at": "CURRENT_TIMESTAMP",
        "role": "'member'",
    },
    "message_read_receipts": {
        "read_at": "CURRENT_TIMESTAMP",
    },
}

INDEXES = (
    Index("idx_users_email", "users", "(lower(email))", unique=True),
    Index("idx_users_username", "users", "(lower(username))", unique=True),
)

SEED_INDEXES = (
    Index("idx_users_email", "users", "(email)"),
    Index("idx_users_username", "users", "(username)"),
)
SEED_KEYS = (
    Index("users_email_key", "users", "(email)", unique=True),
    Index("users_username_key", "users", "(username)", unique=True),
)


def upgrade(op: Operations) -> None:
    _refuse_what_breaks_a_rule(op)
    for index in INDEXES:
        index.build(op, to=revision)
    with autocommit(op):
        _add_rules(op)
        _fill_in_defaults(op)
        _validate_rules(op)
        _forbid_nulls(op)
    for key in SEED_KEYS:
        op.execute(f"ALTER TABLE users DROP CONSTRAINT {key.name}")
    for index in INDEXES:
        index.replace(op, to=revision)


def _refuse_what_breaks_a_rule(op: Operations) -> None:
    for field in ("email", "username"):
        same = f"SELECT lower({field}) FROM users GROUP BY lower({field}) HAVING count(*) > 1"  # noqa: S608 - fixed
        refuse(op, field, "belong to more than one user when case is not regarded", same)
    for table, rules in RULES.items():
        for name, rule in rules.items():
            broken = f"SELECT {KEYS[table]} FROM {table} WHERE NOT ({rule})"  # noqa: S608 - fixed
            refuse(op, name, f"are rows of {table} that break this rule", broken)


def _add_rules(op: Operations) -> None:
    """For new rows at once. With each table's rules goes a provisional one, which makes SET NOT NULL quick."""
    for table, rules in _provisional_rules().items():
        changes = [
            change
            for name, rule in rules.items()
            for change in (
                f"DROP CONSTRAINT IF EXISTS {name}",
                f"ADD CONSTRAINT {name} CHECK ({rule}) NOT VALID",
            )
        ]
        _alter(op, table, changes)


def _fill_in_defaults(op: Operations) -> None:
    for table, defaults in DEFAULTS.items():
        filled = ", ".join(f"{column} = coalesce({column}, {default})" for column, default in defaults.items())
        lacking = " OR ".join(f"{column} IS NULL" for column in defaults)
        op.execute(f"UPDATE {table} SET {filled} WHERE {lacking}")  # noqa: S608 - fixed


def _validate_rules(op: Operations) -> None:
    for table, rules in _provisional_rules().items():
        for name in rules:
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def _forbid_nulls(op: Operations) -> None:
    """The provisional rule proves that there are none: no row is read again."""
    for table, defaults in DEFAULTS.items():
        changes = [f"ALTER COLUMN {column} SET NOT NULL" for column in defaults]
        _alter(op, table, changes)
        # Not in the same statement, which would drop it first and then read every row under an exclusive lock.
        _alter(op, table, [f"DROP CONSTRAINT {_no_nulls(table)}"])


def _provisional_rules() -> dict[str, dict[str, str]]:
    rules = {table: dict(named) for table, named in RULES.items()}
    for table, defaults in DEFAULTS.items():
        rule = " AND ".join(f"{column} IS NOT NULL" for column in defaults)
        rules.setdefault(table, {})[_no_nulls(table)] = rule
    return rules


def _no_nulls(table: str) -> str:
    return f"{table}_no_nulls_check"


def _alter(op: Operations, table: str, changes: list[str]) -> None:
    """All in one statement: the table is locked once, for an instant."""
    one_a_line = ",\n    ".join(changes)
    op.execute(f"ALTER TABLE {table}\n    {one_a_line}")


def downgrade(op: Operations) -> None:
    for index in (*SEED_KEYS, *SEED_INDEXES):
        index.build(op, to=down_revision)
    with autocommit(op):
        _drop_rules(op)
        _allow_nulls(op)
    for key in SEED_KEYS:
        key.constrain(op, to=down_revision)
    for index in SEED_INDEXES:
        index.replace(op, to=down_revision)


def _drop_rules(op: Operations) -> None:
    for table, rules in RULES.items():
        _alter(op, table, [f"DROP CONSTRAINT IF EXISTS {name}" for name in rules])


def _allow_nulls(op: Operations) -> None:
    for table, defaults in DEFAULTS.items():
        changes = [f"ALTER COLUMN {column} DROP NOT NULL" for column in defaults]
        _alter(op, table, changes)

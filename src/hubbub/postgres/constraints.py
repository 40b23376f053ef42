"""What the violation of each named constraint of the schema means to a caller.

The schema tests fail when a constraint of the migrated database is missing here, or one here from the database.
"""

from __future__ import annotations

from hubbub.errors import Conflict, HubbubError, Invalid, NotFound

# A unique constraint or index: what is taken.
TAKEN = {
    "users_pkey": "user id",
    "idx_users_email": "email",
    "idx_users_username": "username",
    "rooms_pkey": "room id",
    "rooms_direct_key_key": "direct room",
    "messages_pkey": "message id",
    "idx_messages_room_id": "message seq",
    "room_users_pkey": "membership",
    "message_read_receipts_pkey": "read receipt",
    "room_events_pkey": "event seq",
    "hubbub_imports_pkey": "import",
}

# A foreign key: what does not exist.
MISSING = {
    "rooms_created_by_fkey": "user",
    "messages_room_id_fkey": "room",
    "messages_user_id_fkey": "user",
    "room_users_room_id_fkey": "room",
    "room_users_user_id_fkey": "user",
    "room_users_last_read_message_id_fkey": "message",
    "message_read_receipts_message_id_fkey": "message",
    "message_read_receipts_user_id_fkey": "user",
    "room_events_room_id_fkey": "room",
}

# A CHECK constraint: the field, and what it may be.
REFUSED = {
    "users_email_check": ("email", "must have characters on both sides of an @"),
    "users_username_check": (
        "username",
        "must have 1 to 50 characters, none of them an @, no space at the ends",
    ),
    "users_password_hash_check": ("password_hash", "must not be empty"),
    "rooms_name_check": ("name", "must have 1 to 100 characters that are not all white space"),
    "rooms_description_check": ("description", "must have at most 4000 characters"),
    "rooms_last_seq_check": ("last_seq", "must not be negative"),
    "rooms_direct_key_check": ("direct_key", "must be a SHA-256 digest, and the room private"),
    "messages_content_check": ("content", "must have 1 to 20000 characters, none once it is deleted"),
    "messages_message_type_check": ("message_type", "must be text, image or file"),
    "messages_seq_check": ("seq", "must be positive"),
    "messages_metadata_check": ("metadata", "must be a JSON object of at most 8192 bytes"),
    "messages_reply_to_check": ("reply_to", "must be another message"),
    "room_users_role_check": ("role", "must be admin, moderator or member"),
    "room_users_last_read_seq_check": ("last_read_seq", "must not be negative"),
    "room_users_joined_seq_check": ("joined_seq", "must not be negative"),
    "room_events_seq_check": ("seq", "must be positive"),
    "room_events_kind_check": ("kind", "must be a kind of event that this version knows"),
    "hubbub_imports_digest_check": ("digest", "must be a SHA-256 digest"),
    "hubbub_imports_lines_check": ("lines", "must be positive"),
}


def violated(constraint: str, key: str) -> HubbubError | None:
    """The error for a violated constraint; `key` is the value that was looked for. None for a foreign one."""
    if constraint in TAKEN:
        return Conflict(TAKEN[constraint])
    if constraint in MISSING:
        return NotFound(MISSING[constraint], key)
    if constraint in REFUSED:
        return Invalid(*REFUSED[constraint])
    return None

"""The statements of edits and deletions. Each change takes the next seq of its room."""

from __future__ import annotations

from typing import Final

from hubbub.events import LoggedEvent, MessageDeleted, MessageEdited
from hubbub.models import Message
from hubbub.postgres import NOT_SUPPORTED, Statement
from hubbub.sql import columns, lock_timeout, next_entries, next_entry, not_deleted, readable

_OTHER_CONTENT: Final = """
            AND messages.content <> {content}
            AND ({content} <> '' OR messages.metadata IS NOT NULL OR messages.message_type <> 'text')
"""
_EDITED: Final = """
    UPDATE messages
    SET content = {content},
        is_edited = true,
        updated_at = CURRENT_TIMESTAMP
"""
_DELETED: Final = """
    UPDATE messages
    SET content = '',
        metadata = NULL,
        deleted_at = CURRENT_TIMESTAMP,
        updated_at = CURRENT_TIMESTAMP
"""


# The message is locked before the head moves: of two changes of one message, the second waits, and then finds what
# the first has left. A change that finds nothing to do takes no seq.
def _change_of_one(event: type[LoggedEvent], change: str, room_id: str | None, unless: str = "") -> str:
    """The change of message $1 by user $2. `room_id` is the parameter that has its room, if any."""
    moved = next_entry(event, "target", room_id=room_id or "target.room_id", message_id="$1", user_id="$2")
    return f"""
    WITH target AS MATERIALIZED (
        SELECT messages.id, messages.room_id
        FROM messages
        JOIN room_users
            ON room_users.room_id = {room_id or "messages.room_id"}
            AND room_users.user_id = $2
        WHERE messages.id = $1
            AND messages.room_id = {room_id or "messages.room_id"}
            AND messages.deleted_at IS NULL
            AND {not_deleted("messages.room_id", "$2")}
            AND (messages.user_id = $2 OR room_users.role IN ('admin', 'moderator'))
            {unless}
        FOR NO KEY UPDATE OF messages
    ), {moved}
    {change}
    FROM head
    WHERE messages.id = $1
        AND messages.room_id = {room_id or "head.id"}
    RETURNING {readable(Message, "messages")}
    """


def _change_of_many(
    event: type[LoggedEvent], change: str, arrays: str, *others: str, lock_wait: str, unless: str = ""
) -> str:
    """As `_change_of_one`, for many. The `arrays` have the ids of messages, users and rooms, and the `others`."""
    names = ", ".join(("message_id", "user_id", "room_id", *others))
    of_target = ", ".join(f"change.{name}" for name in ("user_id", *others))
    return f"""
    WITH target AS MATERIALIZED (
        SELECT messages.id AS message_id, messages.room_id, {of_target}, change.ordinal
        FROM unnest({arrays}) WITH ORDINALITY AS change ({names}, ordinal)
        JOIN messages
            ON messages.id = change.message_id
            AND messages.room_id = COALESCE(change.room_id, messages.room_id)
        JOIN room_users
            ON room_users.room_id = messages.room_id
            AND room_users.user_id = change.user_id
        WHERE messages.deleted_at IS NULL
            AND {not_deleted("messages.room_id", "change.user_id")}
            AND (messages.user_id = change.user_id OR room_users.role IN ('admin', 'moderator'))
            {unless}
            AND {lock_timeout(lock_wait)}
        ORDER BY messages.id
        FOR NO KEY UPDATE OF messages
    ), {next_entries(event, "target", "message_id", "user_id")}
    {change}
    FROM target
    WHERE messages.id = target.message_id
    RETURNING {readable(Message, "messages")}
    """


def _edit(room_id: str | None = None) -> str:
    unless = _OTHER_CONTENT.format(content="$3")
    return _change_of_one(MessageEdited, _EDITED.format(content="$3"), room_id, unless)


def _delete(room_id: str | None = None) -> str:
    return _change_of_one(MessageDeleted, _DELETED, room_id)


EDIT: Final = Statement("messages.edit", Message, _edit(), idempotent=True, distributed=NOT_SUPPORTED)
EDIT_IN_ROOM: Final = Statement(
    "messages.edit_in_room",
    Message,
    _edit("$4"),
    idempotent=True,
    distributed=f"SELECT {columns(Message)} FROM hubbub_change_message($4, $1, $2, $3)",
)
EDIT_MANY: Final = Statement(
    "messages.edit_many",
    Message,
    _change_of_many(
        MessageEdited,
        _EDITED.format(content="target.content"),
        "$1::uuid[], $2::uuid[], $5::uuid[], $3::text[]",
        "content",
        lock_wait="$4",
        unless=_OTHER_CONTENT.format(content="change.content"),
    ),
    idempotent=True,
    distributed=NOT_SUPPORTED,
)
DELETE: Final = Statement("messages.delete", Message, _delete(), idempotent=True, distributed=NOT_SUPPORTED)
DELETE_IN_ROOM: Final = Statement(
    "messages.delete_in_room",
    Message,
    _delete("$3"),
    idempotent=True,
    distributed=f"SELECT {columns(Message)} FROM hubbub_change_message($3, $1, $2, NULL)",
)
DELETE_MANY: Final = Statement(
    "messages.delete_many",
    Message,
    _change_of_many(MessageDeleted, _DELETED, "$1::uuid[], $2::uuid[], $4::uuid[]", lock_wait="$3"),
    idempotent=True,
    distributed=NOT_SUPPORTED,
)

"""Changing a message that was sent: other content, or the tombstone that is left of it."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from hubbub.errors import Invalid, NotAMember, NotFound, Unavailable
from hubbub.models import Message
from hubbub.postgres import Executor, Statement
from hubbub.repositories.messages.sending import MESSAGE

_OF_MESSAGES = MESSAGE.replace("    ", "    messages.")


class _Standing(NamedTuple):
    """A message, and who somebody is to it."""

    message: Message
    is_member: bool
    may_change: bool


class Changes:
    """Edits and deletions, by the author, still in the room, or by a moderator or admin of the room.

    Each raises `NotFound`, `NotAMember`, and `Invalid` for one who may not.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    # The message is locked before the head is bumped: of two that change it, the second waits and then finds what
    # the first has left. One that finds nothing to change takes no seq.
    _CHANGE = """
        WITH target AS MATERIALIZED (
            SELECT messages.id, messages.room_id
            FROM messages
            JOIN room_users
                ON room_users.room_id = messages.room_id
                AND room_users.user_id = $2
            WHERE messages.id = $1
                AND messages.deleted_at IS NULL
                AND (messages.user_id = $2 OR room_users.role IN ('admin', 'moderator'))
                {unless}
            FOR UPDATE OF messages
        ), head AS (
            UPDATE rooms
            SET last_seq = last_seq + 1
            FROM target
            WHERE rooms.id = target.room_id
            RETURNING rooms.id, rooms.last_seq
        ), event AS (
            INSERT INTO room_events (room_id, seq, kind, message_id, user_id)
            SELECT id, last_seq, {kind}, $1, $2
            FROM head
        )
        UPDATE messages
        SET {change},
            updated_at = CURRENT_TIMESTAMP
        FROM head
        WHERE messages.id = $1
        RETURNING {columns}
        """
    _EDIT = Statement(
        "messages.edit",
        Message,
        _CHANGE.format(
            unless="AND messages.content <> $3",
            kind="'edited'",
            change="content = $3, is_edited = true",
            columns=_OF_MESSAGES,
        ),
        idempotent=True,
    )

    async def edit(self, message_id: UUID, content: str, by: UUID, deadline: float) -> Message:
        """Raises `Invalid` for a deleted message as well."""
        edited = await self._executor.fetch_one(self._EDIT, message_id, by, content, deadline=deadline)
        if edited is not None:
            return edited
        message = await self._unchanged(message_id, by, deadline)
        if message.deleted_at is not None:
            raise Invalid("message_id", "the message is deleted")
        return message

    _DELETE = Statement(
        "messages.delete",
        Message,
        _CHANGE.format(
            unless="",
            kind="'deleted'",
            change="content = '', metadata = NULL, deleted_at = CURRENT_TIMESTAMP",
            columns=_OF_MESSAGES,
        ),
        idempotent=True,
    )

    async def delete(self, message_id: UUID, by: UUID, deadline: float) -> Message:
        """A message that is deleted already stays as it is."""
        deleted = await self._executor.fetch_one(self._DELETE, message_id, by, deadline=deadline)
        return deleted or await self._unchanged(message_id, by, deadline)

    _STANDING = Statement(
        "messages.standing",
        lambda *row: _Standing(Message(*row[:-2]), *row[-2:]),
        f"""
        SELECT {_OF_MESSAGES},
            room_users.role IS NOT NULL AS is_member,
            COALESCE(messages.user_id = $2 OR room_users.role IN ('admin', 'moderator'), false) AS may_change
        FROM messages
        LEFT JOIN room_users
            ON room_users.room_id = messages.room_id
            AND room_users.user_id = $2
        WHERE messages.id = $1
        """,
    )

    async def _unchanged(self, message_id: UUID, by: UUID, deadline: float) -> Message:
        """The message that a change left as it was, for one who may change it; else the reason.

        It may be this very change that left it so: one whose answer is lost is made again.
        """
        try:
            standing = await self._executor.fetch_one(self._STANDING, message_id, by, deadline=deadline)
        except Unavailable as failure:
            raise failure.with_unknown_outcome() from failure
        if standing is None:
            raise NotFound("message", message_id)
        if not standing.is_member:
            raise NotAMember(standing.message.room_id, by)
        if not standing.may_change:
            raise Invalid("by", "is neither the author nor a moderator or admin of the room")
        return standing.message

"""Appending one message to the log of its room: the draft, the statement, and why a send is refused."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final, TypeAlias
from uuid import UUID

import msgspec
from uuid_utils import uuid7

from hubbub import inputs
from hubbub.errors import Conflict, Invalid, NotAMember, Unavailable
from hubbub.models import Message, MessageType, NewMessage
from hubbub.postgres import NOT_SUPPORTED, Executor, FastUUID, Statement, as_fast_uuid
from hubbub.sql import columns, not_deleted

MESSAGE: Final = columns(Message)


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A message that is about to be sent, its fields checked. `metadata` is JSON."""

    id: UUID
    room_id: UUID
    user_id: UUID
    content: str
    message_type: MessageType
    reply_to: UUID | None = None
    metadata: str | None = None
    has_new_id: bool = False
    """Whether the id was made for this draft, so that no other has it."""


Outcomes: TypeAlias = dict[UUID, Message | Exception]
"""By the id of the draft: the message, new or from an earlier attempt, or the error."""


def draft_of(room_id: UUID, user_id: UUID, new: NewMessage) -> Draft:
    """The draft, if it can be sent: a refusal here costs no round trip. Raises: Invalid."""
    draft = Draft(
        FastUUID(uuid7().bytes) if new.id is None else as_fast_uuid(inputs.uuid("id", new.id)),
        as_fast_uuid(room_id),
        as_fast_uuid(user_id),
        inputs.content(new.content, new.message_type, new.metadata),
        inputs.message_type(new.message_type),
        None if new.reply_to is None else inputs.uuid("reply_to", new.reply_to),
        inputs.metadata(new.metadata),
        new.id is None,
    )
    if draft.reply_to is not None and draft.reply_to == draft.id:
        raise Invalid("reply_to", "must be another message")
    return draft


# The membership and the message that is replied to are checked before the head moves, so a refused message takes
# no seq. A duplicate id fails the whole statement, which takes none either.
SEND = Statement(
    "messages.send",
    Message,
    f"""
    WITH allowed AS MATERIALIZED (
        SELECT 1
        FROM room_users
        WHERE room_id = $2
            AND user_id = $3
            AND {not_deleted("$2", "$3")}
            AND ($6::uuid IS NULL OR EXISTS (SELECT 1 FROM messages WHERE id = $6 AND room_id = $2))
    ), head AS (
        UPDATE rooms
        SET last_seq = last_seq + 1
        WHERE id = $2
            AND EXISTS (SELECT 1 FROM allowed)
        RETURNING last_seq
    )
    INSERT INTO messages (id, room_id, seq, user_id, content, message_type, reply_to, metadata)
    SELECT $1, $2, last_seq, $3, $4, $5, $6, $7::jsonb
    FROM head
    RETURNING {MESSAGE}
    """,
    idempotent=True,
    distributed=f"SELECT {MESSAGE} FROM hubbub_send($1, $2, $3, $4, $5, $6, $7)",
)


async def send_one(executor: Executor, draft: Draft, deadline: float) -> Message:
    """Append the message, or find it if an earlier attempt has sent it.

    Raises: NotAMember, Invalid (the reply is to no message of the room), Conflict (another message has the id).
    """
    try:
        sent = await executor.attempt(
            SEND,
            draft.id,
            draft.room_id,
            draft.user_id,
            draft.content,
            draft.message_type,
            draft.reply_to,
            draft.metadata,
            deadline=deadline,
        )
    except Conflict:
        outcomes = await find_earlier_sends(executor, [draft], deadline=deadline)
        outcome = outcomes.get(draft.id) or Conflict("message id")  # unless its room was deleted meanwhile
    else:
        if sent:
            return sent[0]
        outcomes = await why_not_sent(executor, [draft], deadline=deadline)
        outcome = outcomes.get(draft.id) or NotAMember(draft.room_id, draft.user_id)  # it joined a moment ago
    if isinstance(outcome, Message):
        return outcome
    raise outcome


# A send that is cancelled while its COMMIT waits for a synchronous standby is committed without it. So this writes
# to the log for each message that it finds, and its own COMMIT waits until the standby has both.
_EARLIER_SENDS: Final = f"""
    SELECT {MESSAGE}
    FROM messages
    WHERE id = ANY($1::uuid[])
        AND {{kept}}
        AND pg_logical_emit_message(true, 'hubbub', ''::text) IS NOT NULL
    """
EARLIER_SENDS = Statement(
    "messages.earlier_sends",
    Message,
    _EARLIER_SENDS.format(kept=not_deleted("messages.room_id")),
    distributed=NOT_SUPPORTED,
)
EARLIER_SENDS_IN_ROOM = Statement(
    "messages.earlier_sends_in_room",
    Message,
    _EARLIER_SENDS.format(kept=f"{not_deleted('$2')} AND room_id = $2"),
)


async def find_earlier_sends(executor: Executor, drafts: Sequence[Draft], *, deadline: float) -> Outcomes:
    """The drafts whose id is taken: by the message of an earlier attempt, or by another one, which is a
    `Conflict`. Where rooms are distributed, an id is unique in its room only, and the drafts are all for one room.

    Raises: Unavailable (with `outcome_unknown`, because this very call may have made the earlier attempt).
    """
    try:
        ids = [draft.id for draft in drafts]
        if executor.is_distributed:
            found = await executor.fetch_all(EARLIER_SENDS_IN_ROOM, ids, drafts[0].room_id, deadline=deadline)
        else:
            found = await executor.fetch_all(EARLIER_SENDS, ids, deadline=deadline)
    except Unavailable as failure:
        raise failure.with_unknown_outcome() from failure
    earlier = {message.id: message for message in found}
    return {draft.id: _same_or_conflict(draft, earlier[draft.id]) for draft in drafts if draft.id in earlier}


_REST: Final = attrgetter("room_id", "user_id", "message_type", "reply_to")


def _same_or_conflict(draft: Draft, earlier: Message) -> Message | Conflict:
    """The message, if the draft was sent as it.

    The content of an edited or deleted message can no longer be compared. Metadata is not compared, because
    PostgreSQL stores it in another form than it was given.
    """
    same_content = earlier.is_edited or earlier.deleted_at is not None or earlier.content == draft.content
    same_rest = _REST(earlier) == _REST(draft)
    return earlier if same_content and same_rest else Conflict("message id")


_PERMISSIONS: Final = f"""
    SELECT
        draft.ordinal,
        room_users.user_id IS NOT NULL AS is_member,
        draft.reply_to IS NULL OR messages.id IS NOT NULL AS has_original
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[])
        WITH ORDINALITY AS draft (room_id, user_id, reply_to, ordinal)
    LEFT JOIN room_users
        ON room_users.room_id = {{room_id}}
        AND room_users.user_id = draft.user_id
        AND {not_deleted("draft.room_id", "draft.user_id")}
    LEFT JOIN messages
        ON messages.id = draft.reply_to
        AND messages.room_id = {{room_id}}
    ORDER BY draft.ordinal
    """
PERMISSIONS = Statement(
    "messages.permissions",
    lambda ordinal, is_member, has_original: (is_member, has_original),
    _PERMISSIONS.format(room_id="draft.room_id"),
    distributed=_PERMISSIONS.format(room_id="($1::uuid[])[1]"),
)


async def why_not_sent(executor: Executor, drafts: Sequence[Draft], *, deadline: float) -> Outcomes:
    """The outcomes of those drafts that made a check of all drafts fail.

    An earlier attempt counts before a membership that has ended since, because its message is in the room.
    """
    outcomes = await find_earlier_sends(executor, drafts, deadline=deadline)
    rest = [draft for draft in drafts if draft.id not in outcomes]
    if not rest:
        return outcomes
    permissions = await executor.fetch_all(
        PERMISSIONS,
        [draft.room_id for draft in rest],
        [draft.user_id for draft in rest],
        [draft.reply_to for draft in rest],
        deadline=deadline,
    )
    sendable: set[tuple[UUID | None, UUID]] = set()  # with their rooms: later drafts may reply to these
    for draft, (is_member, has_original) in zip(rest, permissions, strict=True):
        if not is_member:
            outcomes[draft.id] = NotAMember(draft.room_id, draft.user_id)
        elif not has_original and (draft.reply_to, draft.room_id) not in sendable:
            outcomes[draft.id] = Invalid("reply_to", "must be a message of the same room")
        else:
            sendable.add((draft.id, draft.room_id))
    return outcomes

"""Appending one message to the log of its room, and what stands in the way of it."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import msgspec

from hubbub.errors import Conflict, Invalid, NotAMember, Unavailable
from hubbub.models import Message, MessageType
from hubbub.postgres import Executor, Statement

MESSAGE = """
    id,
    room_id,
    seq,
    user_id,
    content,
    message_type,
    is_edited,
    created_at,
    updated_at,
    deleted_at,
    reply_to,
    metadata
"""


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A message that is about to be sent, its fields checked. `metadata` is JSON."""

    id: UUID
    room_id: UUID
    user_id: UUID
    content: str
    message_type: MessageType
    reply_to: UUID | None = None
    metadata: str | None = None


# What came of drafts, by their ids: a message, new or from an earlier try, or an error.
Outcomes = dict[UUID, Message | Exception]

# The membership, and what is replied to, are checked in front of the bump, so a refused message takes no seq. A
# duplicate id fails the whole statement and takes none either.
SEND = Statement(
    "messages.send",
    Message,
    f"""
    WITH allowed AS MATERIALIZED (
        SELECT 1
        FROM room_users
        WHERE room_id = $2
            AND user_id = $3
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
)


async def send_one(executor: Executor, draft: Draft, *, deadline: float) -> Message:
    """Append one message, or find it as an earlier try has left it. Ends at `by`.

    Raises `NotAMember`, `Invalid` for a reply to nothing, `Conflict` for an id used otherwise, `Unavailable`.
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
        outcomes = await sent_before(executor, [draft], deadline=deadline)
        outcome = outcomes.get(draft.id) or Conflict("message id")  # or the room is gone since, and all in it
    else:
        if sent:
            return sent[0]
        outcomes = await in_the_way(executor, [draft], deadline=deadline)
        outcome = outcomes.get(draft.id) or NotAMember(draft.room_id, draft.user_id)  # until a moment ago
    if isinstance(outcome, Message):
        return outcome
    raise outcome


KNOWN = Statement("messages.known", Message, f"SELECT {MESSAGE} FROM messages WHERE id = ANY($1::uuid[])")


async def sent_before(executor: Executor, drafts: Sequence[Draft], *, deadline: float) -> Outcomes:
    """The drafts whose id is taken: by an earlier try, which left a message, or by something else.

    Raises `Unavailable` with `outcome_unknown`: the earlier try may be one of this very call.
    """
    try:
        known = await executor.fetch_all(KNOWN, [draft.id for draft in drafts], deadline=deadline)
    except Unavailable as failure:
        raise failure.with_unknown_outcome() from failure
    first_of = {message.id: message for message in known}
    return {draft.id: _recognised(draft, first_of[draft.id]) for draft in drafts if draft.id in first_of}


def _recognised(draft: Draft, first: Message) -> Message | Conflict:
    """The message of an earlier try of this draft, or that it is of something else.

    What was edited or deleted since can no longer be compared by content. Metadata is not compared: PostgreSQL
    keeps it in another form than it was given.
    """
    same_content = first.is_edited or first.deleted_at is not None or first.content == draft.content
    same_rest = (first.room_id, first.user_id, first.message_type, first.reply_to) == (
        draft.room_id,
        draft.user_id,
        draft.message_type,
        draft.reply_to,
    )
    return first if same_content and same_rest else Conflict("message id")


class _Permission(msgspec.Struct, frozen=True):
    place: int
    is_member: bool
    has_original: bool


PERMISSIONS = Statement(
    "messages.permissions",
    _Permission,
    """
    SELECT
        draft.place,
        room_users.user_id IS NOT NULL AS is_member,
        draft.reply_to IS NULL OR messages.id IS NOT NULL AS has_original
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) WITH ORDINALITY AS draft (room_id, user_id, reply_to, place)
    LEFT JOIN room_users
        ON room_users.room_id = draft.room_id
        AND room_users.user_id = draft.user_id
    LEFT JOIN messages
        ON messages.id = draft.reply_to
        AND messages.room_id = draft.room_id
    ORDER BY draft.place
    """,
)


async def in_the_way(executor: Executor, drafts: Sequence[Draft], *, deadline: float) -> Outcomes:
    """What comes of the drafts that a check of all together has failed for.

    An earlier try counts before a membership that has ended since: the message is in the room.
    """
    outcomes = await sent_before(executor, drafts, deadline=deadline)
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
    sendable: set[tuple[UUID | None, UUID]] = set()  # with their rooms: what later ones may reply to
    for draft, allowed in zip(rest, permissions, strict=True):
        if not allowed.is_member:
            outcomes[draft.id] = NotAMember(draft.room_id, draft.user_id)
        elif not allowed.has_original and (draft.reply_to, draft.room_id) not in sendable:
            outcomes[draft.id] = Invalid("reply_to", "must be a message of the same room")
        else:
            sendable.add((draft.id, draft.room_id))
    return outcomes

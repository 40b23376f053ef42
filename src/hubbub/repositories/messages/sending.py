"""The statements that append to the logs of rooms, for one message and for many."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from hubbub.errors import Conflict, NotAMember, Unavailable
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
    deleted_at
"""


class Draft(msgspec.Struct, frozen=True):
    """A message that is about to be sent, its fields checked."""

    id: UUID
    room_id: UUID
    user_id: UUID
    content: str
    message_type: MessageType


# What came of each draft, by its id: a message, new or from an earlier try, or an error.
Outcomes = dict[UUID, Message | Exception]

# The membership is checked in front of the bump, so a refused message takes no seq. A duplicate id fails the whole
# statement and takes none either.
SEND = Statement(
    "messages.send",
    Message,
    f"""
    WITH member AS MATERIALIZED (
        SELECT 1
        FROM room_users
        WHERE room_id = $2
            AND user_id = $3
    ), head AS (
        UPDATE rooms
        SET last_seq = last_seq + 1
        WHERE id = $2
            AND EXISTS (SELECT 1 FROM member)
        RETURNING last_seq
    )
    INSERT INTO messages (id, room_id, seq, user_id, content, message_type)
    SELECT $1, $2, last_seq, $3, $4, $5
    FROM head
    RETURNING {MESSAGE}
    """,
    idempotent=True,
)


async def send_one(executor: Executor, draft: Draft) -> Message:
    """Append one message, or find it as an earlier try has left it.

    Raises `NotAMember`, `Conflict` for an id used otherwise, `Unavailable`.
    """
    try:
        sent = await executor.attempt(
            SEND, draft.id, draft.room_id, draft.user_id, draft.content, draft.message_type
        )
    except Conflict:
        return _recognised(draft, await _known(executor, [draft]))
    if not sent:
        raise NotAMember(draft.room_id, draft.user_id)
    return sent[0]


class _Place(msgspec.Struct, frozen=True):
    id: UUID
    seq: int
    created_at: datetime


# As SEND, for all or none of many. The distinct pairs of room and user ($6, $7) are checked in front. The rooms
# ($8) are locked in the order of their ids, so that two writers with rooms in common cannot lock each other out,
# and each head moves on by the number of its messages ($9). A message finds its room by the place in $8 ($10); its
# seq is the old head plus its place among the room's messages ($11). Old heads are looked up in an array, not
# joined: a generic plan expects ten rows of an unnest, and joins 500 with 500 in a nested loop.
SEND_TOGETHER = Statement(
    "messages.send_together",
    _Place,
    """
    WITH allowed AS MATERIALIZED (
        SELECT count(*) = cardinality($6::uuid[]) AS all_of_them
        FROM unnest($6::uuid[], $7::uuid[]) AS pair (room_id, user_id)
        JOIN room_users USING (room_id, user_id)
    ), locked AS MATERIALIZED (
        SELECT id
        FROM rooms
        WHERE id = ANY($8::uuid[])
            AND (SELECT all_of_them FROM allowed)
        ORDER BY id
        FOR NO KEY UPDATE
    ), heads AS (
        UPDATE rooms
        SET last_seq = last_seq + counted.messages
        FROM unnest($8::uuid[], $9::integer[]) WITH ORDINALITY AS counted (room_id, messages, place)
        WHERE rooms.id = counted.room_id
            AND (SELECT count(*) FROM locked) = cardinality($8::uuid[])
        RETURNING counted.place, rooms.last_seq - counted.messages AS old_seq
    ), bases AS MATERIALIZED (
        SELECT array_agg(old_seq ORDER BY place) AS old_seq
        FROM heads
    )
    INSERT INTO messages (id, room_id, seq, user_id, content, message_type)
    SELECT
        draft.id,
        draft.room_id,
        bases.old_seq[draft.room_place] + draft.place,
        draft.user_id,
        draft.content,
        draft.message_type
    FROM bases
    CROSS JOIN unnest(
        $1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $10::integer[], $11::integer[]
    ) AS draft (id, room_id, user_id, content, message_type, room_place, place)
    WHERE bases.old_seq IS NOT NULL
    RETURNING id, seq, created_at
    """,
    idempotent=True,
)


async def send_together(executor: Executor, drafts: Sequence[Draft]) -> Outcomes:
    """Append many messages, in their order, in as few statements as their faults allow: usually one.

    A draft that is refused or was sent before is found and set aside, and the others go on without it. Raises
    nothing: a failure is the outcome of the drafts that it befell, for others may have been committed by then.
    """
    try:
        if len(drafts) == 1:
            return {drafts[0].id: await send_one(executor, drafts[0])}
        return await _send_what_can_be(executor, drafts)
    except Unavailable as error:
        return {draft.id: error.for_another() for draft in drafts}
    except Exception as error:  # noqa: BLE001 - whatever it is, their senders get it
        return {draft.id: error for draft in drafts}


async def _send_what_can_be(executor: Executor, drafts: Sequence[Draft]) -> Outcomes:
    try:
        places = await _send_all_or_none(executor, drafts)
    except Unavailable:
        raise
    except Conflict:
        aside = await _sent_before(executor, drafts)
    except Exception:  # noqa: BLE001 - one of them cannot be stored, be it for a rule of the application's own
        return await _by_halves(executor, drafts)
    else:
        if places:
            return {draft.id: _message(draft, places[draft.id]) for draft in drafts}
        aside = await _refused(executor, drafts)
    if not aside:
        return await _by_halves(executor, drafts)  # what was in the way is gone
    rest = [draft for draft in drafts if draft.id not in aside]
    return aside | (await send_together(executor, rest) if rest else {})


async def _by_halves(executor: Executor, drafts: Sequence[Draft]) -> Outcomes:
    middle = len(drafts) // 2
    first = await send_together(executor, drafts[:middle])
    return first | await send_together(executor, drafts[middle:])


async def _send_all_or_none(executor: Executor, drafts: Sequence[Draft]) -> dict[UUID, _Place]:
    counts: dict[UUID, int] = {}
    place_in_room = []
    for draft in drafts:
        counts[draft.room_id] = place = counts.get(draft.room_id, 0) + 1
        place_in_room.append(place)
    place_of_room = {room_id: place for place, room_id in enumerate(counts, 1)}
    pairs = {(draft.room_id, draft.user_id) for draft in drafts}
    places = await executor.attempt(
        SEND_TOGETHER,
        [draft.id for draft in drafts],
        [draft.room_id for draft in drafts],
        [draft.user_id for draft in drafts],
        [draft.content for draft in drafts],
        [draft.message_type for draft in drafts],
        [room_id for room_id, _ in pairs],
        [user_id for _, user_id in pairs],
        list(counts),
        list(counts.values()),
        [place_of_room[draft.room_id] for draft in drafts],
        place_in_room,
    )
    return {place.id: place for place in places}


def _message(draft: Draft, place: _Place) -> Message:
    return Message(
        draft.id,
        draft.room_id,
        place.seq,
        draft.user_id,
        draft.content,
        draft.message_type,
        False,
        place.created_at,
        place.created_at,
        None,
    )


MEMBERS_AMONG = Statement(
    "messages.members_among",
    lambda room_id, user_id: (room_id, user_id),
    """
    SELECT room_id, user_id
    FROM unnest($1::uuid[], $2::uuid[]) AS pair (room_id, user_id)
    JOIN room_users USING (room_id, user_id)
    """,
)


async def _refused(executor: Executor, drafts: Sequence[Draft]) -> Outcomes:
    """The drafts whose author is no member of their room, after a check of all together has failed."""
    pairs = {(draft.room_id, draft.user_id) for draft in drafts}
    rooms, users = [room_id for room_id, _ in pairs], [user_id for _, user_id in pairs]
    members = set(await executor.fetch_all(MEMBERS_AMONG, rooms, users))
    return {
        draft.id: NotAMember(draft.room_id, draft.user_id)
        for draft in drafts
        if (draft.room_id, draft.user_id) not in members
    }


KNOWN = Statement("messages.known", Message, f"SELECT {MESSAGE} FROM messages WHERE id = ANY($1::uuid[])")


async def _known(executor: Executor, drafts: Sequence[Draft]) -> dict[UUID, Message]:
    return {message.id: message for message in await executor.fetch_all(KNOWN, [draft.id for draft in drafts])}


async def _sent_before(executor: Executor, drafts: Sequence[Draft]) -> Outcomes:
    """The drafts whose id is taken: sent before, or a conflict."""
    known = await _known(executor, drafts)
    outcomes: Outcomes = {}
    for draft in drafts:
        if draft.id in known:
            try:
                outcomes[draft.id] = _recognised(draft, known)
            except Conflict as conflict:
                outcomes[draft.id] = conflict
    return outcomes


def _recognised(draft: Draft, known: dict[UUID, Message]) -> Message:
    """The message of an earlier try of this draft. Raises `Conflict` for one that is something else.

    What was edited or deleted since can no longer be compared by content: room, author and type have to do.
    """
    first = known.get(draft.id)
    if first is None:
        raise Conflict("message id")
    same_content = first.is_edited or first.deleted_at is not None or first.content == draft.content
    same_place = (first.room_id, first.user_id) == (draft.room_id, draft.user_id)
    if not (same_place and same_content and first.message_type is draft.message_type):
        raise Conflict("message id")
    return first

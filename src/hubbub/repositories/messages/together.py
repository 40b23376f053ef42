"""Appending many messages with one statement, and all that one sender has, with as many as it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from hubbub.errors import Conflict, Invalid
from hubbub.models import Message
from hubbub.postgres import Executor, Statement
from hubbub.repositories.messages.sending import Draft, Outcomes, in_the_way, sent_before

# Messages in a statement; a larger batch wins nothing (docs/decisions.md).
BATCH = 500
# How long a statement for several rooms waits for one that is locked. The pool tries it three times.
LOCK_TIMEOUT = "100ms"


class _Place(msgspec.Struct, frozen=True):
    id: UUID
    seq: int
    created_at: datetime


# As SEND, for all or none of many. The distinct pairs of room and user ($8, $9), and of what is replied to and
# its room ($10, $11), are checked in front. The rooms ($12) are locked in the order of their ids, so that two
# writers with rooms in common cannot lock each other out; $16 is how long to wait for each, NULL for as long as
# it takes. Each head moves on by the number of its messages ($13). A message finds its room by the place in $12
# ($14); its seq is the old head plus its place among the room's messages ($15). Old heads are looked up in an
# array, not joined: a generic plan expects ten rows of an unnest, and joins 500 with 500 in a nested loop.
SEND_TOGETHER = Statement(
    "messages.send_together",
    _Place,
    """
    WITH allowed AS MATERIALIZED (
        SELECT
            (
                SELECT count(*)
                FROM unnest($8::uuid[], $9::uuid[]) AS pair (room_id, user_id)
                JOIN room_users USING (room_id, user_id)
            ) = cardinality($8::uuid[])
            AND (
                SELECT count(*)
                FROM unnest($10::uuid[], $11::uuid[]) AS original (id, room_id)
                JOIN messages USING (id, room_id)
            ) = cardinality($10::uuid[])
            AND ($16::text IS NULL OR set_config('lock_timeout', $16, true) IS NOT NULL) AS all_of_them
    ), locked AS MATERIALIZED (
        SELECT id
        FROM rooms
        WHERE id = ANY($12::uuid[])
            AND (SELECT all_of_them FROM allowed)
        ORDER BY id
        FOR NO KEY UPDATE
    ), heads AS (
        UPDATE rooms
        SET last_seq = last_seq + counted.messages
        FROM unnest($12::uuid[], $13::integer[]) WITH ORDINALITY AS counted (room_id, messages, place)
        WHERE rooms.id = counted.room_id
            AND (SELECT count(*) FROM locked) = cardinality($12::uuid[])
        RETURNING counted.place, rooms.last_seq - counted.messages AS old_seq
    ), bases AS MATERIALIZED (
        SELECT array_agg(old_seq ORDER BY place) AS old_seq
        FROM heads
    )
    INSERT INTO messages (id, room_id, seq, user_id, content, message_type, reply_to, metadata)
    SELECT
        draft.id,
        draft.room_id,
        bases.old_seq[draft.room_place] + draft.place,
        draft.user_id,
        draft.content,
        draft.message_type,
        draft.reply_to,
        draft.metadata::jsonb
    FROM bases
    CROSS JOIN unnest(
        $1::uuid[],
        $2::uuid[],
        $3::uuid[],
        $4::text[],
        $5::text[],
        $6::uuid[],
        $7::text[],
        $14::integer[],
        $15::integer[]
    ) AS draft (id, room_id, user_id, content, message_type, reply_to, metadata, room_place, place)
    WHERE bases.old_seq IS NOT NULL
    RETURNING id, seq, created_at
    """,
    idempotent=True,
)


async def append(executor: Executor, drafts: Sequence[Draft], *, by: float) -> Outcomes:
    """The messages, none of them if one is refused. Raises `Locked` if one of several rooms is."""
    counts: dict[UUID, int] = {}
    place_in_room = []
    for draft in drafts:
        counts[draft.room_id] = place = counts.get(draft.room_id, 0) + 1
        place_in_room.append(place)
    place_of_room = {room_id: place for place, room_id in enumerate(counts, 1)}
    pairs = {(draft.room_id, draft.user_id) for draft in drafts}
    originals = _originals(drafts)
    places = await executor.attempt(
        SEND_TOGETHER,
        [draft.id for draft in drafts],
        [draft.room_id for draft in drafts],
        [draft.user_id for draft in drafts],
        [draft.content for draft in drafts],
        [draft.message_type for draft in drafts],
        [draft.reply_to for draft in drafts],
        [draft.metadata for draft in drafts],
        [room_id for room_id, _ in pairs],
        [user_id for _, user_id in pairs],
        [message_id for message_id, _ in originals],
        [room_id for _, room_id in originals],
        list(counts),
        list(counts.values()),
        [place_of_room[draft.room_id] for draft in drafts],
        place_in_room,
        LOCK_TIMEOUT if len(counts) > 1 else None,
        by=by,
    )
    place_of = {place.id: place for place in places}
    return {draft.id: _message(draft, place_of[draft.id]) for draft in drafts} if places else {}


def _originals(drafts: Sequence[Draft]) -> set[tuple[UUID, UUID]]:
    """What has to be there to be replied to, with its room: not what one of the drafts puts there in front."""
    earlier: set[tuple[UUID, UUID]] = set()
    originals = set()
    for draft in drafts:
        if draft.reply_to is not None and (draft.reply_to, draft.room_id) not in earlier:
            originals.add((draft.reply_to, draft.room_id))
        earlier.add((draft.id, draft.room_id))
    return originals


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
        draft.reply_to,
        draft.metadata,  # type: ignore[arg-type]  # JSON, as it comes from PostgreSQL
    )


ROOMS_NOT_LOCKED = Statement(
    "messages.rooms_not_locked",
    lambda id: id,
    """
    SELECT id
    FROM rooms
    WHERE id = ANY($1::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED
    """,
    idempotent=True,
)


async def rooms_not_locked(executor: Executor, rooms: Iterable[UUID], *, by: float) -> set[UUID]:
    """Those of the rooms that nobody had locked a moment ago."""
    return set(await executor.fetch_all(ROOMS_NOT_LOCKED, list(rooms), by=by))


async def send_all(executor: Executor, drafts: Sequence[Draft], *, by: float) -> list[Message]:
    """Append messages to one room, in their order and all or none, or find them as an earlier try has left them.

    Raises what `send_one` does; an `Invalid` says which of the drafts it is about.
    """
    if len(drafts) <= BATCH:
        return await _send_all(executor, drafts, 0, by)
    async with executor.transaction(by=by) as part:
        few = range(0, len(drafts), BATCH)
        return [
            message for first in few for message in await _send_all(part, drafts[first : first + BATCH], first, by)
        ]


async def _send_all(executor: Executor, drafts: Sequence[Draft], first: int, by: float) -> list[Message]:
    """As `send_all`, for a batch; the first of its drafts is number `first` of all."""
    sent: dict[UUID, Message] = {}
    while rest := [draft for draft in drafts if draft.id not in sent]:
        try:
            outcomes = await append(executor, rest, by=by) or await in_the_way(executor, rest, by=by)
        except Conflict:
            outcomes = await sent_before(executor, rest, by=by)
            if not outcomes:
                raise
        for number, draft in enumerate(drafts, first):
            outcome = outcomes.get(draft.id)
            if isinstance(outcome, Invalid):
                raise Invalid(f"drafts[{number}].{outcome.field}", outcome.reason)
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                sent[draft.id] = outcome
    return [sent[draft.id] for draft in drafts]

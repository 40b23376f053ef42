"""Appending many messages with one statement, and all that one sender has, with as many as it takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import msgspec

from hubbub.errors import Conflict, Invalid
from hubbub.models import Message, MessageType
from hubbub.postgres import Executor, Statement
from hubbub.repositories.messages.sending import Draft, Outcomes, in_the_way, sent_before

V = TypeVar("V")

# Messages in a statement; a larger batch wins nothing (docs/decisions.md).
BATCH = 500
# How long a statement for several rooms waits for one that is locked. The pool tries it three times.
LOCK_TIMEOUT = "100ms"


class _Heads(msgspec.Struct, frozen=True):
    """What a statement has done: the heads of its rooms before it, how many messages it wrote, and when."""

    old_seqs: Sequence[int] | None
    messages: int
    created_at: datetime | None


# As SEND, for all or none of many. A draft finds its room by the place in $9 ($2); its seq is the old head plus
# its place among the room's messages ($3). Memberships, and what is replied to in which room ($11, $12), are
# checked in front. The rooms ($9) are locked in the order of their ids, so that two writers with rooms in common
# cannot lock each other out; $13 is how long to wait for each, NULL for as long as it takes. Each head moves on
# by the number of its messages ($10). Old heads are looked up in an array, not joined: a generic plan expects ten
# rows of an unnest, and joins 500 with 500 in a nested loop. Arrays of which no draft has a value are empty:
# unnest makes them NULL. What an element of an array costs to encode, and a row to decode, is a good part of a
# send: so the numbers ($2, $3, $10) come as text, and one row goes back.
SEND_TOGETHER = Statement(
    "messages.send_together",
    _Heads,
    """
    WITH draft AS MATERIALIZED (
        SELECT
            id,
            ($9::uuid[])[room_place] AS room_id,
            room_place,
            place,
            user_id,
            content,
            COALESCE(message_type, 'text') AS message_type,
            reply_to,
            metadata
        FROM unnest(
            $1::uuid[],
            $2::text::integer[],
            $3::text::integer[],
            $4::uuid[],
            $5::text[],
            $6::text[],
            $7::uuid[],
            $8::text[]
        ) AS draft (id, room_place, place, user_id, content, message_type, reply_to, metadata)
    ), allowed AS MATERIALIZED (
        SELECT
            (
                SELECT count(*)
                FROM draft
                JOIN room_users USING (room_id, user_id)
            ) = cardinality($1::uuid[])
            AND (
                SELECT count(*)
                FROM unnest($11::uuid[], $12::uuid[]) AS original (id, room_id)
                JOIN messages USING (id, room_id)
            ) = cardinality($11::uuid[])
            AND ($13::text IS NULL OR set_config('lock_timeout', $13, true) IS NOT NULL) AS all_of_them
    ), locked AS MATERIALIZED (
        SELECT id
        FROM rooms
        WHERE id = ANY($9::uuid[])
            AND (SELECT all_of_them FROM allowed)
        ORDER BY id
        FOR NO KEY UPDATE
    ), heads AS (
        UPDATE rooms
        SET last_seq = last_seq + counted.messages
        FROM unnest($9::uuid[], $10::text::integer[]) WITH ORDINALITY AS counted (room_id, messages, place)
        WHERE rooms.id = counted.room_id
            AND (SELECT count(*) FROM locked) = cardinality($9::uuid[])
        RETURNING counted.place, rooms.last_seq - counted.messages AS old_seq
    ), bases AS MATERIALIZED (
        SELECT array_agg(old_seq ORDER BY place) AS old_seqs
        FROM heads
    ), sent AS (
        INSERT INTO messages (id, room_id, seq, user_id, content, message_type, reply_to, metadata)
        SELECT
            draft.id,
            draft.room_id,
            bases.old_seqs[draft.room_place] + draft.place,
            draft.user_id,
            draft.content,
            draft.message_type,
            draft.reply_to,
            draft.metadata::jsonb
        FROM bases
        CROSS JOIN draft
        WHERE bases.old_seqs IS NOT NULL
        RETURNING created_at
    )
    SELECT
        (SELECT old_seqs FROM bases) AS old_seqs,
        count(*) AS messages,
        min(created_at) AS created_at
    FROM sent
    """,
    idempotent=True,
)


async def append(executor: Executor, drafts: Sequence[Draft], *, deadline: float) -> Outcomes:
    """The messages, none of them if one is refused. Raises `LockNotAvailable` if one of several rooms is."""
    place_of_room: dict[UUID, int] = {}
    counts: list[int] = []
    room_places, places = [], []
    for draft in drafts:
        room_place = place_of_room.setdefault(draft.room_id, len(counts))
        if room_place == len(counts):
            counts.append(0)
        counts[room_place] += 1
        room_places.append(room_place + 1)
        places.append(counts[room_place])
    originals = _originals(drafts)
    (heads,) = await executor.attempt(
        SEND_TOGETHER,
        [draft.id for draft in drafts],
        _integers(room_places),
        _integers(places),
        [draft.user_id for draft in drafts],
        [draft.content for draft in drafts],
        _unless_all(MessageType.TEXT, [draft.message_type for draft in drafts]),
        _unless_all(None, [draft.reply_to for draft in drafts]),
        _unless_all(None, [draft.metadata for draft in drafts]),
        list(place_of_room),
        _integers(counts),
        [message_id for message_id, _ in originals],
        [room_id for _, room_id in originals],
        LOCK_TIMEOUT if len(counts) > 1 else None,
        deadline=deadline,
    )
    if heads.old_seqs is None:
        return {}
    if heads.messages != len(drafts) or heads.created_at is None:
        raise Invalid("message", "must not be kept out by a trigger")
    at, old_seqs = heads.created_at, heads.old_seqs
    return {
        draft.id: _message(draft, old_seqs[room_place - 1] + place, at)
        for draft, room_place, place in zip(drafts, room_places, places, strict=True)
    }


def _integers(numbers: list[int]) -> str:
    """An array of integers as PostgreSQL reads it."""
    return "{" + ",".join(map(str, numbers)) + "}"


def _unless_all(usual: V, values: list[V]) -> list[V]:
    """The values, or none where each is the usual one."""
    return values if values.count(usual) < len(values) else []


def _originals(drafts: Sequence[Draft]) -> set[tuple[UUID, UUID]]:
    """What has to be there to be replied to, with its room: not what one of the drafts puts there in front."""
    earlier: set[tuple[UUID, UUID]] = set()
    originals: set[tuple[UUID, UUID]] = set()
    if all(draft.reply_to is None for draft in drafts):
        return originals
    for draft in drafts:
        if draft.reply_to is not None and (draft.reply_to, draft.room_id) not in earlier:
            originals.add((draft.reply_to, draft.room_id))
        earlier.add((draft.id, draft.room_id))
    return originals


def _message(draft: Draft, seq: int, at: datetime) -> Message:
    return Message(
        draft.id,
        draft.room_id,
        seq,
        draft.user_id,
        draft.content,
        draft.message_type,
        False,
        at,
        at,
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


async def rooms_not_locked(executor: Executor, rooms: Iterable[UUID], *, deadline: float) -> set[UUID]:
    """Those of the rooms that nobody had locked a moment ago."""
    return set(await executor.fetch_all(ROOMS_NOT_LOCKED, list(rooms), deadline=deadline))


async def send_all(executor: Executor, drafts: Sequence[Draft], *, deadline: float) -> list[Message]:
    """Append messages to one room, in their order and all or none, or find them as an earlier try has left them.

    Raises what `send_one` does; an `Invalid` says which of the drafts it is about.
    """
    if len(drafts) <= BATCH:
        return await _send_all(executor, drafts, 0, deadline)
    async with executor.transaction(deadline=deadline) as part:
        few = range(0, len(drafts), BATCH)
        return [
            message
            for first in few
            for message in await _send_all(part, drafts[first : first + BATCH], first, deadline)
        ]


async def _send_all(executor: Executor, drafts: Sequence[Draft], first: int, deadline: float) -> list[Message]:
    """As `send_all`, for a batch; the first of its drafts is number `first` of all."""
    sent: dict[UUID, Message] = {}
    while rest := [draft for draft in drafts if draft.id not in sent]:
        try:
            outcomes = await append(executor, rest, deadline=deadline) or await in_the_way(
                executor, rest, deadline=deadline
            )
        except Conflict:
            outcomes = await sent_before(executor, rest, deadline=deadline)
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

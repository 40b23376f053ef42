"""Appending many messages with one statement, or all of one call with as many as that takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from hubbub.errors import Conflict, Invalid
from hubbub.models import Message, MessageType, NewMessage
from hubbub.postgres import Executor, Statement
from hubbub.repositories.messages.send import Draft, Outcomes, draft_of, find_earlier_sends, why_not_sent
from hubbub.repository import longest_lock_wait
from hubbub.scheduling import TimeSlice

V = TypeVar("V")

MOST_DRAFTS: Final = 10_000
"""Bounds the time for which one call locks its room: about a second on a busy machine of 2 cores."""
MESSAGES_PER_STATEMENT: Final = 500
"""A larger batch gains nothing (docs/decisions.md)."""
BYTES_PER_STATEMENT: Final = 1024 * 1024
"""Characters of content and metadata in a batch, whose encoding is one step of the event loop. The longest
messages take four bytes per character, and 500 of them would be 44 MB."""


async def drafts_of(room_id: UUID, user_id: UUID, news: Iterable[NewMessage]) -> list[Draft]:
    """The drafts, if all can be sent. Raises: Invalid (its field names the draft, as `drafts[3].content`)."""
    drafts: dict[UUID, Draft] = {}
    time_slice = TimeSlice()
    for number, new in enumerate(tuple(islice(news, MOST_DRAFTS + 1))):
        if number == MOST_DRAFTS:
            raise Invalid("drafts", f"must be at most {MOST_DRAFTS}")
        if not isinstance(new, NewMessage):
            raise Invalid(f"drafts[{number}]", "must be a NewMessage")
        try:
            draft = draft_of(room_id, user_id, new)
        except Invalid as refusal:
            raise Invalid(f"drafts[{number}].{refusal.field}", refusal.reason) from refusal
        if draft.id in drafts:
            raise Invalid(f"drafts[{number}].id", "duplicate id")
        drafts[draft.id] = draft
        await time_slice.pause_if_due()
    return list(drafts.values())


def size_of(draft: Draft) -> int:
    """The characters of its content and metadata."""
    return len(draft.content) + len(draft.metadata or "")


def _parts(drafts: Sequence[Draft]) -> Iterator[Sequence[Draft]]:
    """The drafts in parts of one statement each."""
    first = size = 0
    for number, draft in enumerate(drafts):
        if number - first == MESSAGES_PER_STATEMENT or (size and size + size_of(draft) > BYTES_PER_STATEMENT):
            yield drafts[first:number]
            first, size = number, 0
        size += size_of(draft)
    yield drafts[first:]


# As SEND, for all or none of many drafts.
#
# $9 has the rooms, $10 how many messages each gets. A draft has the ordinal of its room in $9 ($2), and its own
# ordinal among the messages of that room ($3): its seq is the old head of the room plus the latter. Memberships
# and the messages that are replied to ($11, in the rooms $12) are checked first. Rooms are locked in the order of
# their ids, so that two writers with rooms in common cannot lock each other out. $13 is how long to wait for each
# lock, NULL without a limit.
#
# Old heads are looked up in an array and not joined: a generic plan expects ten rows of an unnest, and joins 500
# with 500 in a nested loop. An array in which every value is the default is sent empty, which unnest turns into
# NULLs. An array in a subquery, as (SELECT $1), hides its length from the planner. PostgreSQL would otherwise
# replan each batch of a few messages, which takes longer than the batch. Encoding an element of an array and
# decoding a row are a large part of the cost of a send. So the numbers ($2, $3, $10) are sent as text, and one row
# comes back: the old heads, the number of messages that were sent, and the time.
SEND_MANY = Statement(
    "messages.send_many",
    lambda old_seqs, messages, created_at: (old_seqs, messages, created_at),
    """
    WITH draft AS MATERIALIZED (
        SELECT
            id,
            ($9::uuid[])[room_ordinal] AS room_id,
            room_ordinal,
            ordinal,
            user_id,
            content,
            COALESCE(message_type, 'text') AS message_type,
            reply_to,
            metadata
        FROM unnest(
            (SELECT $1::uuid[]),
            $2::text::integer[],
            $3::text::integer[],
            $4::uuid[],
            $5::text[],
            $6::text[],
            $7::uuid[],
            $8::text[]
        ) AS draft (id, room_ordinal, ordinal, user_id, content, message_type, reply_to, metadata)
    ), allowed AS MATERIALIZED (
        SELECT
            (
                SELECT count(*)
                FROM draft
                JOIN room_users USING (room_id, user_id)
            ) = cardinality($1::uuid[])
            AND (
                SELECT count(*)
                FROM unnest((SELECT $11::uuid[]), (SELECT $12::uuid[])) AS original (id, room_id)
                JOIN messages USING (id, room_id)
            ) = cardinality($11::uuid[])
            AND NOT EXISTS (
                SELECT 1
                FROM hubbub_deletions AS hidden
                WHERE hidden.id = ANY($9::uuid[])
                    OR EXISTS (SELECT 1 FROM draft WHERE draft.user_id = hidden.id)
            )
            AND ($13::text IS NULL OR set_config('lock_timeout', $13, true) IS NOT NULL) AS all_of_them
    ), locked AS MATERIALIZED (
        SELECT id
        FROM rooms
        WHERE id = ANY((SELECT $9::uuid[])::uuid[])
            AND (SELECT all_of_them FROM allowed)
        ORDER BY id
        FOR NO KEY UPDATE
    ), heads AS (
        UPDATE rooms
        SET last_seq = last_seq + counted.messages
        FROM unnest($9::uuid[], $10::text::integer[]) WITH ORDINALITY AS counted (room_id, messages, ordinal)
        WHERE rooms.id = counted.room_id
            AND (SELECT count(*) FROM locked) = cardinality($9::uuid[])
        RETURNING counted.ordinal, rooms.last_seq - counted.messages AS old_seq
    ), bases AS MATERIALIZED (
        SELECT array_agg(old_seq ORDER BY ordinal) AS old_seqs
        FROM heads
    ), sent AS (
        INSERT INTO messages (id, room_id, seq, user_id, content, message_type, reply_to, metadata)
        SELECT
            draft.id,
            draft.room_id,
            bases.old_seqs[draft.room_ordinal] + draft.ordinal,
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
    distributed="""
    SELECT old_seqs, sent AS messages, sent_at AS created_at
    FROM hubbub_send_many(($9::uuid[])[1], $1, $2, $3, $4, $5, $6, $7, $8, $10, $11, $12, $13)
    """,
)


async def append(executor: Executor, drafts: Sequence[Draft], *, deadline: float) -> list[Message]:
    """Append all drafts, or none if one is refused: then there are no messages. They have the order of the drafts.

    Raises: LockNotAvailable (one of several rooms stayed locked), Conflict (one of the ids is taken).
    """
    ordinal_of_room: dict[UUID, int] = {}
    counts: list[int] = []
    room_ordinals, ordinals = [], []
    for draft in drafts:
        room_ordinal = ordinal_of_room.setdefault(draft.room_id, len(counts))
        if room_ordinal == len(counts):
            counts.append(0)
        counts[room_ordinal] += 1
        room_ordinals.append(room_ordinal + 1)
        ordinals.append(counts[room_ordinal])
    originals = _originals(drafts)
    [(old_seqs, sent, at)] = await executor.attempt(
        SEND_MANY,
        [draft.id for draft in drafts],
        _integers(room_ordinals),
        _integers(ordinals),
        [draft.user_id for draft in drafts],
        [draft.content for draft in drafts],
        _unless_all(MessageType.TEXT, [draft.message_type for draft in drafts]),
        _unless_all(None, [draft.reply_to for draft in drafts]),
        _unless_all(None, [draft.metadata for draft in drafts]),
        list(ordinal_of_room),
        _integers(counts),
        [message_id for message_id, _ in originals],
        [room_id for _, room_id in originals],
        longest_lock_wait(deadline) if len(counts) > 1 else None,
        deadline=deadline,
    )
    if old_seqs is None:
        return []
    if sent != len(drafts):
        raise Invalid("message", "was dropped by a trigger of the database")
    return [
        _message(draft, old_seqs[room_ordinal - 1] + ordinal, at)
        for draft, room_ordinal, ordinal in zip(drafts, room_ordinals, ordinals, strict=True)
    ]


def _integers(numbers: list[int]) -> str:
    """An array of integers as PostgreSQL reads it."""
    return "{" + ",".join(map(str, numbers)) + "}"


def _unless_all(default: V, values: list[V]) -> list[V]:
    """The values, or none if each is the default."""
    return values if values.count(default) < len(values) else []


def _originals(drafts: Sequence[Draft]) -> set[tuple[UUID, UUID]]:
    """The messages that drafts reply to, with their rooms, except those that an earlier draft creates."""
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
        None if draft.metadata is None else msgspec.json.decode(draft.metadata),
    )


async def send_all(executor: Executor, drafts: Sequence[Draft], *, deadline: float) -> list[Message]:
    """Append messages to one room, in their order and all or none; those of an earlier attempt are found.

    Raises: NotAMember, Invalid (its field names the draft), Conflict (another message has the id).
    """
    parts = list(_parts(drafts))
    if len(parts) == 1:
        return await _send_part(executor, drafts, 0, deadline)
    sent: list[Message] = []
    async with executor.transaction(deadline=deadline) as transaction:
        for part in parts:
            sent += await _send_part(transaction, part, len(sent), deadline)
    return sent


async def _send_part(executor: Executor, drafts: Sequence[Draft], first: int, deadline: float) -> list[Message]:
    """As `send_all`, for the drafts of one statement, of which the first is number `first` of the call."""
    sent: dict[UUID, Message] = {}
    while rest := [draft for draft in drafts if draft.id not in sent]:
        try:
            if len(messages := await append(executor, rest, deadline=deadline)) == len(drafts):
                return messages
            outcomes: Outcomes = {message.id: message for message in messages}
            outcomes = outcomes or await why_not_sent(executor, rest, deadline=deadline)
        except Conflict:
            outcomes = await find_earlier_sends(executor, rest, deadline=deadline)
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

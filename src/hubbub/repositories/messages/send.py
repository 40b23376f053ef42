"""Appending messages to the log of a room, one or many by a statement: drafts, statements, and refusals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from operator import attrgetter
from typing import Final, TypeAlias, TypeVar
from uuid import UUID

import msgspec
from uuid_utils import uuid7

from hubbub import inputs
from hubbub.errors import Conflict, Invalid, NotAMember, once_committed
from hubbub.models import Message, MessageType, NewMessage
from hubbub.postgres import NOT_SUPPORTED, Executor, FastUUID, Statement, as_fast_uuid
from hubbub.repository import longest_lock_wait
from hubbub.scheduling import TimeSlice
from hubbub.sql import columns, not_deleted

V = TypeVar("V")

MESSAGE: Final = columns(Message)

MAX_DRAFTS: Final = 10_000
"""Bounds the time for which one call locks its room: about a second on a busy machine of 2 cores."""
MESSAGES_PER_STATEMENT: Final = 500
"""A larger batch gains nothing (docs/decisions.md)."""
CHARACTERS_PER_STATEMENT: Final = 1024 * 1024
"""Characters of content and metadata in a batch, whose encoding is one step of the event loop. The longest
messages take four bytes per character, and 500 of them would be 44 MB."""


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


SendOutcomes: TypeAlias = dict[UUID, Message | Exception]
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


async def drafts_of(room_id: UUID, user_id: UUID, news: Iterable[NewMessage]) -> list[Draft]:
    """The drafts, if all can be sent. Raises: Invalid (its field names the draft, as `drafts[3].content`)."""
    drafts: dict[UUID, Draft] = {}
    time_slice = TimeSlice()
    for number, new in enumerate(tuple(islice(news, MAX_DRAFTS + 1))):
        if number == MAX_DRAFTS:
            raise Invalid("drafts", f"must be at most {MAX_DRAFTS}")
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
        if number - first == MESSAGES_PER_STATEMENT or (size and size + size_of(draft) > CHARACTERS_PER_STATEMENT):
            yield drafts[first:number]
            first, size = number, 0
        size += size_of(draft)
    yield drafts[first:]


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

    With a pool the statement is committed when it returns. In a transaction it runs in a savepoint.

    Raises: NotAMember, Invalid (the reply is to no message of the room, or a trigger of the database drops the
    message), Conflict (another message has the id).
    """
    outcome: Message | Exception | None = None
    for _ in range(2):
        try:
            sent = await executor.fetch_in_savepoint(
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
            outcome = outcomes.get(draft.id)
            if outcome is not None:
                break
            # Else the message that had the id is gone: a failover lost it, or its room was deleted.
        else:
            if sent:
                return sent[0]
            outcomes = await why_not_sent(executor, [draft], deadline=deadline)
            outcome = outcomes.get(draft.id)
            if outcome is not None:
                break
            outcome = dropped()  # or its author joined a moment ago, and the second attempt sends it
    if isinstance(outcome, Message):
        return outcome
    raise outcome or Conflict("message id")


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


async def find_earlier_sends(executor: Executor, drafts: Sequence[Draft], *, deadline: float) -> SendOutcomes:
    """The drafts whose id is taken: by the message of an earlier attempt, or by another one, which is a
    `Conflict`. Where rooms are distributed, an id is unique in its room only, and the drafts are all for one room.

    Raises: Unavailable (with `outcome_unknown`, because this very call may have made the earlier attempt).
    """
    ids = [draft.id for draft in drafts]
    with once_committed():
        if executor.is_distributed:
            found = await executor.fetch_all(EARLIER_SENDS_IN_ROOM, ids, drafts[0].room_id, deadline=deadline)
        else:
            found = await executor.fetch_all(EARLIER_SENDS, ids, deadline=deadline)
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


def dropped() -> Invalid:
    """The error of a message without a row, though all checks passed."""
    return Invalid("message", "was dropped by a trigger of the database")


async def why_not_sent(executor: Executor, drafts: Sequence[Draft], *, deadline: float) -> SendOutcomes:
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


# As SEND, for all or none of many drafts.
#
# $9 has the rooms, $10 how many messages each gets. A draft has the ordinal of its room in $9 ($2), and its own
# ordinal among the messages of that room ($3): its seq is the old head of the room plus the latter. Memberships
# and the messages that are replied to ($11, in the rooms $12) are checked first. Rooms are locked in the order of
# their ids, so that two writers with rooms in common cannot deadlock. $13 is how long to wait for each
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

    Raises: LockNotAvailable (one of several rooms stayed locked), Conflict (one of the ids is taken), Invalid (a
    trigger of the database has dropped some; the others are sent).
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
    [(old_seqs, sent, at)] = await executor.fetch_in_savepoint(
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
        raise dropped()
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
    may_repeat = True
    while rest := [draft for draft in drafts if draft.id not in sent]:
        try:
            if len(messages := await append(executor, rest, deadline=deadline)) == len(drafts):
                return messages
            outcomes: SendOutcomes = {message.id: message for message in messages}
            outcomes = outcomes or await why_not_sent(executor, rest, deadline=deadline)
        except Conflict:
            outcomes = await find_earlier_sends(executor, rest, deadline=deadline)
            if not outcomes and not may_repeat:
                raise
            may_repeat = bool(outcomes)  # without any, the messages that had the ids are gone, as in `send_one`
        for number, draft in enumerate(drafts, first):
            outcome = outcomes.get(draft.id)
            if isinstance(outcome, Invalid):
                raise Invalid(f"drafts[{number}].{outcome.field}", outcome.reason)
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                sent[draft.id] = outcome
    return [sent[draft.id] for draft in drafts]

"""What a batch comes to, put into the tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final
from uuid import UUID

from msgspec import UNSET

from hubbub.history.forms import AnyLine, ChangeLine
from hubbub.history.memberships import store_memberships
from hubbub.history.replay import Replay, Revision
from hubbub.postgres import Copy, OpenTransaction, Row, Statement

# So many lines are replayed at a time; then what was sent goes on its way, and others have the event loop.
PIECE: Final = 500

MESSAGES: Final = Copy(
    "messages",
    (
        *("id", "room_id", "seq", "user_id", "content", "message_type", "is_edited"),
        *("created_at", "updated_at", "deleted_at", "reply_to", "metadata"),
    ),
)
EVENTS: Final = Copy("room_events", ("room_id", "seq", "kind", "message_id", "user_id", "payload", "created_at"))

BUMP = Statement(
    "history.bump_rooms",
    int,
    """
    UPDATE rooms
    SET last_seq = heads.last_seq
    FROM unnest($1::uuid[], $2::bigint[]) AS heads (id, last_seq)
    WHERE rooms.id = heads.id
    """,
)

CHANGE = Statement(
    "history.change_room",
    int,
    """
    UPDATE rooms
    SET name = $2,
        description = $3,
        is_private = $4,
        updated_at = $5,
        keeps_receipts = CASE WHEN $6 THEN $7 ELSE keeps_receipts END
    WHERE id = $1
    """,
)

REVISE = Statement(
    "history.revise_messages",
    int,
    """
    UPDATE messages
    SET content = revised.content,
        is_edited = revised.is_edited,
        updated_at = revised.updated_at,
        deleted_at = revised.deleted_at,
        metadata = revised.metadata
    FROM unnest($1::uuid[], $2::text[], $3::boolean[], $4::timestamptz[], $5::timestamptz[], $6::jsonb[])
        AS revised (id, content, is_edited, updated_at, deleted_at, metadata)
    WHERE messages.id = revised.id
    """,
)


async def store(
    transaction: OpenTransaction,
    replay: Replay,
    lines: Sequence[tuple[int, AnyLine]],
    while_it_is_stored: Callable[[], None],
) -> None:
    """Replay the lines and store all that comes of them. Memberships go after the messages that they may name.

    Rows are sent as they come. When all are sent, PostgreSQL is busy with them for as long again: foreign keys are
    checked at the end of a COPY, and that is more than half of its work. The callback is called then, for what can
    be done meanwhile.
    """
    await transaction.copy(MESSAGES, _messages(replay, lines, while_it_is_stored))
    rooms = list(replay.rooms.values())
    events = [event for room in rooms for event in room.events]
    if events:
        await transaction.copy(EVENTS, events)
    grown = [room for room in rooms if room.has_grown]
    if grown:
        await transaction.execute(BUMP, [room.id for room in grown], [room.last_seq for room in grown])
    for room in rooms:
        if room.changed is not None:
            await _change(transaction, room.id, room.changed)
    if replay.revisions:
        await _revise(transaction, replay.revisions)
    await store_memberships(transaction, rooms)


async def _messages(
    replay: Replay, lines: Sequence[tuple[int, AnyLine]], at_the_end: Callable[[], None]
) -> AsyncIterator[Row]:
    for start in range(0, len(lines), PIECE):
        for row in replay.take(lines[start : start + PIECE]):
            yield row
        await asyncio.sleep(0)
    at_the_end()


async def _revise(transaction: OpenTransaction, revisions: Sequence[Revision]) -> None:
    await transaction.execute(
        REVISE,
        [one.id for one in revisions],
        [one.content for one in revisions],
        [one.is_edited for one in revisions],
        [one.updated_at for one in revisions],
        [one.deleted_at for one in revisions],
        [one.metadata for one in revisions],
    )


async def _change(transaction: OpenTransaction, room_id: UUID, line: ChangeLine) -> None:
    says, keeps = (False, None) if line.keeps_receipts is UNSET else (True, line.keeps_receipts)
    await transaction.execute(CHANGE, room_id, line.name, line.description, line.is_private, line.at, says, keeps)

"""What is in the database already of that which a batch speaks of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from hubbub.history.forms import AnyLine, DeleteLine, EditLine, Line, MemberLine, MessageLine
from hubbub.history.identities import derive_message_id
from hubbub.history.rooms import room_id_of
from hubbub.postgres import Executor, Statement


class Happened(NamedTuple):
    """An entry that is no message, without its seq."""

    room_id: UUID
    kind: str
    message_id: UUID | None
    user_id: UUID | None
    created_at: datetime


class Stored(NamedTuple):
    """A message that is here."""

    room_id: UUID
    seq: int
    user_id: UUID | None
    content: str
    was_changed: bool
    updated_at: datetime

    @classmethod
    def of(cls, room_id: UUID, seq: int, user_id: UUID | None, line: MessageLine) -> Stored:
        was_changed = line.is_edited or line.deleted_at is not None
        return cls(room_id, seq, user_id, line.content, was_changed, line.updated_at or line.at)

    def is_of(self, line: MessageLine, room_id: UUID, user_id: UUID | None) -> bool:
        """Whether it is that of the line. What was changed since, on either side, is not compared by content."""
        was_changed = self.was_changed or line.is_edited or line.deleted_at is not None
        same_author = self.user_id is None or user_id is None or self.user_id == user_id
        same_place = self.room_id == room_id and (line.seq is None or line.seq == self.seq)
        return same_place and same_author and (was_changed or self.content == line.content)


class Present(NamedTuple):
    """Messages by id, other entries by room and seq; and how often something happened, where it may repeat."""

    messages: dict[UUID, Stored]
    entries: dict[tuple[UUID, int], Happened]
    happened: Counter[Happened]


MESSAGES = Statement(
    "history.messages",
    lambda id, room_id, seq, user_id, content, was_changed, updated_at: (
        id,
        Stored(room_id, seq, user_id, content, was_changed, updated_at),
    ),
    """
    SELECT
        id,
        room_id,
        seq,
        user_id,
        content,
        is_edited OR deleted_at IS NOT NULL AS was_changed,
        updated_at
    FROM messages
    WHERE id = ANY($1::uuid[])
    """,
)

ENTRIES = Statement(
    "history.entries",
    lambda seq, room_id, kind, message_id, user_id, created_at: (
        seq,
        Happened(room_id, kind, message_id, user_id, created_at),
    ),
    """
    SELECT
        seq,
        room_id,
        kind,
        message_id,
        user_id,
        created_at
    FROM room_events
    JOIN unnest($1::uuid[], $2::bigint[]) AS asked (room_id, seq) USING (room_id, seq)
    """,
)

HAPPENED = Statement(
    "history.happened",
    Happened,
    """
    SELECT
        room_id,
        kind,
        message_id,
        user_id,
        created_at
    FROM room_events
    WHERE room_id = ANY($1::uuid[])
        AND created_at = ANY($2::timestamptz[])
    """,
)


async def look_up(executor: Executor, lines: Sequence[tuple[int, AnyLine]], *, careful: bool) -> Present:
    """What is here of all that the lines name.

    A `careful` look includes what has no id of its own in the lines: needed only when they may have been imported
    before in some other form of the file.
    """
    ids = _named_messages(line for _, line in lines)
    happened: Counter[Happened] = Counter()
    if careful:
        ids |= _derived_messages(lines)
        entries = [line for _, line in lines if isinstance(line, Line) and type(line) is not MessageLine]
        rooms, times = {room_id_of(line) for line in entries}, {line.at for line in entries}
        happened.update(await executor.fetch_all(HAPPENED, rooms, times))
    messages = dict(await executor.fetch_all(MESSAGES, ids)) if ids else {}
    return Present(messages, await _entries(executor, lines), happened)


def _named_messages(lines: Iterable[AnyLine]) -> set[UUID]:
    ids: set[UUID | None] = set()
    for line in lines:
        if type(line) is MessageLine:
            if line.id is not None or line.reply_to is not None:
                ids |= {line.id, line.reply_to}
        elif isinstance(line, EditLine | DeleteLine):
            ids.add(line.message_id)
        elif isinstance(line, MemberLine):
            ids.add(line.last_read_message_id)
    return {id for id in ids if id is not None}


def _derived_messages(lines: Iterable[tuple[int, AnyLine]]) -> set[UUID]:
    return {
        derive_message_id(number, room_id_of(line).hex, line.user or str(line.user_id), line.at, line.content)
        for number, line in lines
        if type(line) is MessageLine and line.id is None
    }


async def _entries(executor: Executor, lines: Iterable[tuple[int, AnyLine]]) -> dict[tuple[UUID, int], Happened]:
    asked = [
        (room_id_of(line), line.seq)
        for _, line in lines
        if isinstance(line, Line) and line.seq is not None and type(line) not in (MessageLine, MemberLine)
    ]
    if not asked:
        return {}
    rows = await executor.fetch_all(ENTRIES, [room_id for room_id, _ in asked], [seq for _, seq in asked])
    return {(happened.room_id, seq): happened for seq, happened in rows}

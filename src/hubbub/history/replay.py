"""The replay of a batch: each line becomes a message, an event or a membership, changes nothing, or is refused.

    find existing messages and events -> Replay.take, 500 lines at a time -> COPY of messages -> rooms, memberships

The rooms of the batch are locked meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple, NoReturn
from uuid import UUID

import msgspec

from hubbub.errors import Invalid
from hubbub.history.lines import (
    AnyLine,
    EventLine,
    JoinLine,
    Line,
    MemberLine,
    MessageLine,
    RoomLine,
    derive_message_id,
    metadata_of,
    room_id_of,
)
from hubbub.history.people import People
from hubbub.history.room_log import Membership, RoomLog, store_rooms
from hubbub.history.source import Refusal
from hubbub.models import Message, Role
from hubbub.postgres import Copy, Executor, OpenTransaction, Row, Statement
from hubbub.sql import columns

LINES_PER_TURN: Final = 500
"""Lines replayed at a time: 7 ms. Then their messages are sent, and other tasks have the event loop."""


class ExistingMessage(msgspec.Struct, frozen=True, gc=False):
    """A message in the database, or of an earlier line of the batch."""

    id: UUID
    room_id: UUID
    seq: int
    user_id: UUID | None
    content: str
    was_changed: bool
    updated_at: datetime

    def matches(self, line: MessageLine, room_id: UUID, user_id: UUID | None) -> bool:
        """Whether it is the message of the line. Content is compared unless either was edited or deleted."""
        same_entry = self.room_id == room_id and (line.seq is None or line.seq == self.seq)
        same_author = self.user_id is None or user_id is None or self.user_id == user_id
        was_changed = self.was_changed or _was_changed(line)
        return same_entry and same_author and (was_changed or self.content == line.content)


def _was_changed(line: MessageLine) -> bool:
    return line.is_edited or line.deleted_at is not None


class ExistingEvent(msgspec.Struct, frozen=True, gc=False):
    """An entry that is not a message, without its seq."""

    room_id: UUID
    kind: str
    message_id: UUID | None
    user_id: UUID | None
    created_at: datetime


class Existing(NamedTuple):
    """Messages by id, events by room and seq. `repeatable` counts events that lines without a seq may repeat."""

    messages: dict[UUID, ExistingMessage]
    events: dict[tuple[UUID, int], ExistingEvent]
    repeatable: Counter[ExistingEvent]


MESSAGES = Statement(
    "history.messages",
    ExistingMessage,
    f"""
    SELECT {columns(ExistingMessage, computed={"was_changed": "is_edited OR deleted_at IS NOT NULL"})}
    FROM messages
    WHERE id = ANY($1::uuid[])
    """,
)

EVENTS = Statement(
    "history.events",
    lambda seq, room_id, kind, message_id, user_id, created_at: (
        (room_id, seq),
        ExistingEvent(room_id, kind, message_id, user_id, created_at),
    ),
    f"""
    SELECT seq, {columns(ExistingEvent)}
    FROM room_events
    JOIN unnest($1::uuid[], $2::bigint[]) AS wanted (room_id, seq) USING (room_id, seq)
    """,
)

EVENTS_AT = Statement(
    "history.events_at",
    ExistingEvent,
    f"""
    SELECT {columns(ExistingEvent)}
    FROM room_events
    WHERE room_id = ANY($1::uuid[])
        AND created_at = ANY($2::timestamptz[])
    """,
)


async def find_existing(
    executor: Executor, lines: Sequence[tuple[int, AnyLine]], *, without_ids: bool
) -> Existing:
    """What the database has of all that the lines name.

    `without_ids` includes what has no id or seq in the lines. That is needed only if they may have been imported
    before, from a file that was different elsewhere.
    """
    message_ids: set[UUID | None] = {None}
    entries: list[tuple[UUID, int]] = []
    moments: list[tuple[UUID, datetime]] = []
    for number, line in lines:
        if isinstance(line, MessageLine):
            if line.id is not None or line.reply_to is not None:
                message_ids |= {line.id, line.reply_to}
            if without_ids and line.id is None:
                message_ids.add(derive_message_id(number, line, room_id_of(line).hex))
        elif isinstance(line, MemberLine):
            message_ids.add(line.last_read_message_id)
        elif isinstance(line, Line):
            message_ids.add(getattr(line, "message_id", None))
            if line.seq is not None:
                entries.append((room_id_of(line), line.seq))
            elif without_ids:
                moments.append((room_id_of(line), line.at))
    message_ids.discard(None)
    messages = await executor.fetch_all(MESSAGES, message_ids) if message_ids else []
    events: list[tuple[tuple[UUID, int], ExistingEvent]] = []
    if entries:
        room_ids, seqs = zip(*entries, strict=True)
        events = await executor.fetch_all(EVENTS, room_ids, seqs)
    repeatable: list[ExistingEvent] = []
    if moments:
        rooms, times = ({*column} for column in zip(*moments, strict=True))
        repeatable = await executor.fetch_all(EVENTS_AT, rooms, times)
    return Existing({one.id: one for one in messages}, dict(events), Counter(repeatable))


class Revision(NamedTuple):
    """What an existing message has become in another database."""

    id: UUID
    content: str
    is_edited: bool
    updated_at: datetime
    deleted_at: datetime | None
    metadata: str | None


class Replay:
    """Takes lines in their order, and counts: `messages` came of them, `known` changed nothing.

    `rooms` has the logs as they grow, `revisions` the changes of existing messages, `refused` the lines that
    cannot be taken.
    """

    def __init__(self, rooms: Iterable[RoomLog], people: People, existing: Existing) -> None:
        self.rooms = {room.id: room for room in rooms}
        self.messages = 0
        self.known = 0
        self.revisions: list[Revision] = []
        self.refused: list[Refusal] = []
        self._rows: list[Row] = []
        self._people = people
        self._existing = existing

    def take(self, lines: Iterable[tuple[int, AnyLine]]) -> list[Row]:
        """Replay these lines. Returns the rows of their messages; the rest is kept."""
        rooms = self.rooms
        for number, line in lines:
            try:
                if isinstance(line, MessageLine):
                    self._add_message(number, line, rooms.get(room_id_of(line)) or _no_such_room())
                elif isinstance(line, MemberLine):
                    self._set_member(line, rooms.get(room_id_of(line)) or _no_such_room())
                elif isinstance(line, Line):
                    self._add_event(line, rooms.get(room_id_of(line)) or _no_such_room())
                elif isinstance(line, RoomLine) and line.id not in rooms:
                    _no_second_direct_room()
            except Invalid as error:
                self.refused.append(Refusal(number, str(error)))
        rows, self._rows = self._rows, []
        self.messages += len(rows)
        return rows

    def _add_message(self, number: int, line: MessageLine, room: RoomLog) -> None:
        author = self._people[line]
        if author is None and line.seq is None:
            raise _no_such_user()
        id = line.id or derive_message_id(number, line, room.hex)
        if id in self._existing.messages:
            self._update(id, line, room, author)
            self.known += 1
            return
        if line.reply_to is not None:
            self._check_message("reply_to", line.reply_to, room)
        if line.seq is not None:
            room.check_next(line.seq)
        elif author is not None and author not in room.members:
            # The author joined before the history begins.
            room.add_event(JoinLine(at=line.at, role=Role.MEMBER), author, author)
        room.last_seq = seq = room.last_seq + 1
        metadata = metadata_of(line)
        updated_at = line.updated_at or line.at
        self._rows.append(
            (
                *(id, room.id, seq, author, line.content, line.message_type, line.is_edited, line.at, updated_at),
                *(line.deleted_at, line.reply_to, metadata),
            )
        )
        if line.id is not None:
            message = ExistingMessage(id, room.id, seq, author, line.content, _was_changed(line), updated_at)
            self._existing.messages[id] = message

    def _update(self, id: UUID, line: MessageLine, room: RoomLog, author: UUID | None) -> None:
        """Revise an existing message if the line is newer. Raises: Invalid (the id is that of another message)."""
        existing = self._existing.messages[id]
        if not existing.matches(line, room.id, author):
            raise Invalid("id", "is in use for another message")
        updated_at = line.updated_at or line.at
        if line.seq is not None and existing.updated_at < updated_at:
            metadata = metadata_of(line)
            revision = Revision(id, line.content, line.is_edited, updated_at, line.deleted_at, metadata)
            self.revisions.append(revision)

    def _check_message(self, field: str, id: UUID, room: RoomLog) -> None:
        existing = self._existing.messages.get(id)
        if existing is None or existing.room_id != room.id:
            raise Invalid(field, "is not an earlier message of this room")

    def _add_event(self, line: EventLine, room: RoomLog) -> None:
        message_id: UUID | None = getattr(line, "message_id", None)
        account = self._people[line]
        user_id = account or line.user_id
        event = ExistingEvent(room.id, line.event.kind, message_id, user_id, line.at)
        if line.seq is None:
            if account is None:
                raise _no_such_user()
            if self._existing.repeatable[event] > 0 or room.is_unchanged_by(line, user_id):
                self._existing.repeatable[event] -= 1
                self.known += 1
                return
        else:
            if line.seq <= room.last_seq and self._existing.events.get((room.id, line.seq)) == event:
                self.known += 1
                return
            room.check_next(line.seq)
        if message_id is not None:
            self._check_message("message_id", message_id, room)
        room.add_event(line, user_id, account)
        if line.seq is not None:
            self._existing.events[room.id, line.seq] = event

    def _set_member(self, line: MemberLine, room: RoomLog) -> None:
        """A membership as it was when the log ended here. If the log goes on, its later state is unknown."""
        user_id = self._people[line]
        if line.last_read_message_id is not None:
            self._check_message("last_read_message_id", line.last_read_message_id, room)
        if user_id is None or line.seq != room.last_seq:
            self.known += 1
        else:
            last_read = line.last_read_seq, line.last_read_message_id
            room.restore_member(user_id, Membership(line.at, line.role, line.joined_seq, *last_read))


def _no_such_room() -> NoReturn:
    raise Invalid("room", "is not here and cannot be created")


def _no_second_direct_room() -> NoReturn:
    raise Invalid("room", "its two users have another direct room here")


def _no_such_user() -> Invalid:
    return Invalid("user_id", "is not here, and the line has no name to create it")


NEW_MESSAGES: Final = Copy("messages", Message.__struct_fields__)

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
    while_stored: Callable[[], object],
) -> None:
    """Replay the lines and store all that comes of them.

    Rows are sent as they come. When all are sent, PostgreSQL is busy with them for as long again: it checks
    foreign keys at the end of a COPY, and that is more than half of its work. `while_stored` is called then, for
    work that can be done meanwhile.
    """
    await transaction.copy(NEW_MESSAGES, _message_rows(replay, lines, while_stored))
    if replay.revisions:
        ids, contents, edited, updated, deleted, metadata = zip(*replay.revisions, strict=True)
        await transaction.execute(REVISE, ids, contents, edited, updated, deleted, metadata)
    await store_rooms(transaction, list(replay.rooms.values()))


async def _message_rows(
    replay: Replay, lines: Sequence[tuple[int, AnyLine]], while_stored: Callable[[], object]
) -> AsyncIterator[Row]:
    for start in range(0, len(lines), LINES_PER_TURN):
        for row in replay.take(lines[start : start + LINES_PER_TURN]):
            yield row
        await asyncio.sleep(0)
    while_stored()

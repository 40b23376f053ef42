"""The replay of a batch: each line becomes a message, an event or a membership, changes nothing, or is refused.

    find existing messages and events -> Replay.take, 500 lines at a time -> COPY of messages -> rooms, memberships

The rooms of the batch are locked meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from hubbub import inputs
from hubbub.errors import Invalid
from hubbub.events import MEMBER_KINDS
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
from hubbub.history.locked_rooms import MemberSnapshot, Span
from hubbub.history.other_entries import Latest, OtherEntries, of_spans
from hubbub.history.room_log import Membership, RoomLog, store_rooms
from hubbub.history.source import Refusal, TakenLine
from hubbub.history.users import LineUsers
from hubbub.models import Message, Role
from hubbub.postgres import Copy, Executor, OpenTransaction, Row, Statement
from hubbub.sql import columns, readable

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


@dataclass(slots=True)
class Existing:
    """The existing rows for the lines of a batch: messages by id, and events by room and seq.

    The other fields are about lines without a seq. `known` has the seqs of their entries, by the number of the
    line. `next_known` has, for each other line, the lowest seq among the known lines that follow in its room.
    `known_rooms` are the rooms of known lines, `matched` the entries of these. `without_joining` are the known
    messages whose author was a member before. `latest` has the last entry about a user in a room, or about a room
    and None. `is_continued`: lines before the batch were imported by an earlier run.
    """

    messages: dict[UUID, ExistingMessage]
    events: dict[tuple[UUID, int], ExistingEvent]
    known: dict[int, int] = field(default_factory=dict)
    next_known: dict[int, int] = field(default_factory=dict)
    known_rooms: set[UUID] = field(default_factory=set)
    without_joining: set[int] = field(default_factory=set)
    latest: dict[tuple[UUID, UUID | None], Latest] = field(default_factory=dict)
    matched: set[tuple[UUID, int]] = field(default_factory=set)
    is_continued: bool = False

    def message_of(self, line: Line, nth: int) -> ExistingMessage | None:
        """The message of a line, if it is one of these."""
        return self.messages.get(_id_of(line, nth)) if self.messages and isinstance(line, MessageLine) else None


MESSAGES = Statement(
    "history.messages",
    ExistingMessage,
    f"""
    SELECT {readable(ExistingMessage, computed={"was_changed": "is_edited OR deleted_at IS NOT NULL"})}
    FROM messages
    WHERE id = ANY($1::uuid[])
    """,
)


EVENTS = Statement(
    "history.events",
    lambda seq, room_id, kind, message_id, user_id, created_at: (
        ExistingEvent(room_id, kind, message_id, user_id, created_at),
        seq,
    ),
    f"""
    SELECT seq, {readable(ExistingEvent)}
    FROM room_events
    JOIN unnest($1::uuid[], $2::bigint[]) AS wanted (room_id, seq) USING (room_id, seq)
    """,
)

# `is_of_message`: its user wrote the next entry, a message of the same time. A message makes such a joining if no
# earlier line was about its author. The line of a join at that time looks the same, and needs no position.
EVENTS_AT = Statement(
    "history.events_at",
    lambda seq, is_of_message, room_id, kind, message_id, user_id, created_at: (
        ExistingEvent(room_id, kind, message_id, user_id, created_at),
        seq,
        is_of_message,
    ),
    f"""
    SELECT
        seq,
        kind = 'joined' AND EXISTS (
            SELECT
            FROM messages
            WHERE messages.room_id = room_events.room_id
                AND messages.seq = room_events.seq + 1
                AND messages.user_id = room_events.user_id
                AND messages.created_at = room_events.created_at
        ) AS is_of_message,
        {readable(ExistingEvent, "room_events")}
    {of_spans(f"{columns(ExistingEvent)}, seq")}
    WHERE room_events.created_at = ANY($4::timestamptz[])
    ORDER BY seq
    """,
)


async def find_existing(
    executor: Executor,
    lines: Sequence[TakenLine],
    rooms: Mapping[UUID, MemberSnapshot],
    users: LineUsers,
    matched: Set[tuple[UUID, int]],
    *,
    others: Mapping[UUID, Sequence[Span]],
    other_entries: OtherEntries,
    without_ids: bool,
) -> Existing:
    """The existing rows for all that the lines name. `rooms` are those that had entries before this import, and
    `others` these entries, as far as they were read in `other_entries`.

    `matched` are the entries of lines in the batch before: equal lines have later ones.
    `without_ids` includes messages that have no id in the lines. That is needed only if some were imported before,
    which a batch that does not look for them finds out by a conflict.
    """
    message_ids: set[UUID | None] = set()
    entries: list[tuple[UUID, int]] = []
    moments: list[tuple[UUID, datetime]] = []
    for _, line, nth in lines:
        if isinstance(line, MessageLine):
            if line.id is not None or line.reply_to is not None:
                message_ids |= {line.id, line.reply_to}
            if without_ids:
                message_ids.add(_id_of(line, nth))
        elif isinstance(line, MemberLine):
            message_ids.add(line.last_read_message_id)
        elif isinstance(line, Line):
            message_ids.add(getattr(line, "message_id", None))
            if line.seq is not None:
                entries.append((room_id_of(line), line.seq))
            elif room_id_of(line) in rooms:
                moments.append((room_id_of(line), line.at))
    message_ids.discard(None)
    existing = Existing({}, {})
    if message_ids:
        existing.messages |= {one.id: one for one in await executor.fetch_all(MESSAGES, message_ids)}
    if entries:
        room_ids, seqs = zip(*entries, strict=True)
        found = await executor.fetch_all(EVENTS, room_ids, seqs)
        existing.events |= {(event.room_id, seq): event for event, seq in found}
    if rooms:
        await _locate_lines(
            executor,
            lines,
            rooms,
            users,
            others=others,
            other_entries=other_entries,
            existing=existing,
            moments=moments,
            matched=matched,
        )
    return existing


async def _locate_lines(
    executor: Executor,
    lines: Sequence[TakenLine],
    rooms: Mapping[UUID, MemberSnapshot],
    users: LineUsers,
    *,
    others: Mapping[UUID, Sequence[Span]],
    other_entries: OtherEntries,
    existing: Existing,
    moments: list[tuple[UUID, datetime]],
    matched: Set[tuple[UUID, int]],
) -> None:
    """Find what the logs of these rooms have of the lines without a seq, and later than these."""
    placed = [
        (number, line, existing.message_of(line, nth))
        for number, line, nth in lines
        if isinstance(line, Line) and line.seq is None and room_id_of(line) in rooms
    ]
    moments += [(room_id_of(line), line.at) for _, line, message in placed if message is not None]
    events: dict[ExistingEvent, deque[int]] = defaultdict(deque)
    joinings: dict[ExistingEvent, set[int]] = defaultdict(set)
    if parts := await other_entries.at(executor, others, moments):
        room_ids, firsts, lasts = zip(*parts, strict=True)
        times = {at for _, at in moments}
        for event, seq, is_of_message in await executor.fetch_all(EVENTS_AT, room_ids, firsts, lasts, times):
            if is_of_message:
                joinings[event].add(seq)
            elif (event.room_id, seq) not in matched:
                events[event].append(seq)
    _locate(placed, users, existing, events, joinings)
    deciding = [
        line
        for number, line, _ in placed
        if number not in existing.known
        and not (isinstance(line, MessageLine) and users[line] in rooms[room_id_of(line)].roles)
        and not _is_about_message(line)
    ]
    subjects = {(room_id_of(line), _subject(line, users)) for line in deciding}
    existing.latest |= await other_entries.latest(executor, others, subjects)


def _id_of(line: MessageLine, nth: int) -> UUID:
    return line.id or derive_message_id(line, nth)


def _locate(
    lines: Sequence[tuple[int, Line, ExistingMessage | None]],
    users: LineUsers,
    existing: Existing,
    events: Mapping[ExistingEvent, deque[int]],
    joinings: Mapping[ExistingEvent, Set[int]],
) -> None:
    """Find the places of lines in the logs. The n-th of equal lines is the n-th of equal entries.

    The place of a message whose author joined with it is that of the joining.
    """
    for number, line, message in lines:
        if isinstance(line, MessageLine):
            seq = None if message is None else message.seq
            if seq is not None and seq - 1 in joinings.get(_event_of(line, users, JoinLine.event.kind), ()):
                seq -= 1
            else:
                existing.without_joining.add(number)
        else:
            same = events.get(_event_of(line, users))
            seq = same.popleft() if same else None
        if seq is not None:
            room_id = room_id_of(line)
            existing.known[number] = seq
            existing.known_rooms.add(room_id)
            existing.matched.add((room_id, seq))
    following: dict[UUID, int] = {}
    for number, line, _ in reversed(lines):
        room_id = room_id_of(line)
        if (seq := existing.known.get(number)) is not None:
            following[room_id] = min(seq, following.get(room_id, seq))
        elif room_id in following:
            existing.next_known[number] = following[room_id]


def _event_of(line: Line, users: LineUsers, kind: str | None = None) -> ExistingEvent:
    """The entry that a line stands for, or one of another kind about its user at that time."""
    message_id: UUID | None = getattr(line, "message_id", None)
    user_id = users[line] or line.user_id
    return ExistingEvent(room_id_of(line), kind or line.event.kind, message_id, user_id, line.at)


def _is_about_message(line: Line) -> bool:
    """Whether the line is about another line, which has the message as it is now."""
    return "message_id" in line.__struct_fields__


def _subject(line: Line, users: LineUsers) -> UUID | None:
    """The user whose membership the line may change. None of a line that changes the room itself."""
    return users[line] if isinstance(line, MessageLine) or line.event.kind in MEMBER_KINDS else None


class Revision(NamedTuple):
    """The current state of an existing message in another database."""

    id: UUID
    content: str
    is_edited: bool
    updated_at: datetime
    deleted_at: datetime | None
    metadata: str | None


class Replay:
    """Takes lines in their order, and counts: `messages` came of them, `known` changed nothing, and `described`
    are about users, rooms and members.

    `rooms` has the logs as they grow, `revisions` the changes of existing messages, `refused` the lines that
    cannot be taken.
    """

    def __init__(self, rooms: Iterable[RoomLog], users: LineUsers, existing: Existing) -> None:
        self.rooms = {room.id: room for room in rooms}
        self.messages = 0
        self.known = 0
        self.described = 0
        self.revisions: list[Revision] = []
        self.refused: list[Refusal] = []
        self._rows: list[Row] = []
        self._users = users
        self._existing = existing

    @property
    def events(self) -> int:
        """How many entries that are not messages came of the lines."""
        return sum(len(room.events) - room.unlisted for room in self.rooms.values())

    @property
    def unlisted(self) -> int:
        """How many entries were added that no line is about."""
        return sum(room.unlisted for room in self.rooms.values())

    def take(self, lines: Iterable[TakenLine]) -> list[Row]:
        """Replay these lines. Returns the rows of their messages; the rest is kept."""
        for number, line, nth in lines:
            try:
                self._take(number, line, nth)
            except Invalid as error:
                self.refused.append(Refusal(number, str(error)))
        rows, self._rows = self._rows, []
        self.messages += len(rows)
        return rows

    def _take(self, number: int, line: AnyLine, nth: int) -> None:
        if isinstance(line, Line):
            if (room := self.rooms.get(room_id_of(line))) is None:
                raise Invalid("room", "is not in the database, and the line has no name to create it with")
            if isinstance(line, MessageLine):
                self._add_message(number, _id_of(line, nth), line, room)
            elif isinstance(line, MemberLine):
                self._set_member(line, room)
            else:
                self._add_event(number, line, room)
        elif isinstance(line, RoomLine) and line.id not in self.rooms:
            raise Invalid("room", "its two users have another direct room here, or its deletion is not finished")
        else:
            self.described += 1

    def _add_message(self, number: int, id: UUID, line: MessageLine, room: RoomLog) -> None:
        author = self._users[line]
        if author is None and line.seq is None:
            raise _no_such_user()
        if id in self._existing.messages:
            self._update(id, line, room, author)
            self._confirm(number, line, room, author)
            return
        if line.reply_to is not None:
            self._check_message("reply_to", line.reply_to, room)
        if line.seq is not None:
            room.check_next(line.seq)
        elif author is not None and author not in room.members and not self._is_superseded(number, line, room):
            room.add_unlisted(JoinLine(at=line.at, role=Role.MEMBER), author)  # before the history begins
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

    def _add_event(self, number: int, line: EventLine, room: RoomLog) -> None:
        message_id: UUID | None = getattr(line, "message_id", None)
        account = self._users[line]
        user_id = account or line.user_id
        event = _event_of(line, self._users)
        if line.seq is None:
            if account is None:
                raise _no_such_user()
            if number in self._existing.known:
                self._confirm(number, line, room, account)
                return
            if room.is_unchanged_by(line, account) or self._is_superseded(number, line, room):
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

    def _confirm(self, number: int, line: MessageLine | EventLine, room: RoomLog, user_id: UUID | None) -> None:
        """A line whose entry is in the log already."""
        self.known += 1
        seq = self._existing.known.get(number)
        if seq is None or user_id is None:
            return
        # A corrected message stands behind later entries. It shows nothing of how far its author has come.
        room.confirm(user_id, 0 if number in self._existing.without_joining else seq, line.at)

    def _is_superseded(self, number: int, line: MessageLine | EventLine, room: RoomLog) -> bool:
        """Whether the log has a later entry, not of a line before, that decides what the line would change.

        An entry is later if it is behind the line's position in the log, or has a later time. The line's position
        is before that of the next known line. Times decide nothing where an earlier run may have stored the lines
        before.
        """
        if room.reached is None or _is_about_message(line):
            return False
        existing, user_id = self._existing, self._users[line]
        latest = existing.latest.get((room.id, _subject(line, self._users)))
        if latest is None or (user_id in room.reached and room.reached[user_id].seq >= latest.seq):
            return False
        if latest.seq >= existing.next_known.get(number, inputs.LARGEST_SEQ):
            return True
        has_times = not existing.is_continued or room.id in existing.known_rooms
        return has_times and latest.created_at >= line.at

    def _set_member(self, line: MemberLine, room: RoomLog) -> None:
        """A membership as it was when the log ended here. If the log goes on, its later state is unknown."""
        user_id = self._users[line]
        if line.last_read_message_id is not None:
            self._check_message("last_read_message_id", line.last_read_message_id, room)
        if user_id is None or line.seq != room.last_seq:
            self.known += 1
        else:
            kept = line.joined_seq, line.last_read_seq, line.last_read_message_id, metadata_of(line)
            room.restore_member(user_id, Membership(line.at, line.role, *kept))
            self.described += 1


def _no_such_user() -> Invalid:
    reason = "is not in the database, and the line has no name to create it with, or its deletion is not finished"
    return Invalid("user_id", reason)


NEW_MESSAGES: Final = Copy("messages", Message.__struct_fields__)

# A line of another type than the message, and without words, would break a rule and fail the whole batch.
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
        AND (
            revised.content <> ''
            OR revised.deleted_at IS NOT NULL
            OR revised.metadata IS NOT NULL
            OR messages.message_type <> 'text'
        )
    """,
)


async def store(
    transaction: OpenTransaction,
    replay: Replay,
    lines: Sequence[TakenLine],
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
    replay: Replay, lines: Sequence[TakenLine], while_stored: Callable[[], object]
) -> AsyncIterator[Row]:
    for start in range(0, len(lines), LINES_PER_TURN):
        for row in replay.take(lines[start : start + LINES_PER_TURN]):
            yield row
        await asyncio.sleep(0)
    while_stored()

"""The rows that exist for the lines of a batch: those that they stand for, name, or come too late for.

Lines with ids or seqs name their rows. For the others an import looks among the entries that it has not appended:
lines are known from them, or superseded by them. There may be millions, so it reads each of them once, in pages,
and keeps little: the times of each block of entries, which show where to look for a time, and the last one about
each user.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from hubbub.events import MEMBER_KINDS
from hubbub.history.lines import JoinLine, Line, MemberLine, MessageLine, message_id_of, room_id_of
from hubbub.history.rooms import REMEMBERED_MEMBERSHIPS, MemberSnapshot, Span
from hubbub.history.source import TakenLine
from hubbub.history.users import LineUsers
from hubbub.postgres import Executor, Statement
from hubbub.sql import columns, readable, representable

SEQS_PER_BLOCK: Final = 10_000
"""A batch with a time between those of a block reads the block, which takes some milliseconds."""
SEQS_PER_PAGE: Final = 1_000_000
"""To read a page takes about a second."""
SEQS_PER_BITMAP: Final = 1_024
"""A bitmap takes some 400 bytes with its place in the dictionary, also for a room that has few entries."""


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
        same_content = self.was_changed or was_changed(line) or self.content == line.content
        return same_entry and same_author and same_content


def was_changed(line: MessageLine) -> bool:
    return line.is_edited or line.deleted_at is not None


class ExistingEvent(msgspec.Struct, frozen=True, gc=False):
    """An entry that is not a message, without its seq."""

    room_id: UUID
    kind: str
    message_id: UUID | None
    user_id: UUID | None
    created_at: datetime


class Latest(NamedTuple):
    """The last entry of a log about a membership, or about the room itself."""

    seq: int
    created_at: datetime


@dataclass(slots=True)
class Existing:
    """The existing rows for the lines of a batch: messages by id, and events by room and seq.

    The other fields are about lines without a seq. `known` has the seqs of their entries, by the number of the
    line. `next_known` has, for each other line, the lowest seq among the known lines that follow in its room.
    `known_rooms` are the rooms of known lines, `matched` the entries of these. `latest` has the last entry about a
    user in a room, or about a room and None. It supersedes no line once it is among the `passed` entries: its own
    line was replayed, or another line took effect all the same. `is_continued`: lines before the batch were
    imported by an earlier run.
    """

    messages: dict[UUID, ExistingMessage]
    events: dict[tuple[UUID, int], ExistingEvent]
    known: dict[int, int] = field(default_factory=dict)
    next_known: dict[int, int] = field(default_factory=dict)
    known_rooms: set[UUID] = field(default_factory=set)
    latest: dict[tuple[UUID, UUID | None], Latest] = field(default_factory=dict)
    matched: set[tuple[UUID, int]] = field(default_factory=set)
    passed: set[tuple[UUID, int]] = field(default_factory=set)
    is_continued: bool = False

    def message_of(self, line: Line, nth: int) -> ExistingMessage | None:
        """The message of a line, if it is one of these."""
        if not self.messages or not isinstance(line, MessageLine):
            return None
        return self.messages.get(message_id_of(line, nth))


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


async def find_existing(executor: Executor, lines: Sequence[TakenLine], *, without_ids: bool) -> Existing:
    """The existing messages and events that the lines name by their id or seq.

    `without_ids` includes messages that have no id in the lines. That is needed only if some were imported before,
    which a batch that does not look for them finds out by a conflict.
    """
    message_ids: set[UUID | None] = set()
    entries: list[tuple[UUID, int]] = []
    for _, line, nth in lines:
        if isinstance(line, MessageLine):
            if line.id is not None or line.reply_to is not None:
                message_ids |= {line.id, line.reply_to}
            if without_ids:
                message_ids.add(message_id_of(line, nth))
        elif isinstance(line, MemberLine):
            message_ids.add(line.last_read_message_id)
        elif isinstance(line, Line):
            message_ids.add(getattr(line, "message_id", None))
            if line.seq is not None:
                entries.append((room_id_of(line), line.seq))
    message_ids.discard(None)
    existing = Existing({}, {})
    if message_ids:
        existing.messages |= {one.id: one for one in await executor.fetch_all(MESSAGES, message_ids)}
    if entries:
        room_ids, seqs = zip(*entries, strict=True)
        found = await executor.fetch_all(EVENTS, room_ids, seqs)
        existing.events |= {(event.room_id, seq): event for event, seq in found}
    return existing


def _of_spans(columns: str) -> str:
    """For FROM: the entries of the rooms $1 from the seqs $2 to the seqs $3."""
    return f"""
        FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS span (room_id, first, last)
        CROSS JOIN LATERAL (
            SELECT {columns}
            FROM room_events
            WHERE room_events.room_id = span.room_id
                AND room_events.seq BETWEEN span.first AND span.last
            OFFSET 0
        ) AS room_events
    """


class Block(NamedTuple):
    """Entries of a part of a log, and the first and the last of their times."""

    span: Span
    earliest: datetime
    latest: datetime


BLOCKS = Statement(
    "history.blocks",
    lambda room_id, first, last, earliest, latest: (room_id, Block(Span(first, last), earliest, latest)),
    f"""
    SELECT
        room_id,
        first,
        last,
        {representable("earliest")} AS earliest,
        {representable("latest")} AS latest
    FROM (
        SELECT
            room_events.room_id,
            min(room_events.seq) AS first,
            max(room_events.seq) AS last,
            min(room_events.created_at) AS earliest,
            max(room_events.created_at) AS latest
        {_of_spans("room_id, seq, created_at")}
        GROUP BY room_events.room_id, room_events.seq / $4::bigint
    ) AS block
    """,
)


def _latest_entries(name: str, wanted: str, limit: str = "") -> Statement[tuple[UUID, UUID | None, Latest]]:
    """The last entry about each of the users. NULL is the subject of an entry about the room itself."""
    return Statement(
        name,
        lambda room_id, subject, seq, created_at: (room_id, subject, Latest(seq, created_at)),
        f"""
        SELECT
            room_events.room_id,
            latest.subject,
            room_events.seq,
            {representable("room_events.created_at")} AS created_at
        FROM (
            SELECT
                room_events.room_id,
                CASE WHEN room_events.kind IN {MEMBER_KINDS} THEN room_events.user_id END AS subject,
                max(room_events.seq) AS seq
            {_of_spans("room_id, seq, kind, message_id, user_id")}
            WHERE room_events.message_id IS NULL
                AND (room_events.kind NOT IN {MEMBER_KINDS} OR room_events.user_id {wanted})
            GROUP BY room_events.room_id, subject
            {limit}
        ) AS latest
        JOIN room_events USING (room_id, seq)
        """,
    )


LATEST = _latest_entries("history.latest_entries", "IS NOT NULL", limit="LIMIT $4")
LATEST_OF_USERS = _latest_entries("history.latest_entries_of_users", "= ANY($4::uuid[])")

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
    {_of_spans(f"{columns(ExistingEvent)}, seq")}
    WHERE room_events.created_at = ANY($4::timestamptz[])
    ORDER BY seq
    """,
)


class _Room:
    """The entries of a room that were read, up to the seq `end`.

    `latest` has the last entry about each user. It is None where they are about too many users.
    """

    __slots__ = ("blocks", "end", "latest")

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.end = 0
        self.latest: dict[UUID | None, Latest] | None = {}


Part = tuple[UUID, int, int]
"""A part of the log of a room: the first seq and the last."""


class OtherEntries:
    """The entries of others that an import has read, by room. Each batch reads on.

    `matched` are those of lines in the batch before: equal lines have later ones. `passed` has those of all
    batches as bitmaps, by room and part of its log, so that a log of millions of entries takes a few hundred KiB.
    """

    def __init__(self) -> None:
        self.matched: Set[tuple[UUID, int]] = frozenset()
        self.passed: dict[tuple[UUID, int], int] = defaultdict(int)
        self._rooms: dict[UUID, _Room] = {}

    def stored(self, existing: Existing) -> None:
        """Remember what the lines of a batch have matched and passed."""
        self.matched = existing.matched
        for room_id, seq in existing.passed:
            self.passed[room_id, seq // SEQS_PER_BITMAP] |= 1 << seq % SEQS_PER_BITMAP

    async def locate(
        self,
        executor: Executor,
        existing: Existing,
        lines: Sequence[TakenLine],
        users: LineUsers,
        snapshots: Mapping[UUID, MemberSnapshot],
        *,
        others: Mapping[UUID, Sequence[Span]],
    ) -> None:
        """Find which entries of `others`, by room, are those of lines without a seq, or supersede such lines."""
        placed = [
            (number, line, existing.message_of(line, nth))
            for number, line, nth in lines
            if isinstance(line, Line) and line.seq is None and room_id_of(line) in others
        ]
        moments = [
            (room_id_of(line), line.at)
            for _, line, message in placed
            if message is not None or not isinstance(line, MessageLine)
        ]
        events: dict[ExistingEvent, deque[int]] = defaultdict(deque)
        joinings: dict[ExistingEvent, set[int]] = defaultdict(set)
        if parts := await self._parts_at(executor, others, moments):
            room_ids, firsts, lasts = zip(*parts, strict=True)
            times = {at for _, at in moments}
            for event, seq, is_of_message in await executor.fetch_all(EVENTS_AT, room_ids, firsts, lasts, times):
                if is_of_message:
                    joinings[event].add(seq)
                elif (event.room_id, seq) not in self.matched:
                    events[event].append(seq)
        _locate(existing, placed, users, events, joinings)
        subjects = {
            (room_id_of(line), subject_of(line, users))
            for number, line, _ in placed
            if number not in existing.known
            and not (isinstance(line, MessageLine) and users[line] in snapshots[room_id_of(line)].roles)
            and not is_about_message(line)
        }
        existing.latest |= await self._latest(executor, others, subjects)
        existing.passed |= {
            (room_id, seq)
            for (room_id, _), (seq, _) in existing.latest.items()
            if self.passed.get((room_id, seq // SEQS_PER_BITMAP), 0) >> seq % SEQS_PER_BITMAP & 1
        }

    async def _parts_at(
        self, executor: Executor, others: Mapping[UUID, Sequence[Span]], moments: Iterable[tuple[UUID, datetime]]
    ) -> list[Part]:
        """The parts of the logs in which the entries of these rooms at these times are."""
        times: dict[UUID, set[datetime]] = defaultdict(set)
        for room_id, at in moments:
            times[room_id].add(at)
        await self._read(executor, {room_id: others[room_id] for room_id in times})
        return [
            (room_id, *block.span)
            for room_id, of_room in times.items()
            for block in _with_any(sorted(of_room), self._rooms[room_id].blocks)
        ]

    async def _latest(
        self, executor: Executor, others: Mapping[UUID, Sequence[Span]], subjects: Set[tuple[UUID, UUID | None]]
    ) -> dict[tuple[UUID, UUID | None], Latest]:
        """The last entry about each user in a room, and about each room itself, whose user is None."""
        room_ids = {room_id for room_id, _ in subjects}
        await self._read(executor, {room_id: others[room_id] for room_id in room_ids})
        found: dict[tuple[UUID, UUID | None], Latest] = {}
        unknown = [room_id for room_id in room_ids if self._rooms[room_id].latest is None]
        if unknown:
            users = {user_id for _, user_id in subjects if user_id is not None}
            for page in _pages((room_id, *span) for room_id in unknown for span in others[room_id]):
                rooms, firsts, lasts = zip(*page, strict=True)
                rows = await executor.fetch_all(LATEST_OF_USERS, rooms, firsts, lasts, users)
                found |= {(room_id, subject): latest for room_id, subject, latest in rows}
        for room_id, user_id in subjects:
            latest = (self._rooms[room_id].latest or {}).get(user_id)
            if latest is not None:
                found[room_id, user_id] = latest
        return found

    async def _read(self, executor: Executor, others: Mapping[UUID, Sequence[Span]]) -> None:
        """Read what is new among these entries."""
        if sum(len(room.latest or ()) for room in self._rooms.values()) > REMEMBERED_MEMBERSHIPS:
            self._rooms.clear()
        new = []
        for room_id, spans in others.items():
            end = self._rooms.setdefault(room_id, _Room()).end
            if spans[-1].last < end:  # another room has the id by now
                self._rooms[room_id], end = _Room(), 0
            new += [(room_id, max(first, end + 1), last) for first, last in spans if last > end]
        for page in _pages(new):
            room_ids, firsts, lasts = zip(*page, strict=True)
            blocks = await executor.fetch_all(BLOCKS, room_ids, firsts, lasts, SEQS_PER_BLOCK)
            found = await executor.fetch_all(LATEST, room_ids, firsts, lasts, REMEMBERED_MEMBERSHIPS + 1)
            for room_id, block in blocks:
                self._rooms[room_id].blocks.append(block)
            for room_id, subject, latest in found:
                of_room = self._rooms[room_id].latest
                if of_room is not None:
                    of_room[subject] = latest
            for room_id, _, last in page:
                self._rooms[room_id].end = last
                if len(found) > REMEMBERED_MEMBERSHIPS:
                    self._rooms[room_id].latest = None


def _with_any(times: Sequence[datetime], blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks in which an entry of one of these times may be. The times are sorted."""
    for block in blocks:
        index = bisect_left(times, block.earliest)
        if index < len(times) and times[index] <= block.latest:
            yield block


def _pages(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """The same parts, divided so that each statement reads a bounded number of entries."""
    page: list[Part] = []
    space = SEQS_PER_PAGE
    for room_id, first, last in parts:
        start = first
        while start <= last:
            end = min(last, start + space - 1)
            page.append((room_id, start, end))
            space -= end - start + 1
            start = end + 1
            if not space:
                yield page
                page, space = [], SEQS_PER_PAGE
    if page:
        yield page


def _locate(
    existing: Existing,
    lines: Sequence[tuple[int, Line, ExistingMessage | None]],
    users: LineUsers,
    events: Mapping[ExistingEvent, deque[int]],
    joinings: Mapping[ExistingEvent, Set[int]],
) -> None:
    """Find the places of lines in the logs. The n-th of equal lines is the n-th of equal entries.

    The place of a message whose author joined with it is that of the joining.
    """
    for number, line, message in lines:
        if isinstance(line, MessageLine):
            seq = None if message is None else message.seq
            if seq is not None and seq - 1 in joinings.get(event_of(line, users, JoinLine.event.kind), ()):
                seq -= 1
        else:
            same = events.get(event_of(line, users))
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


def event_of(line: Line, users: LineUsers, kind: str | None = None) -> ExistingEvent:
    """The entry that a line stands for, or one of another kind about its user at that time."""
    message_id: UUID | None = getattr(line, "message_id", None)
    user_id = users[line] or line.user_id
    return ExistingEvent(room_id_of(line), kind or line.event.kind, message_id, user_id, line.at)


def is_about_message(line: Line) -> bool:
    """Whether the line is about another line, which has the message as it is now."""
    return "message_id" in line.__struct_fields__


def subject_of(line: Line, users: LineUsers) -> UUID | None:
    """The user whose membership the line may change. None of a line that changes the room itself."""
    return users[line] if isinstance(line, MessageLine) or line.event.kind in MEMBER_KINDS else None

"""The replay of a batch: each line becomes a message, an event or a membership, changes nothing, or is refused.

    find_existing -> OtherEntries.locate -> Replay.take, 500 lines at a time
        -> COPY of messages -> rooms, memberships

The rooms of the batch are locked meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from hubbub import inputs
from hubbub.errors import Invalid
from hubbub.history.existing import (
    Existing,
    ExistingMessage,
    Latest,
    event_of,
    is_about_message,
    subject_of,
    was_changed,
)
from hubbub.history.lines import (
    AnyLine,
    EventLine,
    JoinLine,
    Line,
    MemberLine,
    MessageLine,
    RoomLine,
    message_id_of,
    metadata_of,
    room_id_of,
)
from hubbub.history.rooms import Membership, RoomLog, store_rooms
from hubbub.history.source import Refusal, TakenLine
from hubbub.history.users import LineUsers
from hubbub.models import Message, Role
from hubbub.postgres import Copy, OpenTransaction, Row, Statement

LINES_PER_TURN: Final = 500
"""Lines replayed at a time: 7 ms. Then their messages are sent, and other tasks have the event loop."""


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
                self._add_message(number, message_id_of(line, nth), line, room)
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
            self._pass(line, room)
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
            message = ExistingMessage(id, room.id, seq, author, line.content, was_changed(line), updated_at)
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
        account = self._users[line]
        event = event_of(line, self._users)
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
        if event.message_id is not None:
            self._check_message("message_id", event.message_id, room)
        elif account is not None:
            self._pass(line, room)
        room.add_event(line, account)
        if line.seq is not None:
            self._existing.events[room.id, line.seq] = event

    def _confirm(self, number: int, line: MessageLine | EventLine, room: RoomLog, user_id: UUID | None) -> None:
        """A line whose entry is in the log already."""
        self.known += 1
        seq = self._existing.known.get(number)
        if seq is None or user_id is None:
            return
        # A message is never the latest entry about a user. So a corrected one, behind later entries, passes none.
        self._existing.passed.add((room.id, seq))
        room.confirm(user_id, line.at)

    def _pass(self, line: MessageLine | EventLine, room: RoomLog) -> None:
        """Have the line, which is to take effect, count instead of the entries of others about its subject."""
        latest = self._latest(line, room)
        if latest is not None:
            self._existing.passed.add((room.id, latest.seq))
            if (subject := subject_of(line, self._users)) is not None:
                room.roles_before.setdefault(subject, room.members.get(subject))

    def _latest(self, line: MessageLine | EventLine, room: RoomLog) -> Latest | None:
        """The last entry of others about the subject of a line."""
        latest = self._existing.latest  # empty where all entries are of this import
        return latest.get((room.id, subject_of(line, self._users))) if latest else None

    def _is_superseded(self, number: int, line: MessageLine | EventLine, room: RoomLog) -> bool:
        """Whether the log has a later entry, not yet passed, that decides what the line would change.

        An entry is later if it is behind the line's position in the log, or has a later time. The line's position
        is before that of the next known line. Times decide nothing where an earlier run may have stored the lines
        before.
        """
        existing = self._existing
        latest = self._latest(line, room)
        if latest is None or is_about_message(line) or (room.id, latest.seq) in existing.passed:
            return False
        if latest.seq >= existing.next_known.get(number, inputs.MAX_SEQ):
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

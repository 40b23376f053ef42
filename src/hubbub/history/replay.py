"""What the lines of a batch come to, worked out in memory while their rooms are held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple, NoReturn
from uuid import UUID

from hubbub.errors import Invalid
from hubbub.history.entries import KINDS, changes_nothing, enter, enter_before
from hubbub.history.forms import (
    AnyLine,
    DeleteLine,
    EditLine,
    Entry,
    Line,
    MemberLine,
    MessageLine,
    RoomLine,
    UserLine,
)
from hubbub.history.identities import derive_message_id
from hubbub.history.parsing import metadata_of
from hubbub.history.people import People
from hubbub.history.present import Happened, Present, Stored
from hubbub.history.refusals import Refusal
from hubbub.history.room_log import Membership, RoomLog
from hubbub.history.rooms import room_id_of
from hubbub.postgres import Row


class Revision(NamedTuple):
    """What a message that is here has become elsewhere."""

    id: UUID
    content: str
    is_edited: bool
    updated_at: datetime
    deleted_at: datetime | None
    metadata: str | None


class Replay:
    """Takes lines in their order. `said` is how many messages came of them, `refused` the lines that cannot be."""

    def __init__(self, rooms: Iterable[RoomLog], people: People, present: Present) -> None:
        self.rooms = {room.id: room for room in rooms}
        self.said = 0
        self.revisions: list[Revision] = []
        self.refused: list[Refusal] = []
        self.known = 0
        self._messages: list[Row] = []
        self._people = people
        self._present = present
        self._happened = Counter(present.happened)

    @property
    def entered(self) -> int:
        """How many entries came of the lines that are no messages."""
        return sum(len(room.events) for room in self.rooms.values())

    def take(self, lines: Iterable[tuple[int, AnyLine]]) -> list[Row]:
        """The messages that come of these lines, as rows to store. What else comes of them is kept."""
        rooms = self.rooms
        for number, line in lines:
            try:
                if type(line) is MessageLine:
                    self._say(number, line, rooms.get(room_id_of(line)) or _no_room())
                elif isinstance(line, MemberLine):
                    self._set_member(line, self._room(line))
                elif isinstance(line, Line):
                    self._enter(line, self._room(line))
                else:
                    self._check_defined(line)
            except Invalid as error:
                self.refused.append(Refusal(number, str(error)))
        rows, self._messages = self._messages, []
        self.said += len(rows)
        return rows

    def _room(self, line: Line) -> RoomLog:
        return self.rooms.get(room_id_of(line)) or _no_room()

    def _check_defined(self, line: UserLine | RoomLine) -> None:
        if isinstance(line, RoomLine) and line.id not in self.rooms:
            raise Invalid("room", "its two people have another direct room here")

    def _say(self, number: int, line: MessageLine, room: RoomLog) -> None:
        author = self._people[line]
        if author is None and line.seq is None:
            raise _nobody()
        id = line.id or derive_message_id(number, room.hex, line.user or str(line.user_id), line.at, line.content)
        if id in self._present.messages and self._is_known(id, line, room, author):
            self.known += 1
            return
        if line.reply_to is not None:
            self._check_message("reply_to", line.reply_to, room)
        if line.seq is not None:
            room.check_next(line.seq)
        elif author is not None and author not in room.members:
            enter_before(line, room, author)
        room.last_seq = seq = room.last_seq + 1
        metadata = metadata_of(line)
        changed_at = line.updated_at or line.at
        self._messages.append(
            (
                *(id, room.id, seq, author, line.content, line.message_type, line.is_edited, line.at, changed_at),
                *(line.deleted_at, line.reply_to, metadata),
            )
        )
        if line.id is not None:
            self._present.messages[id] = Stored.of(room.id, seq, author, line)

    def _is_known(self, id: UUID, line: MessageLine, room: RoomLog, author: UUID | None) -> bool:
        """True, or `Invalid` where the id is that of something else."""
        stored = self._present.messages[id]
        if not stored.is_of(line, room.id, author):
            raise Invalid("id", "is in use for another message")
        if line.seq is not None and stored.updated_at < (line.updated_at or line.at):
            self._revise(id, line)
        return True

    def _revise(self, id: UUID, line: MessageLine) -> None:
        metadata = metadata_of(line)
        updated_at = line.updated_at or line.at
        self.revisions.append(Revision(id, line.content, line.is_edited, updated_at, line.deleted_at, metadata))

    def _check_message(self, field: str, id: UUID, room: RoomLog) -> None:
        stored = self._present.messages.get(id)
        if stored is None or stored.room_id != room.id:
            raise Invalid(field, "is no message of this room that came before")

    def _enter(self, line: Entry, room: RoomLog) -> None:
        about = line.message_id if isinstance(line, EditLine | DeleteLine) else None
        here = self._people[line]
        user_id = here or line.user_id
        if line.seq is None and here is None:
            raise _nobody()
        happened = Happened(room.id, KINDS[type(line)], about, user_id, line.at)
        if line.seq is not None and line.seq <= room.last_seq:
            if self._present.entries.get((room.id, line.seq)) == happened:
                self.known += 1
                return
        elif line.seq is None and (self._happened[happened] > 0 or changes_nothing(line, room, user_id)):
            self._happened[happened] -= 1
            self.known += 1
            return
        if line.seq is not None:
            room.check_next(line.seq)
        if about is not None:
            self._check_message("message_id", about, room)
        enter(line, room, user_id, here)
        if line.seq is not None:
            self._present.entries[room.id, line.seq] = happened

    def _set_member(self, line: MemberLine, room: RoomLog) -> None:
        """A membership as it was when the log ended here. Of one that goes on nobody knows what it is by now."""
        user_id = self._people[line]
        if line.last_read_message_id is not None:
            self._check_message("last_read_message_id", line.last_read_message_id, room)
        if user_id is None or line.seq != room.last_seq:
            self.known += 1
        else:
            room.restore(user_id, Membership.of(line))


def _no_room() -> NoReturn:
    raise Invalid("room", "is none that is here or can be made")


def _nobody() -> Invalid:
    return Invalid("user_id", "is of nobody here, and the line names nobody")

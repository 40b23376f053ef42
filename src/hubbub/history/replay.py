"""What the lines of a batch come to, worked out in memory while their rooms are held."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, NamedTuple, NoReturn
from uuid import UUID

import msgspec

from hubbub.errors import Invalid
from hubbub.history.forms import (
    AnyLine,
    ChangeLine,
    DeleteLine,
    EditLine,
    Entry,
    JoinLine,
    LeaveLine,
    Line,
    MemberLine,
    MessageLine,
    RoleLine,
    RoomLine,
    UserLine,
)
from hubbub.history.identities import message_of
from hubbub.history.members import Crowd
from hubbub.history.parsing import metadata_of
from hubbub.history.people import People
from hubbub.history.present import Happened, Present, Stored
from hubbub.history.refusals import Refusal
from hubbub.history.rooms import Held, room_id_of
from hubbub.models import Role

KINDS: Final = {
    JoinLine: "joined",
    LeaveLine: "left",
    EditLine: "edited",
    DeleteLine: "deleted",
    RoleLine: "role_changed",
    ChangeLine: "room_changed",
}

Row = tuple[object, ...]


class Membership(NamedTuple):
    """A membership that a batch makes. `read` of None: all that is imported counts as read."""

    joined_at: datetime
    role: Role
    joined_seq: int
    read: int | None
    last_read_message_id: UUID | None = None


class RoomLog:
    """The log of one room as it grows, and its members as far as the batch speaks of them."""

    __slots__ = (
        *("changed", "crowd", "gone", "hex", "id", "is_direct", "last_seq", "made", "members", "roles"),
        "states",
    )

    def __init__(self, held: Held, crowd: Crowd) -> None:
        self.id = held.id
        self.hex = held.id.hex
        self.is_direct = held.is_direct
        self.last_seq = held.last_seq
        self.crowd = crowd
        self.members = crowd.roles
        self.made: dict[UUID, Membership] = {}
        self.gone: set[UUID] = set()
        self.roles: dict[UUID, Role] = {}
        self.states: dict[UUID, MemberLine] = {}
        self.changed: ChangeLine | None = None

    def let_in(self, user_id: UUID, at: datetime, role: Role, *, read: int | None) -> None:
        self.members[user_id] = role
        self.made[user_id] = Membership(at, role, self.last_seq, read)

    def let_go(self, user_id: UUID) -> None:
        del self.members[user_id]
        if self.made.pop(user_id, None) is None:
            self.gone.add(user_id)
            self.roles.pop(user_id, None)
            self.states.pop(user_id, None)

    def give(self, user_id: UUID, role: Role) -> None:
        self.members[user_id] = role
        if user_id in self.made:
            self.made[user_id] = self.made[user_id]._replace(role=role)
        else:
            self.roles[user_id] = role


class Revision(NamedTuple):
    """What a message that is here has become elsewhere."""

    id: UUID
    content: str
    is_edited: bool
    updated_at: datetime
    deleted_at: datetime | None
    metadata: str | None


class Replay:
    """Takes lines in their order. `messages` and `events` are the rows to store, `refused` what cannot be."""

    def __init__(self, rooms: Iterable[RoomLog], people: People, present: Present) -> None:
        self.rooms = {room.id: room for room in rooms}
        self.messages: list[Row] = []
        self.events: list[Row] = []
        self.revisions: list[Revision] = []
        self.refused: list[Refusal] = []
        self.known = 0
        self._people = people
        self._present = present
        self._happened = Counter(present.happened)

    def take(self, lines: Iterable[tuple[int, AnyLine]]) -> None:
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

    def _room(self, line: Line) -> RoomLog:
        return self.rooms.get(room_id_of(line)) or _no_room()

    def _check_defined(self, line: UserLine | RoomLine) -> None:
        if isinstance(line, RoomLine) and line.id not in self.rooms:
            raise Invalid("room", "its two people have another direct room here")

    def _say(self, number: int, line: MessageLine, room: RoomLog) -> None:
        author = self._people[line]
        if author is None and line.seq is None:
            raise _nobody()
        id = line.id or message_of(number, room.hex, line.user or str(line.user_id), line.at, line.content)
        if id in self._present.messages and self._is_known(id, line, room, author):
            self.known += 1
            return
        if line.reply_to is not None:
            self._check_message("reply_to", line.reply_to, room)
        if line.seq is not None:
            _check_seq(line.seq, room)
        elif author is not None and author not in room.members:
            self._join(room, author, line.at, Role.MEMBER)
        room.last_seq = seq = room.last_seq + 1
        metadata = metadata_of(line)
        changed_at = line.updated_at or line.at
        self.messages.append(
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
        """An entry that is no message."""
        about = line.message_id if isinstance(line, EditLine | DeleteLine) else None
        user_id = self._people[line] or line.user_id
        if line.seq is None and self._people[line] is None:
            raise _nobody()
        happened = Happened(room.id, KINDS[type(line)], about, user_id, line.at)
        if line.seq is not None and line.seq <= room.last_seq:
            if self._present.entries.get((room.id, line.seq)) == happened:
                self.known += 1
                return
        elif line.seq is None and (self._happened[happened] > 0 or self._changes_nothing(line, room, user_id)):
            self._happened[happened] -= 1
            self.known += 1
            return
        if line.seq is not None:
            _check_seq(line.seq, room)
        if about is not None:
            self._check_message("message_id", about, room)
        self._apply(line, room, user_id)
        if line.seq is not None:
            self._present.entries[room.id, line.seq] = happened

    @staticmethod
    def _changes_nothing(line: Entry, room: RoomLog, user_id: UUID | None) -> bool:
        match line:
            case JoinLine():
                return user_id in room.members
            case LeaveLine():
                return user_id not in room.members
            case RoleLine(role=role):
                return user_id is None or room.members.get(user_id, role) == role
            case _:
                return False

    def _apply(self, line: Entry, room: RoomLog, user_id: UUID | None) -> None:
        """Append the entry, and do what follows from it. An account that is gone is no member any more."""
        here = self._people[line]
        match line:
            case JoinLine(role=role):
                if room.is_direct and here not in room.members and line.seq is None:
                    raise Invalid("room", "a direct room has exactly two members")
                self._append(room, line, user_id, payload={} if role is None else {"role": role})
                if here is not None and here not in room.members:
                    read = None if line.seq is None else room.last_seq
                    room.let_in(here, line.at, role or Role.MEMBER, read=read)
            case LeaveLine():
                if room.is_direct:
                    raise Invalid("room", "a direct room keeps its two members")
                self._append(room, line, user_id)
                if here in room.members and here is not None:
                    room.let_go(here)
            case RoleLine(role=role):
                self._append(room, line, user_id, payload={"role": role})
                if here in room.members and here is not None:
                    room.give(here, role)
            case ChangeLine():
                self._append(room, line, user_id, payload=_changed(line))
                room.changed = line
            case EditLine(message_id=about) | DeleteLine(message_id=about):
                self._append(room, line, user_id, about=about)

    def _join(self, room: RoomLog, user_id: UUID, at: datetime, role: Role) -> None:
        """Who speaks without having joined came in before the history begins."""
        if room.is_direct:
            raise Invalid("room", "a direct room has exactly two members")
        room.last_seq += 1
        self.events.append((room.id, room.last_seq, "joined", None, user_id, _json({"role": role}), at))
        room.let_in(user_id, at, role, read=None)

    def _append(
        self,
        room: RoomLog,
        line: Entry,
        user_id: UUID | None,
        *,
        about: UUID | None = None,
        payload: Mapping[str, object] | None = None,
    ) -> None:
        room.last_seq += 1
        kind = KINDS[type(line)]
        self.events.append((room.id, room.last_seq, kind, about, user_id, _json(payload or {}), line.at))

    def _set_member(self, line: MemberLine, room: RoomLog) -> None:
        """A membership as it was when the log ended here. Of one that goes on nobody knows what it is by now."""
        user_id = self._people[line]
        if line.last_read_message_id is not None:
            self._check_message("last_read_message_id", line.last_read_message_id, room)
        if user_id is None or line.seq != room.last_seq:
            self.known += 1
        elif user_id in room.members and user_id not in room.made:
            room.states[user_id] = line
        else:
            room.members[user_id] = line.role
            room.made[user_id] = Membership(
                line.at, line.role, line.joined_seq, line.last_read_seq, line.last_read_message_id
            )


def _changed(line: ChangeLine) -> dict[str, object]:
    says = {} if line.keeps_receipts is msgspec.UNSET else {"keeps_receipts": line.keeps_receipts}
    return {"name": line.name, "description": line.description, "is_private": line.is_private, **says}


def _check_seq(seq: int, room: RoomLog) -> None:
    if seq <= room.last_seq:
        raise Invalid("seq", f"something else is entry {seq:,} of the room")
    if seq > room.last_seq + 1:
        raise Invalid("seq", f"{seq:,} cannot follow {room.last_seq:,}, the last entry of the room")


def _no_room() -> NoReturn:
    raise Invalid("room", "is none that is here or can be made")


def _nobody() -> Invalid:
    return Invalid("user_id", "is of nobody here, and the line names nobody")


def _json(payload: Mapping[str, object]) -> str:
    return msgspec.json.encode(payload).decode()

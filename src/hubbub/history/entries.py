"""Entries of a log that are no messages: who came and went, what was edited, what became of the room."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec

from hubbub.errors import Invalid
from hubbub.history.forms import (
    ChangeLine,
    DeleteLine,
    EditLine,
    Entry,
    JoinLine,
    LeaveLine,
    RoleLine,
)
from hubbub.history.room_log import RoomLog
from hubbub.models import Role

KINDS: Final = {
    JoinLine: "joined",
    LeaveLine: "left",
    EditLine: "edited",
    DeleteLine: "deleted",
    RoleLine: "role_changed",
    ChangeLine: "room_changed",
}


def changes_nothing(line: Entry, room: RoomLog, user_id: UUID | None) -> bool:
    """Whether the room is already as the line, which is not of a certain seq, would make it."""
    match line:
        case JoinLine():
            return user_id in room.members
        case LeaveLine():
            return user_id not in room.members
        case RoleLine(role=role):
            return user_id is None or room.members.get(user_id, role) == role
        case _:
            return False


def enter(line: Entry, room: RoomLog, user_id: UUID | None, here: UUID | None) -> None:
    """Append the entry, and do what follows from it. Raises `Invalid`.

    `user_id` is whom it names, `here` who of the accounts that are here that is: one that is gone is no member.
    """
    kind = KINDS[type(line)]
    match line:
        case JoinLine(role=role):
            if room.is_direct and here not in room.members and line.seq is None:
                raise _not_two()
            room.append(kind, line.at, user_id, payload={} if role is None else {"role": role})
            if here is not None and here not in room.members:
                read = None if line.seq is None else room.last_seq
                room.let_in(here, line.at, role or Role.MEMBER, read=read)
        case LeaveLine():
            if room.is_direct:
                raise Invalid("room", "a direct room keeps its two members")
            room.append(kind, line.at, user_id)
            if here in room.members and here is not None:
                room.let_go(here)
        case RoleLine(role=role):
            room.append(kind, line.at, user_id, payload={"role": role})
            if here in room.members and here is not None:
                room.give(here, role)
        case ChangeLine():
            room.append(kind, line.at, user_id, payload=_changed(line))
            room.changed = line
        case EditLine(message_id=about) | DeleteLine(message_id=about):
            room.append(kind, line.at, user_id, about=about)


def enter_before(line: Entry, room: RoomLog, user_id: UUID) -> None:
    """Who speaks without having joined came in before the history begins. Raises `Invalid`."""
    if room.is_direct:
        raise _not_two()
    room.append(KINDS[JoinLine], line.at, user_id, payload={"role": Role.MEMBER})
    room.let_in(user_id, line.at, Role.MEMBER, read=None)


def _changed(line: ChangeLine) -> dict[str, object]:
    says = {} if line.keeps_receipts is msgspec.UNSET else {"keeps_receipts": line.keeps_receipts}
    return {"name": line.name, "description": line.description, "is_private": line.is_private, **says}


def _not_two() -> Invalid:
    return Invalid("room", "a direct room has exactly two members")

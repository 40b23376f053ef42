"""What the servers have acknowledged: the demo's own account of the chat, to compare with what they stored."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

from hubbub.models import Message


def fingerprint(user_id: UUID | None, content: str) -> int:
    """64 bits instead of a message, so that a long log is not kept in memory. Holds within one process."""
    return hash((user_id, content))


@dataclass(slots=True)
class RoomAccount:
    """One room: who is in it, how much of each kind its log has, and the messages of the chat log in order."""

    id: UUID
    name: str
    members: set[UUID] = field(default_factory=set)
    entries: Counter[str] = field(default_factory=Counter)
    loaded: array[int] = field(default_factory=lambda: array("q"))

    def joined(self, user_id: UUID) -> None:
        if user_id not in self.members:
            self.members.add(user_id)
            self.entries["joined"] += 1

    def left(self, user_id: UUID) -> None:
        if user_id in self.members:
            self.members.remove(user_id)
            self.entries["left"] += 1

    def was_told(self, user_id: UUID, content: str) -> None:
        """A message of the chat log."""
        self.entries["message"] += 1
        self.loaded.append(fingerprint(user_id, content))


@dataclass(slots=True)
class Ledger:
    """All rooms, and the messages of the live talk as they were last acknowledged."""

    rooms: dict[UUID, RoomAccount] = field(default_factory=dict)
    talk: dict[UUID, Message] = field(default_factory=dict)
    direct: dict[frozenset[UUID], UUID] = field(default_factory=dict)

    def opened(self, room_id: UUID, name: str, *members: UUID) -> RoomAccount:
        account = self.rooms[room_id] = RoomAccount(room_id, name)
        for user_id in members:
            account.joined(user_id)
        return account

    def sent(self, message: Message) -> None:
        """A message of the talk. A retry of it is the same message."""
        if message.id not in self.talk:
            self.talk[message.id] = message
            self.rooms[message.room_id].entries["message"] += 1

    def changed(self, message: Message) -> None:
        """An edit or a deletion that was new to the room."""
        before, self.talk[message.id] = self.talk[message.id], message
        if message.deleted_at != before.deleted_at:
            self.rooms[message.room_id].entries["deleted"] += 1
        elif message.content != before.content:
            self.rooms[message.room_id].entries["edited"] += 1

    @property
    def messages(self) -> int:
        return sum(account.entries["message"] for account in self.rooms.values())

"""The state that the steps of the demo share: the hub, and the rows that have to be stored in the end."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

from hubbub.hub import Hub
from hubbub.models import Message
from hubbub.postgres import Pool
from hubbub.redis import Connection
from hubbub.settings import Settings

T = TypeVar("T")

WAIT_SECONDS: Final = 30
"""For an event. Far more than any needs: one that has not come by then is lost."""


def fingerprint(user_id: UUID | None, content: str) -> int:
    """64 bits for a message, so that a long log is not kept in memory. Valid within one process."""
    return hash((user_id, content))


@dataclass(slots=True)
class ExpectedRoom:
    """A room: its members, how many entries of each kind its log has, and its imported messages in order."""

    id: UUID
    name: str
    members: set[UUID] = field(default_factory=set)
    entries: Counter[str] = field(default_factory=Counter)
    imported: array[int] = field(default_factory=lambda: array("q"))

    def join(self, *user_ids: UUID) -> None:
        newcomers = set(user_ids) - self.members
        self.members |= newcomers
        self.entries["joined"] += len(newcomers)

    def leave(self, user_id: UUID) -> None:
        self.entries["left"] += user_id in self.members
        self.members.discard(user_id)

    def import_message(self, user_id: UUID, content: str) -> None:
        """An author who is not a member joins first."""
        self.join(user_id)
        self.entries["message"] += 1
        self.imported.append(fingerprint(user_id, content))


@dataclass(slots=True)
class Context:
    """`pool` and `redis` are for the questions of the checks, beside the hub. `folder` is deleted at the end.

    Expected are the accounts, the rooms, and the messages that were sent here, as they were last acknowledged.
    `sentences` are what users write.
    """

    settings: Settings
    folder: Path
    hub: Hub
    pool: Pool
    redis: Connection
    user_count: int
    show: Callable[[str], None]
    users: list[UUID] = field(default_factory=list)
    rooms: dict[UUID, ExpectedRoom] = field(default_factory=dict)
    messages: dict[UUID, Message] = field(default_factory=dict)
    direct_rooms: dict[frozenset[UUID], UUID] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=lambda: ["hello"])

    async def create_users(self, name: str, count: int) -> list[UUID]:
        """Accounts without a password, under names that no log has."""
        names = [f"{name}-{uuid4().hex}" for _ in range(count)]
        users = await gather(self.hub.users.create(f"{one}@example.org", one, "!") for one in names)
        self.users += [user.id for user in users]
        return [user.id for user in users]

    async def create_room(self, name: str, members: list[UUID]) -> ExpectedRoom:
        room = await self.hub.rooms.create(name, created_by=members[0])
        await self.hub.room_users.add_many(room.id, members[1:])
        return self.expect_room(room.id, name, *members)

    def expect_room(self, room_id: UUID, name: str, *members: UUID) -> ExpectedRoom:
        room = self.rooms.setdefault(room_id, ExpectedRoom(room_id, name))
        room.join(*members)
        return room

    def expect_message(self, message: Message) -> None:
        """Sent, edited or deleted. A retry, and an edit to the same content, make no entry in the log."""
        before, self.messages[message.id] = self.messages.get(message.id), message
        entries = self.rooms[message.room_id].entries
        if before is None:
            entries["message"] += 1
        elif message.deleted_at != before.deleted_at:
            entries["deleted"] += 1
        elif message.content != before.content:
            entries["edited"] += 1


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of tasks whose first error cancels the others and is raised, rather than a group of errors."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures


async def gather(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of concurrent calls, in their order."""
    async with task_group() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]

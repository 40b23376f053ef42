"""The rows that have to be stored in the end, and the import of a chat log, which makes the first of them."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import msgspec

from hubbub.cli import printable
from hubbub.cli.demo.report import Section
from hubbub.diagnostics import find_imported_user
from hubbub.events import MEMBER_KINDS
from hubbub.history import JoinLine, LeaveLine, MessageLine, Refusals, read_lines
from hubbub.history.lines import PlainLine, room_id_of
from hubbub.hub import Hub
from hubbub.models import Message
from hubbub.postgres import Pool, Statement
from hubbub.settings import Settings
from hubbub.testing import LogEntry

T = TypeVar("T")

CONVERSATION: Final = Path(__file__).with_name("conversation.jsonl")
"""Text that breaks careless columns, collations and length checks: names, scripts, emoji, long lines."""

WAIT_SECONDS: Final = 30
"""For an event. Far more than any needs: one that has not come by then is lost."""


@dataclass(slots=True)
class ExpectedRoom:
    """A room: its members, how many entries of each kind its log has, and its imported messages in order.

    Of an imported message it has a hash of author and content, so that a long log is not kept in memory.
    """

    id: UUID
    members: set[UUID] = field(default_factory=set)
    entries: Counter[str] = field(default_factory=Counter)
    imported: array[int] = field(default_factory=lambda: array("q"))

    def join(self, *user_ids: UUID) -> None:
        self.entries["joined"] += len(set(user_ids) - self.members)
        self.members.update(user_ids)

    def leave(self, user_id: UUID) -> None:
        self.entries["left"] += user_id in self.members
        self.members.discard(user_id)


# The log of a room. Brute force, to share nothing with the statements whose work it checks.
LOG = Statement(
    "demo.log",
    LogEntry,
    f"""
    SELECT seq, 'sent' AS kind, id AS message_id, NULL AS member_id
    FROM messages
    WHERE room_id = $1
    UNION ALL
    SELECT
        seq,
        kind,
        message_id,
        CASE WHEN kind IN {MEMBER_KINDS} THEN user_id END
    FROM room_events
    WHERE room_id = $1
    ORDER BY seq
    """,
)


@dataclass(slots=True)
class Context:
    """`pool` is for the questions of the checks, beside the hub. `folder` is deleted at the end.

    Expected are the accounts, the rooms, and the messages that were sent here, as they were last acknowledged.
    `log_findings` is what the report shows about the log.
    """

    settings: Settings
    folder: Path
    hub: Hub
    pool: Pool
    user_count: int
    show: Callable[[str], None]
    users: list[UUID] = field(default_factory=list)
    rooms: dict[UUID, ExpectedRoom] = field(default_factory=dict)
    messages: dict[UUID, Message] = field(default_factory=dict)
    direct_rooms: dict[frozenset[UUID], UUID] = field(default_factory=dict)
    log_findings: dict[str, object] = field(default_factory=dict)

    async def create_users(self, name: str, count: int) -> list[UUID]:
        """Accounts without a password, under names that no log has."""
        names = [f"{name}-{uuid4().hex}" for _ in range(count)]
        users = await gather(self.hub.users.create(f"{one}@example.org", one, "!") for one in names)
        self.users += [user.id for user in users]
        return [user.id for user in users]

    async def create_room(self, name: str, members: list[UUID]) -> ExpectedRoom:
        room = await self.hub.rooms.create(name, created_by=members[0])
        await self.hub.room_users.add_many(room.id, members[1:])
        return self.expect_room(room.id, *members)

    def expect_room(self, room_id: UUID, *members: UUID) -> ExpectedRoom:
        room = self.rooms.setdefault(room_id, ExpectedRoom(room_id))
        room.join(*members)
        return room

    def expect_message(self, message: Message) -> Message:
        """Sent, edited or deleted. A retry, and an edit to the same content, make no entry in the log."""
        before, self.messages[message.id] = self.messages.get(message.id), message
        entries = self.rooms[message.room_id].entries
        if before is None:
            entries["sent"] += 1
        elif message.deleted_at != before.deleted_at:
            entries["deleted"] += 1
        elif message.content != before.content:
            entries["edited"] += 1
        return message


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


async def until(holds: Callable[[], bool]) -> None:
    """Returns once it holds, or after WAIT_SECONDS: then a check fails for what is missing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds():  # noqa: ASYNC110 - several tasks bring it about
                await asyncio.sleep(0.01)


def read(file: BufferedReader, refusals: Refusals) -> Iterator[PlainLine]:
    """The lines that have a room and a user, without what the richer form adds. The file may be a pipe."""
    for number, line in read_lines(file, refusals.add):
        match line:
            case MessageLine(room=str(), user=str(), content=content) if content:
                yield MessageLine(at=line.at, room=line.room, user=line.user, content=content)
            case JoinLine(room=str(), user=str()) | LeaveLine(room=str(), user=str()):
                yield type(line)(at=line.at, room=line.room, user=line.user)
            case _:
                refusals.add(number, "line: is not a message, join or leave with a room and a user")


async def load(context: Context, title: str, lines: Iterator[PlainLine], refusals: Refusals) -> Section:
    """Import the log, and record what the database should have. The checks at the end compare the two."""
    section = Section(f"Import of {title}")
    context.show("importing the log")
    copy = context.folder / "log.jsonl"  # a pipe can be read once; the expectation is made from the same lines
    with copy.open("wb") as written:
        written.writelines(msgspec.json.encode(line) + b"\n" for line in lines)
    begin = perf_counter()
    with copy.open("rb") as file:
        imported = await context.hub.history.load(
            file, progress=lambda so_far: context.show(f"imported {so_far.lines:,} lines")
        )
    section.total("imported lines", imported.lines, perf_counter() - begin)
    section.total("created users", imported.users)
    with copy.open("rb") as file:
        await _expect(context, read(file, Refusals()))
    context.log_findings = {
        "name": title,
        "refused_lines": refusals.count,
        "first_refused": [refusal._asdict() for refusal in refusals.first],
        "renamed": [renamed._asdict() for renamed in imported.renamed],
    }
    for what, count, first in (
        ("changed nicknames", imported.renamed_count, imported.renamed),
        ("refused lines", refusals.count, refusals.first),
    ):
        if count:
            examples = "; ".join(", ".join(map(str, one)) for one in first[:3])
            section.notes.append(printable(f"{what} ({count:,}): {examples}"))
    return section


async def _expect(context: Context, lines: Iterator[PlainLine]) -> None:
    users: dict[str, UUID] = {}
    for line in lines:
        nickname, room = line.user or "", context.expect_room(room_id_of(line))
        if nickname not in users:
            users[nickname] = await find_imported_user(context.hub, nickname)
        if isinstance(line, LeaveLine):
            room.leave(users[nickname])
        else:
            room.join(users[nickname])  # also an author who is not a member joins first
        if isinstance(line, MessageLine):
            room.entries["sent"] += 1
            room.imported.append(hash((users[nickname], line.content)))
    context.users += dict.fromkeys(users.values())

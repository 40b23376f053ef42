"""What the database must hold after the import of the log and the acknowledged calls, and whether it does.

The SQL is brute force on purpose: it shares nothing with the statements whose work it checks.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from time import perf_counter
from typing import Final
from uuid import UUID, uuid4

import msgspec

from hubbub.cli import printable
from hubbub.cli.demo.report import Section
from hubbub.diagnostics import find_imported_user
from hubbub.events import MEMBER_KINDS
from hubbub.history import JoinLine, LeaveLine, MessageLine, Refusals, read_lines
from hubbub.history.lines import PlainLine, room_id_of
from hubbub.hub import Hub
from hubbub.migrations import TABLES
from hubbub.models import Message
from hubbub.postgres import Pool, Statement
from hubbub.scheduling import gather_or_cancel
from hubbub.settings import Settings
from hubbub.testing import LogEntry, seq_errors

CONVERSATION: Final = Path(__file__).with_name("conversation.jsonl")
"""Text that breaks careless columns, collations and length checks: names, scripts, emoji, long lines."""

READERS: Final = 60
"""Users of the log whose unread messages are counted, besides the newest users. A log may have very many."""

LOGS: Final = "every change logged once, without gaps"
PAGES: Final = "pages have every message, in order"
RULES: Final = "read marks, references, rules hold"
CHECK_OF: Final = {
    **dict.fromkeys(("user", "room", "member", "messages"), "every row stored exactly once"),
    "head": LOGS,
    "unread": "unread counts match a recount",
    **dict.fromkeys(("mark", "references", "constraint"), RULES),
}
"""The check that a stored fact belongs to, by the first word of its subject."""


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
        users = await gather_or_cancel(self.hub.users.create(f"{one}@example.org", one, "!") for one in names)
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


async def load(context: Context, title: str, lines: Iterable[PlainLine], refusals: Refusals) -> Section:
    """Import the log, and record what the database should have. The checks at the end compare the two."""
    section = Section(f"Import of {title}")
    context.show("importing the log")
    # A pipe can be read once, and both the import and the expectation are made from these lines.
    with (context.folder / "log.jsonl").open("w+b") as copy:
        copy.writelines(msgspec.json.encode(line) + b"\n" for line in lines)
        copy.seek(0)
        begin = perf_counter()
        imported = await context.hub.history.load(
            copy, progress=lambda so_far: context.show(f"imported {so_far.lines:,} lines")
        )
        section.total("imported lines", imported.lines, perf_counter() - begin)
        section.total("created users", imported.users)
        copy.seek(0)
        await _expect(context, (msgspec.json.decode(line, type=PlainLine) for line in copy))
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


async def _expect(context: Context, lines: Iterable[PlainLine]) -> None:
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

# No account was deleted here. The references of an entry are those that have no foreign key.
_FACTS = Statement(
    "demo.facts",
    lambda subject, number: (subject, number),
    """
    SELECT 'user ' || id AS subject, 1 AS number
    FROM users
    UNION ALL
    SELECT 'room ' || id, 1
    FROM rooms
    UNION ALL
    SELECT 'member ' || user_id || ' of room ' || room_id, 1
    FROM room_users
    UNION ALL
    SELECT 'messages of room ' || room_id, count(*)
    FROM messages
    GROUP BY room_id
    UNION ALL
    SELECT 'head of room ' || id, last_seq
    FROM rooms
    UNION ALL
    SELECT
        'unread by ' || room_users.user_id || ' in room ' || room_users.room_id,
        LEAST(1000, count(messages.id) FILTER (
            WHERE messages.seq > room_users.last_read_seq
                AND messages.user_id IS DISTINCT FROM room_users.user_id
                AND messages.deleted_at IS NULL
        ))
    FROM room_users
    LEFT JOIN messages ON messages.room_id = room_users.room_id
    WHERE room_users.user_id = ANY ($1)
    GROUP BY room_users.user_id, room_users.room_id
    UNION ALL
    SELECT
        'mark of ' || user_id || ' in room ' || room_id,
        COALESCE(last_read_message_id = (
            SELECT messages.id
            FROM messages
            WHERE messages.room_id = room_users.room_id
                AND messages.seq <= room_users.last_read_seq
            ORDER BY messages.seq DESC
            LIMIT 1
        ), true)::integer
    FROM room_users
    UNION ALL
    SELECT
        'references of seq ' || log.seq || ' in room ' || log.room_id,
        (users.id IS NOT NULL AND (log.message_id IS NULL OR messages.id IS NOT NULL))::integer
    FROM room_events AS log
    LEFT JOIN users ON users.id = log.user_id
    LEFT JOIN messages ON messages.id = log.message_id
    UNION ALL
    SELECT 'constraint ' || conname, convalidated::integer
    FROM pg_constraint
    JOIN pg_class ON pg_class.oid = conrelid
    WHERE relnamespace = current_schema()::regnamespace
        AND relname = ANY ($2)
    """,
)


async def compare(context: Context) -> Section:
    """All checks of what is stored, once no call is in flight any more."""
    context.show("checking what is stored")
    section, ids = Section("Stored rows against acknowledged calls"), context.users
    expected = {f"user {id}": 1 for id in ids}
    for room in context.rooms.values():
        expected |= {f"room {room.id}": 1, f"messages of room {room.id}": room.entries["sent"]}
        expected |= {f"member {id} of room {room.id}": 1 for id in room.members}
        expected[f"head of room {room.id}"] = room.entries.total()
    readers = [*ids[:READERS], *ids[max(READERS, len(ids) - context.user_count) :]]
    for id in readers:
        counting = context.hub.receipts.unread_counts(id, cap=1_000)
        unread = await section.time("unread counts read", counting)
        expected |= {f"unread by {id} in room {room_id}": count for room_id, count in unread.items()}
    stored = dict(await context.pool.fetch_all(_FACTS, readers, list(TABLES)))
    for subject in expected | stored:
        check = CHECK_OF[subject.split()[0]]
        section.expect(check, subject, stored.get(subject, 0), expected.get(subject, int(check == RULES)))
    for room in context.rooms.values():
        log = await context.pool.fetch_all(LOG, room.id)
        section.expect(LOGS, f"entries of room {room.id}", Counter(entry.kind for entry in log), room.entries)
        section.expect(LOGS, f"seqs of room {room.id}", list(seq_errors(log, room.entries.total())), [])
        await _turn_pages(context, section, room, log)
    return section


async def _turn_pages(context: Context, section: Section, room: ExpectedRoom, log: list[LogEntry]) -> None:
    """From the newest to the oldest message of the room: all of them, as they were acknowledged or imported."""
    ids: list[UUID | None] = []
    before, has_older, imported = None, True, reversed(room.imported)
    while has_older:
        reading = context.hub.messages.page(room.id, before=before, limit=200)
        page = await section.time("pages of 200 read", reading)
        for message in reversed(page.items):
            where = f"seq {message.seq} of room {room.id}"
            if message.id in context.messages:
                section.expect(PAGES, where, message, context.messages[message.id])
            else:
                found = hash((message.user_id, message.content))
                section.expect(PAGES, f"hash of {where}", found, next(imported, None))
            ids.append(message.id)
        has_older, before = page.has_older, page.items[0] if page.items else None
    stored = [entry.message_id for entry in reversed(log) if entry.kind == "sent"]
    section.expect(PAGES, f"messages of room {room.id}", ids, stored)
    section.expect(PAGES, f"number of messages of room {room.id}", len(ids), room.entries["sent"])

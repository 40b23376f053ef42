"""The comparison of the stored rows with the acknowledged calls, and with the counts that hubbub reports.

The SQL is brute force on purpose: it shares nothing with the statements whose work it checks.
"""

from __future__ import annotations

from collections import Counter
from typing import Final
from uuid import UUID

from hubbub.cli.demo.expected import LOG, Context, ExpectedRoom
from hubbub.cli.demo.report import Section
from hubbub.migrations import TABLES
from hubbub.postgres import Statement
from hubbub.testing import LogEntry, seq_errors

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


async def run(context: Context) -> Section:
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

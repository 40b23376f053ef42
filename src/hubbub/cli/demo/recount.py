"""The comparison of the stored rows with the acknowledged calls, and with the counts that hubbub reports.

The SQL is brute force on purpose: it shares nothing with the statements whose work it checks.
"""

from __future__ import annotations

from collections import Counter
from typing import Final
from uuid import UUID

from hubbub.cli.demo.context import Context, ExpectedRoom, fingerprint, gather
from hubbub.cli.demo.report import Section
from hubbub.log_checks import LogEntry, seq_errors
from hubbub.migrations import TABLES
from hubbub.postgres import Statement

PAGE: Final = 200
UNREAD_CAP: Final = 1_000

READERS: Final = 60
"""Users of the log whose unread messages are counted, besides the newest users. A log may have very many."""

CHECKS: Final = {
    "rows": "every row stored exactly once",
    "order": "imported messages keep their order",
    "members": "members are those who have not left",
    "changes": "every change logged exactly once",
    "gaps": "room logs have no gaps",
    "pages": "pages turned back have every message",
    "unread": "unread counts match a recount",
    "marks": "read marks name the right message",
    "references": "every reference leads to a row",
    "rules": "every rule of the schema is in force",
}


async def run(context: Context) -> Section:
    """All checks of what is stored, once no call is in flight any more."""
    context.show("checking what is stored")
    section = Section("Stored rows against acknowledged calls", CHECKS)
    await _compare_rows(context, section)
    await _compare_logs(context, section)
    unseen = set(context.messages)
    for room in context.rooms.values():
        unseen -= await _turn_pages(context, section, room)
    section.expect("pages", not unseen, f"{len(unseen):,} messages that were acknowledged are on no page")
    await _compare_unread(context, section)
    for (is_right,) in await context.pool.fetch_all(_MARKS):
        section.expect("marks", is_right, "a member has read up to one message, and the mark names another")
    for (is_right,) in await context.pool.fetch_all(_REFERENCES):
        section.expect("references", is_right, "an entry of a log names a user or a message that is not there")
    for name, is_valid in await context.pool.fetch_all(_CONSTRAINTS, list(TABLES)):
        section.expect("rules", is_valid, f"{name} is not valid")
    return section


_ROWS = Statement(
    "demo.rows",
    lambda users, rooms, messages: (users, rooms, messages),
    """
    SELECT
        (SELECT count(*) FROM users) AS users,
        (SELECT count(*) FROM rooms) AS rooms,
        (SELECT count(*) FROM messages) AS messages
    """,
)
_MEMBERS = Statement(
    "demo.members", lambda room_id, user_id: (room_id, user_id), "SELECT room_id, user_id FROM room_users"
)


async def _compare_rows(context: Context, section: Section) -> None:
    memberships = {(room.id, user_id) for room in context.rooms.values() for user_id in room.members}
    found = Counter(await context.pool.fetch_all(_MEMBERS))
    for room_id, user_id in memberships ^ found.keys():
        section.expect("members", False, f"{user_id} should not be a member of room {room_id}, or should be one")
    section.checks["members"].count = len(memberships)
    messages = sum(room.entries["message"] for room in context.rooms.values())
    expected = (len(context.users), len(context.rooms), messages, len(memberships))
    [counts] = await context.pool.fetch_all(_ROWS)
    stored = (*counts, found.total())
    for what, wanted, number in zip(("users", "rooms", "messages", "members"), expected, stored, strict=True):
        section.expect("rows", wanted == number, f"{wanted:,} {what} were acknowledged, {number:,} are stored")
    section.checks["rows"].count = sum(stored)


_LOGS = Statement(
    "demo.logs",
    lambda room_id, last_seq, seqs, kinds: (room_id, last_seq, list(map(LogEntry, seqs, kinds))),
    """
    SELECT
        rooms.id AS room_id,
        rooms.last_seq,
        array_remove(array_agg(log.seq ORDER BY log.seq), NULL) AS seqs,
        array_remove(array_agg(log.kind ORDER BY log.seq), NULL) AS kinds
    FROM rooms
    LEFT JOIN (
        SELECT room_id, seq, 'message' AS kind
        FROM messages
        UNION ALL
        SELECT room_id, seq, kind
        FROM room_events
    ) AS log ON log.room_id = rooms.id
    GROUP BY rooms.id
    """,
)


async def _compare_logs(context: Context, section: Section) -> None:
    for room_id, last_seq, log in await context.pool.fetch_all(_LOGS):
        room = context.rooms.get(room_id) or ExpectedRoom(room_id, "not expected")
        found = Counter(entry.kind for entry in log)
        section.expect("changes", found == room.entries, f"room {room.name!a}: {found} is not {room.entries}")
        errors = list(seq_errors(log, last_seq))
        section.expect("gaps", not errors, f"room {room.name!a}: {', '.join(errors)}")


async def _turn_pages(context: Context, section: Section, room: ExpectedRoom) -> set[UUID]:
    """From the newest to the oldest message of the room: all of them, as they were acknowledged or imported."""
    seen: set[UUID] = set()
    before, has_older, imported = None, True, reversed(room.imported)
    while has_older:
        reading = context.hub.messages.page(room.id, before=before, limit=PAGE)
        page = await section.time(f"pages of {PAGE} read", reading)
        for message in reversed(page.items):
            where = f"seq {message.seq} of room {room.name!a}"
            section.expect("pages", before is None or message.seq < before, f"{where} is out of order")
            if message.id in context.messages:
                as_sent = context.messages[message.id] == message
                section.expect("pages", as_sent, f"{where} is not as it was acknowledged")
            else:
                as_imported = next(imported, None) == fingerprint(message.user_id, message.content)
                section.expect("order", as_imported, f"{where} is not as in the log that was imported")
            before = message.seq
            seen.add(message.id)
        has_older = page.has_older
    found, wanted = len(seen), room.entries["message"]
    section.expect("pages", found == wanted, f"room {room.name!a}: {found:,} of {wanted:,} messages are on pages")
    return seen


_UNREAD = Statement(
    "demo.unread",
    lambda user_id, room_id, unread: (user_id, room_id, unread),
    """
    SELECT
        room_users.user_id,
        room_users.room_id,
        count(messages.id) FILTER (
            WHERE messages.seq > room_users.last_read_seq
                AND messages.user_id IS DISTINCT FROM room_users.user_id
                AND messages.deleted_at IS NULL
        ) AS unread
    FROM room_users
    LEFT JOIN messages ON messages.room_id = room_users.room_id
    WHERE room_users.user_id = ANY($1::uuid[])
    GROUP BY room_users.user_id, room_users.room_id
    """,
)


async def _compare_unread(context: Context, section: Section) -> None:
    ids, hub = context.users, context.hub
    readers = [*ids[:READERS], *ids[max(READERS, len(ids) - context.user_count) :]]
    counts = await gather(
        section.time("unread counts read", hub.receipts.unread_counts(id, cap=UNREAD_CAP)) for id in readers
    )
    reported = dict(zip(readers, counts, strict=True))
    for user_id, room_id, unread in await context.pool.fetch_all(_UNREAD, readers):
        wanted, found = min(unread, UNREAD_CAP), reported[user_id].get(room_id)
        section.expect("unread", found == wanted, f"{user_id}: {found} unread in room {room_id}, not {wanted}")


_MARKS = Statement(
    "demo.marks",
    lambda is_right: (is_right,),
    """
    SELECT
        COALESCE(last_read_message_id = (
            SELECT messages.id
            FROM messages
            WHERE messages.room_id = room_users.room_id
                AND messages.seq <= room_users.last_read_seq
            ORDER BY messages.seq DESC
            LIMIT 1
        ), true) AS is_right
    FROM room_users
    """,
)

# The two references without a foreign key, which a deletion may leave behind. No account was deleted here.
_REFERENCES = Statement(
    "demo.references",
    lambda is_right: (is_right,),
    """
    SELECT users.id IS NOT NULL AND (room_events.message_id IS NULL OR messages.id IS NOT NULL) AS is_right
    FROM room_events
    LEFT JOIN users ON users.id = room_events.user_id
    LEFT JOIN messages ON messages.id = room_events.message_id
    """,
)

_CONSTRAINTS = Statement(
    "demo.constraints",
    lambda name, is_valid: (name, is_valid),
    """
    SELECT pg_constraint.conname::text AS name, pg_constraint.convalidated AS is_valid
    FROM pg_constraint
    JOIN pg_class ON pg_class.oid = pg_constraint.conrelid
    WHERE pg_class.relnamespace = current_schema()::regnamespace
        AND pg_class.relname = ANY($1::text[])
    """,
)

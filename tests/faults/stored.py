"""Reads all logs of a database, for the checker."""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from faults.checker import Entry, Stored
from hubbub import PostgresSettings
from hubbub.events import KINDS
from hubbub.postgres import connect

LOGS = """
    SELECT room_id, seq, 'sent', id, content
    FROM messages
    UNION ALL
    SELECT room_id, seq, kind, message_id, ''
    FROM room_events
    ORDER BY room_id, seq
"""


async def stored_in(settings: PostgresSettings) -> Stored:
    """By a connection of its own, in one snapshot."""
    connection = await connect(settings)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            heads = await connection.fetch("SELECT id, last_seq FROM rooms")
            rows = await connection.fetch(LOGS)
    finally:
        await connection.close()
    logs: dict[UUID, list[Entry]] = defaultdict(list)
    for room_id, seq, kind, message_id, content in rows:
        logs[UUID(str(room_id))].append(
            Entry(seq, KINDS[kind].__name__, None if message_id is None else UUID(str(message_id)), content)
        )
    return Stored({UUID(str(room_id)): head for room_id, head in heads}, dict(logs))

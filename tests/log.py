"""Reads the whole log of a room from the tables, for tests that compare it with the calls that were made."""

from __future__ import annotations

from uuid import UUID

from hubbub.postgres import Executor, Statement

LOG = Statement(
    "test.log",
    lambda seq, kind: (seq, kind),
    """
    SELECT seq, 'sent' AS kind
    FROM messages
    WHERE room_id = $1
    UNION ALL
    SELECT seq, kind
    FROM room_events
    WHERE room_id = $1
    ORDER BY seq
    """,
)
HEAD = Statement("test.head", int, "SELECT last_seq FROM rooms WHERE id = $1")


async def log_of(executor: Executor, room_id: UUID) -> list[str]:
    """The kinds of the entries in order, after a check that their seqs are 1 to last_seq."""
    entries = await executor.fetch_all(LOG, room_id)
    head = await executor.fetch_one(HEAD, room_id)
    assert [seq for seq, _ in entries] == list(range(1, (head or 0) + 1))
    return [kind for _, kind in entries]

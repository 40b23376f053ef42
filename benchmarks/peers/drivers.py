"""asyncpg with its own pool of 20. It returns rows instead of models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg

from benchmarks.contenders import Window
from benchmarks.context import PEOPLE, ROOMS, USERS, Context, address
from benchmarks.measuring import closed_loop
from benchmarks.peers.node import CONTENT

POOL = 20

Arguments = Callable[[int], Sequence[object]]

SEND = (Path(__file__).parent / "send.sql").read_text(encoding="utf-8")
INSERT = """
INSERT INTO messages (room_id, user_id, content, message_type)
VALUES ($1, $2, $3, $4)
RETURNING id, room_id, user_id, content, message_type, is_edited, created_at, updated_at
"""
MEMBERSHIP = """
SELECT room_id, user_id, joined_at, role, last_read_message_id, last_read_seq
FROM room_users
WHERE room_id = $1
    AND user_id = $2
"""
PAGE = """
SELECT id, room_id, seq, user_id, content, message_type, is_edited, created_at, updated_at, deleted_at
FROM messages
WHERE room_id = $1
ORDER BY seq DESC
LIMIT 50
"""


@asynccontextmanager
async def asyncpg_loop(
    context: Context, sql: str, arguments: Arguments, callers: int, *, original: bool = False
) -> AsyncIterator[Window]:
    """One statement per call. The pool prepares it once per connection."""
    settings = context.original if original else context.settings.postgres
    async with asyncpg.create_pool(**address(settings), min_size=POOL, max_size=POOL) as pool:

        async def step(number: int) -> None:
            assert await pool.fetch(sql, *arguments(number))

        yield lambda seconds: closed_loop(step, callers, seconds)


def send(number: int) -> Sequence[object]:
    return uuid4(), ROOMS[number % PEOPLE], USERS[number % PEOPLE], CONTENT, "text"


def insert(number: int) -> Sequence[object]:
    return ROOMS[number % PEOPLE], USERS[number % PEOPLE], CONTENT, "text"


def membership(number: int) -> Sequence[UUID]:
    return ROOMS[number % PEOPLE], USERS[number % PEOPLE]

"""Bare drivers of PostgreSQL with their own pools of 20, returning rows, not models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from benchmarks.context import PEOPLE, ROOMS, USERS, address
from benchmarks.measuring import Step
from benchmarks.peers.node import CONTENT
from hubbub import PostgresSettings

POOL = 20

SEND = (Path(__file__).parent / "send.sql").read_text(encoding="utf-8")
INSERT = """
INSERT INTO messages (room_id, user_id, content, message_type)
VALUES ($1, $2, $3, $4)
RETURNING id, room_id, user_id, content, message_type, is_edited, created_at, updated_at
"""
USER = (
    "SELECT id, email, username, avatar_url, is_online, last_seen, created_at, updated_at FROM users WHERE id = $1"
)
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

Steps = Mapping[str, Step]


@asynccontextmanager
async def bare_asyncpg(settings: PostgresSettings, page_room: UUID = ROOMS[0]) -> AsyncIterator[Steps]:
    """asyncpg and its pool, which prepares a statement once per connection."""
    async with asyncpg.create_pool(**address(settings), min_size=POOL, max_size=POOL) as pool:

        async def send(room_id: UUID, number: int) -> None:
            row = await pool.fetchrow(SEND, uuid4(), room_id, USERS[number % PEOPLE], CONTENT, "text")
            assert row is not None

        async def insert(number: int) -> None:
            assert await pool.fetchrow(INSERT, ROOMS[number % PEOPLE], USERS[number % PEOPLE], CONTENT, "text")

        async def user(number: int) -> None:
            assert await pool.fetchrow(USER, USERS[number % PEOPLE])

        async def membership(number: int) -> None:
            assert await pool.fetchrow(MEMBERSHIP, ROOMS[number % PEOPLE], USERS[number % PEOPLE])

        async def page(_: int) -> None:
            assert len(await pool.fetch(PAGE, page_room)) == 50

        yield {
            "send": lambda number: send(ROOMS[number % PEOPLE], number),
            "send, one room": lambda number: send(ROOMS[0], number),
            "insert": insert,
            "user": user,
            "membership": membership,
            "page": page,
        }


@asynccontextmanager
async def psycopg3(settings: PostgresSettings, page_room: UUID = ROOMS[0]) -> AsyncIterator[Steps]:
    """psycopg 3 and its pool. It prepares a statement at its fifth use, and commits on return."""
    async with AsyncConnectionPool[AsyncConnection[TupleRow]](
        kwargs={
            "host": settings.host,
            "port": settings.port,
            "user": settings.user,
            "password": settings.password,
            "dbname": settings.database,
            "cursor_factory": AsyncRawCursor,  # with $1 instead of %s
        },
        min_size=POOL,
        max_size=POOL,
        timeout=60,
    ) as pool:

        async def rows(sql: str, *values: object) -> list[TupleRow]:
            async with pool.connection() as connection:
                return await (await connection.execute(sql.encode(), values)).fetchall()

        async def send(number: int) -> None:
            values = (uuid4(), ROOMS[number % PEOPLE], USERS[number % PEOPLE], CONTENT, "text")
            assert await rows(SEND, *values)

        async def user(number: int) -> None:
            assert await rows(USER, USERS[number % PEOPLE])

        async def membership(number: int) -> None:
            assert await rows(MEMBERSHIP, ROOMS[number % PEOPLE], USERS[number % PEOPLE])

        async def page(_: int) -> None:
            assert len(await rows(PAGE, page_room)) == 50

        yield {"send": send, "user": user, "membership": membership, "page": page}

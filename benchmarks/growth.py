"""The cost of reads by table size: the newest page of a room, and unread counts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise

import asyncpg

from benchmarks.context import Context, connect
from benchmarks.filling import HOT_ROOM, QUIET_ROOM, READER, USUAL_ROOM, fill
from benchmarks.measuring import MIN_WARM_UP_SECONDS, Comparison, Figures, Pace, Target, closed_loop, summary
from hubbub import PostgresSettings
from hubbub.postgres import Pool, Statement
from hubbub.postgres.statement import T
from hubbub.repositories import Messages, ReadReceipts

FEW = 50_000
ROOMS = {"quiet room": QUIET_ROOM, "usual room": USUAL_ROOM, "hot room": HOT_ROOM}

# This query uses the three original indexes. The index of the log's order is dropped for this cell.
ORIGINAL_INDEXES = (
    "ALTER TABLE messages DROP CONSTRAINT idx_messages_room_id",
    "DROP INDEX idx_messages_created_at, idx_messages_user_id",
    "CREATE INDEX original_room_id ON messages (room_id)",
    "CREATE INDEX original_user_id ON messages (user_id)",
    "CREATE INDEX original_created_at ON messages (created_at DESC)",
    "ANALYZE messages",
)
ORIGINAL_PAGE = "SELECT * FROM messages WHERE room_id = $1 ORDER BY created_at DESC LIMIT 50"


class RecordingPool(Pool):
    """A pool that keeps its last statement and arguments."""

    last: tuple[str, tuple[object, ...]]

    async def fetch_all(self, statement: Statement[T], *args: object, deadline: float | None = None) -> list[T]:
        self.last = (statement.sql, args)
        return await super().fetch_all(statement, *args, deadline=deadline)


async def growth(context: Context, pace: Pace) -> AsyncIterator[Comparison]:
    """Time and buffers by EXPLAIN (ANALYZE, BUFFERS), with 50,000 messages and with many more messages."""
    database = (await context.new_database("growth")).postgres
    superuser = replace(context.superuser, database="growth")
    rounds = pace.seldom.rounds
    ours: list[dict[str, Figures]] = [{} for _ in range(rounds)]
    originals: dict[str, Figures] = {}
    unread: list[dict[str, Figures]] = [{} for _ in range(rounds)]
    sizes = (FEW, pace.messages) if pace.quick else (FEW, pace.messages // 10, pace.messages)
    for before, messages in pairwise((0, *sizes)):
        took = await fill(superuser, before, messages)
        for one in ours:
            one.update(await _pages(database, messages))
        originals |= await _original_pages(superuser, messages)
        size = {"bytes a message": await _bytes(superuser) / messages, "s to fill": took}
        for one in unread:
            one[f"hubbub, {messages:,}"] = await _unread(database, pace.seconds) | size
    yield Comparison(
        "growth",
        "newest page by messages in the table",
        ours,
        [Target("buffers", at_most=59, of=f"{room}, {pace.messages:,}") for room in ROOMS],
    )
    yield Comparison("growth-original", "the same, by created_at and the original indexes", [originals])
    yield Comparison(
        "unread",
        "unread counts of 100 rooms, by messages in the table",
        unread,
        [Target("p50_ms", at_most=10, of=f"hubbub, {pace.messages:,}")],
    )


async def _pages(settings: PostgresSettings, messages: int) -> dict[str, Figures]:
    pool, connection = RecordingPool(settings), await connect(settings)
    try:
        found = {}
        for name, room_id in ROOMS.items():
            page = await Messages(pool).page(room_id, limit=50)
            assert len(page.items) == 50
            found[f"{name}, {messages:,}"] = {**await _explained(connection, *pool.last), "messages": messages}
        return found
    finally:
        await connection.close()
        await pool.close()


async def _original_pages(superuser: PostgresSettings, messages: int) -> dict[str, Figures]:
    """Measured once, because the indexes take long to build. Everything is rolled back."""
    connection = await connect(superuser)
    try:
        transaction = connection.transaction()
        await transaction.start()
        for statement in ORIGINAL_INDEXES:
            await connection.execute(statement)
        found = {
            f"{name}, {messages:,}": {
                **await _explained(connection, ORIGINAL_PAGE, (room_id,)),
                "messages": messages,
            }
            for name, room_id in ROOMS.items()
        }
        await transaction.rollback()
        return found
    finally:
        await connection.close()


async def _explained(
    connection: asyncpg.Connection[asyncpg.Record], sql: str, arguments: tuple[object, ...]
) -> Figures:
    """The second execution, with a warm cache. Buffers are the sum of cached and read ones."""
    for _ in range(2):
        plan = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *arguments)
    found = json.loads(plan)[0]
    top = found["Plan"]
    return {"ms": found["Execution Time"], "buffers": top["Shared Hit Blocks"] + top["Shared Read Blocks"]}


async def _bytes(settings: PostgresSettings) -> float:
    """The size of the table with its indexes."""
    connection = await connect(settings)
    try:
        return float(await connection.fetchval("SELECT pg_total_relation_size('messages')"))
    finally:
        await connection.close()


async def _unread(settings: PostgresSettings, seconds: float) -> Figures:
    """One caller counts unread messages. In half of the rooms all are unread, up to the cap of 100."""
    pool = Pool(settings)
    try:
        receipts = ReadReceipts(pool)
        counts = await receipts.unread_counts(READER)
        assert len(counts) == 100
        await closed_loop(lambda _: receipts.unread_counts(READER), 1, MIN_WARM_UP_SECONDS)
        return summary(await closed_loop(lambda _: receipts.unread_counts(READER), 1, seconds))
    finally:
        await pool.close()

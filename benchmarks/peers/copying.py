"""The limit of the table of messages: a COPY of the messages of many waiting senders."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from benchmarks.contenders import Window
from benchmarks.context import COPY_ROOMS, PEOPLE, USERS, Context, connect
from benchmarks.measuring import closed_loop
from benchmarks.peers.node import CONTENT

COPY_CONNECTIONS = 2
ROWS_PER_COPY = 1_000
COLUMNS = ("id", "room_id", "seq", "user_id", "content", "message_type")

HEADS = "SELECT room_id, max(seq) AS seq FROM messages WHERE room_id = ANY($1::uuid[]) GROUP BY room_id"

Row = tuple[UUID, UUID, int, UUID, str, str]


class Copier:
    """Sends share a COPY and a commit. All queued messages are copied together, then each caller continues.

    The server checks neither membership nor order. This class assigns the seqs, in rooms without other writers.
    All foreign keys, checks and indexes of the table exist.
    """

    def __init__(self, connections: list[asyncpg.Connection[asyncpg.Record]], heads: dict[UUID, int]) -> None:
        self._idle = connections
        self._heads = heads
        self._queue: deque[tuple[Row, asyncio.Future[None]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, number: int) -> None:
        room_id, stored = COPY_ROOMS[number % PEOPLE], asyncio.get_running_loop().create_future()
        self._heads[room_id] = seq = self._heads[room_id] + 1
        self._queue.append(((uuid7(), room_id, seq, USERS[number % PEOPLE], CONTENT, "text"), stored))
        if self._idle:
            task = asyncio.create_task(self._copy(self._idle.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await stored

    async def _copy(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        while self._queue:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), ROWS_PER_COPY))]
            try:
                await connection.copy_records_to_table(
                    "messages", records=[row for row, _ in batch], columns=COLUMNS
                )
            except asyncpg.PostgresError as error:
                for _, stored in batch:
                    stored.set_exception(error)
            else:
                for _, stored in batch:
                    stored.set_result(None)
        self._idle.append(connection)


@asynccontextmanager
async def copy_loop(context: Context, callers: int) -> AsyncIterator[Window]:
    connections = [await connect(context.settings.postgres) for _ in range(COPY_CONNECTIONS)]
    try:
        found = await connections[0].fetch(HEADS, COPY_ROOMS)
        heads = {row["room_id"]: row["seq"] for row in found}
        copier = Copier(list(connections), dict.fromkeys(COPY_ROOMS, 0) | heads)
        yield lambda seconds: closed_loop(copier.send, callers, seconds)
    finally:
        for connection in connections:
            await connection.close()

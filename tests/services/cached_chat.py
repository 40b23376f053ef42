"""Repositories with a cache on their own connections, like those of one process of a chat."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from hubbub import PostgresSettings, RedisSettings, User
from hubbub.commits import Commits, OnCommit
from hubbub.hub import Repositories
from hubbub.postgres import Executor, Pool
from hubbub.redis import Connection
from hubbub.repositories import Users
from hubbub.services.cache import Cache

REDIS_DEADLINE_SECONDS = 5.0
"""The wait for Redis in tests in which it is up, so that a busy machine does not look like a slow server."""


class WatchedUsers(Users):
    """Counts reads. The next read can be held between its answer and its return, and all reads can be delayed."""

    def __init__(self, executor: Executor, on_commit: OnCommit) -> None:
        super().__init__(executor, on_commit)
        self.reads = 0
        self.has_read = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.delays: random.Random | None = None
        self._holds = False

    async def get(self, user_id: UUID) -> User:
        self.reads += 1
        held, self._holds = self._holds, False
        user = await super().get(user_id)
        if held:
            self.has_read.set()
            await self.may_go_on.wait()
        if self.delays is not None:
            await asyncio.sleep(self.delays.choice([0, 0.001, 0.005]))
        return user

    def hold(self) -> None:
        self._holds = True
        self.has_read.clear()
        self.may_go_on.clear()


class Chat(Repositories):
    def __init__(self, pool: Pool, redis: Connection, *, ttl_seconds: float, deadline_seconds: float) -> None:
        self.commits = Commits()
        super().__init__(pool, self.commits)
        self.pool = pool
        self.redis = redis
        self.watched = WatchedUsers(pool, self.commits)
        self.cache = Cache(
            redis,
            users=self.watched,
            rooms=self.rooms,
            messages=self.messages,
            room_users=self.room_users,
            ttl_seconds=ttl_seconds,
            deadline_seconds=deadline_seconds,
        )
        self.cache._register(self.commits)

    async def deletions_acknowledged(self) -> None:
        """Wait until Redis has deleted the entries for the changes of this process."""
        while self.cache._invalidations:
            await self.redis.execute("PING")  # answered after the commands before it


@asynccontextmanager
async def opened(
    postgres: PostgresSettings,
    redis: RedisSettings,
    *,
    ttl_seconds: float = 60,
    deadline_seconds: float = REDIS_DEADLINE_SECONDS,
) -> AsyncIterator[Chat]:
    pool, connection = Pool(postgres), Connection(redis)
    await connection.start()
    chat = Chat(pool, connection, ttl_seconds=ttl_seconds, deadline_seconds=deadline_seconds)
    try:
        yield chat
    finally:
        await chat.cache._close()
        await connection.close()
        await pool.close()

"""Stops that nobody waits for, told to Redis together."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Final
from uuid import UUID

from hubbub.errors import Unavailable
from hubbub.redis import Connection, ReplyError
from hubbub.services.typing_indicators.scripts import BUCKETS, STOP, bucket_of, due_key, log_refusal, room_key

STOPS_A_SCRIPT: Final = 200
LONGEST_WAIT: Final = 10_000
"""Stops that may wait. Beyond that they are let go: what is not stopped fades."""


class Stopping:
    """Takes stops at once and tells Redis of them in batches, a bucket at a time. What fails is let go."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: list[dict[tuple[UUID, UUID], None]] = [{} for _ in range(BUCKETS)]
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, room_id: UUID, user_id: UUID) -> None:
        """The user is to stop typing in the room, soon."""
        waiting = self._waiting[bucket_of(room_id)]
        if len(waiting) < LONGEST_WAIT // BUCKETS:
            waiting[room_id, user_id] = None
            self._wake.set()

    def start(self) -> None:
        """Begin to tell Redis. A second start does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_stopping(), name="hubbub-typing-stops")

    async def close(self) -> None:
        """Tell Redis what waits, and end. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            await self._stop_all()

    async def _keep_stopping(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._stop_all()

    async def _stop_all(self) -> None:
        for waiting in self._waiting:
            while waiting and self._connection.connected:
                stops = list(islice(waiting, STOPS_A_SCRIPT))
                for stop in stops:
                    del waiting[stop]
                await self._tell(stops)
            waiting.clear()

    async def _tell(self, stops: list[tuple[UUID, UUID]]) -> None:
        try:
            await stop_now(self._connection, stops)
        except asyncio.CancelledError:
            for stop in stops:
                self.add(*stop)  # for `close`
            raise
        except Unavailable:
            pass  # the connection has logged the outage; what is not stopped fades
        except ReplyError as error:
            log_refusal(error)


async def stop_now(connection: Connection, stops: list[tuple[UUID, UUID]]) -> int:
    """Stop in these rooms of one bucket; how many of the users did type. Raises `Unavailable`."""
    due = due_key(bucket_of(stops[0][0]))
    words = [str(one) for stop in stops for one in stop]
    return await STOP(connection, keys=(due, *[room_key(room_id) for room_id, _ in stops]), args=words)

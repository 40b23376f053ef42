"""Ending the presence of users whose process died, or who left and did not come back in time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

from hubbub.background import ReportErrors
from hubbub.errors import Unavailable
from hubbub.events import PRESENCE_CHANNEL
from hubbub.redis import Connection, ReplyError
from hubbub.redis.replies import as_ids
from hubbub.services.presence.scripts import BUCKETS, END_DUE, FIND_DUE, log_refusal, online_key

CHUNK: Final = 500


class Sweeper:
    """Looks for users who are due to go offline, in all buckets, whichever process had their leases.

    All processes sweep: who goes offline is decided in Redis, and published there once. After an outage of Redis
    every lease looks as if it had ended, because nobody could renew it; so for one heartbeat after an outage
    nobody is swept, in which the processes that live renew what they hold.

    `on_transition` is told who may have gone offline, `on_empty` which buckets have nobody who is online.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        every_seconds: float,
        heartbeat_seconds: float,
        on_transition: Callable[[Iterable[UUID]], None],
        on_empty: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._every_seconds = every_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._on_transition = on_transition
        self._on_empty = on_empty
        self._truce_until = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sweep. A second start does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_sweeping(), name="hubbub-presence-sweeper")

    async def close(self) -> None:
        """Stop sweeping. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _keep_sweeping(self) -> None:
        while True:
            for bucket in range(BUCKETS):
                with ReportErrors("sweeping presence"):
                    await self._sweep(bucket)
            # Jittered, so that the processes' sweeps spread out.
            await asyncio.sleep(self._every_seconds * random.uniform(0.5, 1))  # noqa: S311 - guards nothing

    async def _sweep(self, bucket: int) -> None:
        clock = asyncio.get_running_loop().time
        asked_at = clock()
        try:
            online, due = await FIND_DUE(self._connection, keys=(online_key(bucket),), args=(CHUNK,))
            if clock() - asked_at > self._heartbeat_seconds / 2:
                self._truce_until = clock() + self._heartbeat_seconds
            if not online:
                self._on_empty(bucket)
            if due and clock() >= self._truce_until:
                await self._end(bucket, due)
        except Unavailable:
            self._truce_until = clock() + self._heartbeat_seconds
        except ReplyError as error:
            log_refusal(error)

    async def _end(self, bucket: int, due: list[bytes]) -> None:
        went = as_ids([*due])  # where no answer comes: it may have happened all the same
        try:
            went = await END_DUE(self._connection, keys=(online_key(bucket),), args=(PRESENCE_CHANNEL, *due))
        finally:
            self._on_transition(went)

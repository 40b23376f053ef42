"""Saying that somebody stopped typing who did not say so: the browser was closed, the process was killed."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from hubbub.background import ReportErrors
from hubbub.errors import Unavailable
from hubbub.redis import Connection, ReplyError
from hubbub.services.typing_indicators.scripts import (
    BUCKETS,
    FADE,
    FIND_DUE,
    due_key,
    log_refusal,
    room_key_in,
)

ROOMS_A_SCRIPT: Final = 100


class Fading:
    """Publishes one stop for everybody whose time is over, whichever process published the start."""

    def __init__(self, connection: Connection, *, every_seconds: float) -> None:
        self._connection = connection
        self._every_seconds = every_seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for what has faded. A second start does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_fading(), name="hubbub-typing-fading")

    async def close(self) -> None:
        """Stop looking. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _keep_fading(self) -> None:
        while True:
            for bucket in range(BUCKETS):
                with ReportErrors("letting typing fade"):
                    await self._fade(bucket)
            # Jittered, so that the processes' rounds spread out.
            await asyncio.sleep(self._every_seconds * random.uniform(0.5, 1))  # noqa: S311 - guards nothing

    async def _fade(self, bucket: int) -> None:
        key = due_key(bucket)
        try:
            rooms = await FIND_DUE(self._connection, keys=(key,), args=(ROOMS_A_SCRIPT,))
            if rooms:
                keys = (key, *[room_key_in(bucket, room.decode(errors="replace")) for room in rooms])
                await FADE(self._connection, keys=keys, args=rooms)
        except Unavailable:
            pass  # the connection has logged the outage; what is due now is due later
        except ReplyError as error:
            log_refusal(error)

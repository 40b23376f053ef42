"""Keeps one wire up: dials, waits until it is lost, waits a little, dials again."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Generic, TypeVar

from hubbub.background import ReportErrors
from hubbub.errors import Unavailable
from hubbub.redis.dialling import Dialler
from hubbub.redis.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from hubbub.settings import RedisSettings

logger = logging.getLogger("hubbub.redis")

W = TypeVar("W", bound=Wire)


class Line(Generic[W]):
    """The reconnecting task and what it knows: the wire while it is up, the trouble while it is not."""

    def __init__(
        self,
        name: str,
        settings: RedisSettings,
        make_wire: Callable[[], W],
        *,
        on_up: Callable[[W], None],
        on_down: Callable[[Unavailable], None],
    ) -> None:
        self._name = name
        self._make_wire = make_wire
        self._on_up = on_up
        self._on_down = on_down
        self._dialler = Dialler(settings, client_name=name)
        self._task: asyncio.Task[None] | None = None
        self._first_outcome = asyncio.Event()
        self._told: str | None = None
        self._closed = False
        self.wire: W | None = None
        self.trouble: Unavailable | None = Unavailable("redis", "the connection was not started", retryable=False)

    async def start(self) -> None:
        """Begin to dial; returns after the first attempt, whatever came of it. A second start only waits.

        Raises Unavailable once closed.
        """
        if self._closed:
            raise _closed()
        if self._task is None:
            self.trouble = Unavailable("redis", "the first connection is being made")
            self._task = asyncio.create_task(self._keep_up(), name=self._name)
        await self._first_outcome.wait()

    async def close(self) -> None:
        """End the task and the connection for good. A second close does nothing."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        wire = self.wire
        self._take_down(_closed())
        if wire is not None:
            wire.drop("the connection was closed")
            await asyncio.wait([wire.lost])

    async def _keep_up(self) -> None:
        attempt = 0
        while True:
            wire = self._make_wire()
            try:
                await self._dialler.dial(wire)
            except Unavailable as trouble:
                if self._closed:  # redis-py swallows a cancellation that meets the end of one of its waits
                    return
                attempt += 1
                self._tell(trouble)
            else:
                if self._closed:  # as above
                    wire.drop("the connection was closed")
                    return
                attempt = 1
                self._put_up(wire)
                await asyncio.wait([wire.lost])  # awaited as it is, a cancelled task would cancel it
                self._tell(wire.lost.result())
            await asyncio.sleep(pause_seconds(attempt))

    def _put_up(self, wire: W) -> None:
        if self._told is not None:
            logger.info("%s: connected again", self._name)
        self._told = self.trouble = None
        self.wire = wire
        with ReportErrors(f"{self._name}: putting a connection to use"):
            self._on_up(wire)
        self._first_outcome.set()

    def _tell(self, trouble: Unavailable) -> None:
        if trouble.reason != self._told:
            logger.log(
                logging.WARNING if trouble.retryable else logging.ERROR,
                "%s: %s; reconnecting",
                self._name,
                trouble.reason,
            )
            self._told = trouble.reason
        self._take_down(trouble)

    def _take_down(self, trouble: Unavailable) -> None:
        self.trouble = trouble
        self.wire = None
        with ReportErrors(f"{self._name}: telling of a lost connection"):
            self._on_down(trouble)
        self._first_outcome.set()


def _closed() -> Unavailable:
    return Unavailable("redis", "the connection was closed", retryable=False)


def pause_seconds(attempt: int) -> float:
    """min(attempt x 50, 2000) ms, shortened by up to half so that not all clients return at once."""
    return min(attempt * 50, 2000) / 1000 * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing

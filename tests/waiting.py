"""Waiting for a condition that another process brings about."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

HANGS_AFTER_SECONDS = 120
"""A condition that has not become true by then never will. It is not a measurement: a busy machine is slow."""


async def until(condition: Callable[[], bool]) -> None:
    async def answer() -> bool:
        return condition()

    await until_it_answers(answer)


async def until_it_answers(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while not await condition():  # noqa: ASYNC110 - this process is not notified
            await asyncio.sleep(0.01)

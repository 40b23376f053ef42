"""A load with a fault in the middle of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from faults.chat import Chat
from faults.fragile import FragileServers
from faults.scale import SCALE
from hubbub import Settings

PAUSE_SECONDS = 0.05

Fault = Callable[[Chat, FragileServers], AbstractAsyncContextManager[None]]


async def under_load(chat: Chat, fragile: FragileServers, fault: Fault, through: Settings) -> None:
    """Followers follow while a sender sends; in the middle the fault; then all comes to rest."""
    for _ in range(SCALE.followers):
        await chat.follower(through=through)
    # Enough to outlast the fault, with its callers' pauses alone.
    messages = round(10 * (1.5 * SCALE.fault_seconds + 0.5) / PAUSE_SECONDS)
    await chat.sender(messages, seed=1, callers=10, pause_seconds=PAUSE_SECONDS)
    await chat.acknowledged(50)
    async with fault(chat, fragile):
        await asyncio.sleep(SCALE.fault_seconds)
    await chat.all_is_sent()
    await chat.converged()

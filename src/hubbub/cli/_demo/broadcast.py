"""One who publishes, and many who listen."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Final
from uuid import uuid4

from hubbub.cli._demo.figures import Claim, Scene, Stopwatch
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.together import together
from hubbub.cli._demo.transitions import PATIENCE_SECONDS
from hubbub.redis import Gap
from hubbub.services.realtime import Messages

LISTENERS: Final = 20
MESSAGES: Final = 500


async def broadcast(stage: Stage, watch: Stopwatch) -> Scene:
    """Every listener hears every message once, in order. How long each takes to arrive is timed."""
    claim = Claim("each listener hears all, in order")
    channel = f"demo:{uuid4()}"
    listeners = [await stage.hub.realtime.listen(channel) for _ in range(LISTENERS)]
    sent: list[float] = []
    await together(
        [_publish(stage, watch, channel, sent), *(_listen(listener, watch, claim, sent) for listener in listeners)]
    )
    return Scene((claim.check(),))


async def _publish(stage: Stage, watch: Stopwatch, channel: str, sent: list[float]) -> None:
    """One after the other, so that what is timed is the way of a message and not a queue."""
    for number in range(MESSAGES):
        sent.append(perf_counter())
        with watch.time("publish a message"):
            await stage.hub.realtime.publish(channel, str(number))


async def _listen(listener: Messages, watch: Stopwatch, claim: Claim, sent: list[float]) -> None:
    async with listener:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                for number in range(MESSAGES):
                    heard = await anext(listener)
                    if isinstance(heard, str):
                        watch.note("hear a published message", perf_counter() - sent[int(heard)])
                    claim.holds(heard == str(number), f"message {number} was due, {_named(heard)} came")
        except TimeoutError:
            claim.holds(False, "a message did not arrive")


def _named(heard: str | Gap) -> str:
    return "a gap" if isinstance(heard, Gap) else f"message {heard}"

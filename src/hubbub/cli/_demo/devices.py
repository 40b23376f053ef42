"""People who come online on several devices, flicker, and go."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Final
from uuid import UUID, uuid4

from hubbub.cli._demo.figures import Claim, Scene, Stopwatch
from hubbub.cli._demo.stage import Stage
from hubbub.cli._demo.together import together
from hubbub.cli._demo.transitions import Transitions
from hubbub.hub import Hub

DEVICES: Final = ("phone", "laptop", "tablet")


async def come_and_go(stage: Stage, watch: Stopwatch, people: Sequence[UUID]) -> Scene:
    """All on three devices each; one device loses its connection and comes back; then all leave."""
    hub = stage.hub
    events = Claim("who comes and goes is told of once")
    async with aclosing(hub.presence.watch()) as changes:
        watcher = Transitions(changes)
        await watcher.begin()
        async with AsyncExitStack() as connections:
            await together(_arrive(hub, watch, connections, user_id) for user_id in people)
            present = await _asked_who_is_online(hub, people)
        # Nothing is heard of it before the grace time is over: who comes back in it was never away.
        await watcher.until(people, 2)
        # What was published before the last word is heard before it: a second event of somebody would be, too.
        last_word = uuid4()
        await hub.realtime.publish_user_presence(last_word, False)
        await watcher.until([last_word], 1)
    watcher.compare(events, people)
    still_there = await hub.presence.is_online(people)
    for user_id in people:
        present.holds(still_there[user_id] is False, f"{user_id} left and is said to be online")
    return Scene((events.check(), present.check()))


async def _arrive(hub: Hub, watch: Stopwatch, connections: AsyncExitStack, user_id: UUID) -> None:
    async with hub.presence.online(user_id, "a connection that breaks"):
        for device in DEVICES:
            with watch.time("come online on a device"):
                await connections.enter_async_context(hub.presence.online(user_id, device))


async def _asked_who_is_online(hub: Hub, people: Sequence[UUID]) -> Claim:
    claim = Claim("who is online, where, is known")
    online = await hub.presence.is_online(people)
    devices = await together(hub.presence.devices(user_id) for user_id in people)
    for user_id, found in zip(people, devices, strict=True):
        names = {device.name for device in found}
        claim.holds(online[user_id] is True, f"{user_id} is there and is said to be offline")
        claim.holds(names == set(DEVICES), f"{user_id} is said to be on {sorted(map(str, names))}")
    return claim

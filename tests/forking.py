"""A program that opens a hub, forks, and continues. The child ends like a program: its garbage is collected.

    forking.py SETTINGS

SETTINGS are the variables of `Settings.to_env` as JSON. The parent prints "unharmed" if everything that it held
before the fork still works.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import sys
from contextlib import AsyncExitStack
from uuid import UUID

import hubbub


class Held:
    """The objects of the parent at the fork."""

    def __init__(self, hub: hubbub.Hub) -> None:
        self.hub = hub
        self.stack = AsyncExitStack()

    async def take(self) -> None:
        hub, enter = self.hub, self.stack.enter_async_context
        await self.stack.enter_async_context(hub)
        self.ada: UUID = (await hub.users.create("ada@example.org", "ada", "!")).id
        self.room: UUID = (await hub.rooms.create("engine-room", created_by=self.ada)).id
        await enter(hub.presence.online(self.ada))
        self.feed = await enter(hub.follow(self.ada))
        self.news = await enter(await hub.realtime.listen("app:news"))
        self.transaction = await enter(hub.transaction())
        await self.transaction.rooms.update(self.room, description="in a transaction")
        await asyncio.gather(*(hub.users.get(self.ada) for _ in range(5)))

    async def check(self) -> None:
        hub = self.hub
        assert await hub.realtime.publish("app:news", "hello") == 1
        assert await anext(self.news) == "hello"
        assert await hub.presence.is_online([self.ada]) == {self.ada: True}
        assert (await hub.users.get(self.ada)).username == "ada"
        await self.transaction.messages.send(self.room, self.ada, "after the fork")
        await self.stack.aclose()


def run(settings: hubbub.Settings) -> None:
    held = Held(hubbub.Hub(settings, options=hubbub.Options(presence_grace_seconds=0)))
    with asyncio.Runner() as runner:
        runner.run(held.take())
        worker = multiprocessing.get_context("fork").Process(target=gc.collect)
        worker.start()
        worker.join()
        if (child := os.fork()) == 0:
            del held
            gc.collect()
            asyncio.run(asyncio.sleep(0))
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        assert status == worker.exitcode == 0
        runner.run(held.check())
    print("unharmed", flush=True)  # noqa: T201 - for the test that started this process


if __name__ == "__main__":
    run(hubbub.Settings.from_env(json.loads(sys.argv[1])) or sys.exit("no settings"))

"""A process that keeps users online until it is killed.

    lease_holder.py PORT PASSWORD HEARTBEAT USER...

It prints "held" when Redis has stored all leases.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from uuid import UUID

from hubbub.redis import Connection, Subscriptions
from hubbub.services.presence import Presence
from hubbub.settings import RedisSettings


async def write_nothing(changes: Mapping[UUID, bool]) -> None:
    """This process has no database."""


async def hold(settings: RedisSettings, heartbeat_seconds: float, user_ids: list[UUID]) -> None:
    connection, subscriptions = Connection(settings), Subscriptions(settings)
    await connection.start()
    presence = Presence(
        connection, subscriptions, write_nothing, heartbeat_seconds=heartbeat_seconds, grace_seconds=0
    )
    presence._start()
    async with AsyncExitStack() as stack:
        for user_id in user_ids:
            await stack.enter_async_context(presence.online(user_id, "a process"))
        print("held", flush=True)  # noqa: T201 - the test that started this process waits for it
        await asyncio.Event().wait()


if __name__ == "__main__":
    _, port, password, heartbeat, *users = sys.argv
    where = RedisSettings(host="127.0.0.1", port=int(port), password=password)
    asyncio.run(hold(where, float(heartbeat), [UUID(user) for user in users]))

"""The checks of both servers, over connections of their own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from hubbub.diagnostics import postgresql, redis, together
from hubbub.diagnostics.report import Report, summarize
from hubbub.diagnostics.together import Both
from hubbub.postgres import Pool
from hubbub.redis import Subscriptions, connection_to
from hubbub.settings import Settings

CONNECTIONS: Final = 2
"""To PostgreSQL. The second is for the feed, which reads memberships while a follower enters."""


async def check_servers(settings: Settings, processes: int) -> Report:
    """The report about these servers, for an application of so many processes. Does not raise for a server."""
    pool = Pool(replace(settings.postgres, pool_size=CONNECTIONS))
    connection, subscriptions = connection_to(settings.redis), Subscriptions(settings.redis)
    try:
        await asyncio.gather(connection.start(), subscriptions.start())
        stored = await postgresql.check(pool, settings.postgres, processes, settings.replicas)
        live = await redis.check(connection, settings.redis)
        reachable = None if stored.out_of_reach else pool, None if live.out_of_reach else connection
        return summarize([stored, live, await together.check(Both(*reachable, subscriptions))])
    finally:
        await subscriptions.close()
        await connection.close()
        await pool.close()

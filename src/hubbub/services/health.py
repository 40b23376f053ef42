"""How a hub and its servers do, for whoever decides whether to send it work."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Final

import msgspec

from hubbub.errors import HubbubError, Unavailable
from hubbub.instrumentation import PoolUse
from hubbub.postgres import Statement
from hubbub.redis import ReplyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hubbub.postgres import Pool
    from hubbub.redis import Connection, Subscriptions

DEADLINE_SECONDS: Final = 1.0

_PING = Statement("health.ping", int, "SELECT 1 AS ping")


class ServerHealth(msgspec.Struct, frozen=True):
    """`reason` says why a server is not ok, in a sentence without a secret; None where it is."""

    ok: bool
    latency_seconds: float
    reason: str | None


class Health(msgspec.Struct, frozen=True):
    """As JSON by `msgspec.json.encode`."""

    ready: bool
    """Whether PostgreSQL answers. Without it nothing works: send work elsewhere."""
    degraded: bool
    """Whether it works and Redis does not: no sessions, no presence, and events as late as a heartbeat."""
    postgres: ServerHealth
    redis: ServerHealth
    pool: PoolUse


class HealthProbe:
    """Asks both servers at the same time, over the connections that everybody uses."""

    def __init__(self, pool: Pool, connection: Connection, subscriptions: Subscriptions) -> None:
        self._pool = pool
        self._connection = connection
        self._subscriptions = subscriptions

    async def health(self, deadline_seconds: float = DEADLINE_SECONDS) -> Health:
        """Ends by the deadline, and raises nothing."""
        postgres, redis = await asyncio.gather(
            _asked(self._ask_postgres, deadline_seconds), _asked(self._ask_redis, deadline_seconds)
        )
        return Health(
            ready=postgres.ok,
            degraded=postgres.ok and not redis.ok,
            postgres=postgres,
            redis=redis,
            pool=self._pool.use,
        )

    async def _ask_postgres(self, seconds: float) -> None:
        await self._pool.fetch_one(_PING, deadline=asyncio.get_running_loop().time() + seconds)

    async def _ask_redis(self, seconds: float) -> None:
        await self._connection.execute("PING", deadline_seconds=seconds)
        trouble = self._subscriptions.trouble
        if trouble is not None:
            raise trouble.for_another()


async def _asked(ask: Callable[[float], Awaitable[None]], seconds: float) -> ServerHealth:
    since = perf_counter()
    reason = None
    try:
        await ask(seconds)
    except Unavailable as error:
        late = perf_counter() - since >= seconds
        reason = f"no answer within {seconds:g} s" if late else error.reason
    except (HubbubError, ReplyError) as error:
        reason = str(error)
    return ServerHealth(reason is None, perf_counter() - since, reason)

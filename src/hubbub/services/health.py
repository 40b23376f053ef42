"""The health of a hub and its servers, for a load balancer or an orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final

import msgspec

from hubbub.errors import HubbubError, Unavailable
from hubbub.instrumentation import PoolUse
from hubbub.postgres import Pool, Statement
from hubbub.redis import Connection, ReplyError, Subscriptions

DEADLINE_SECONDS: Final = 1.0
"""The default timeout of a probe by Kubernetes."""

_PING = Statement("health.ping", int, "SELECT 1 AS ping")


class ServerHealth(msgspec.Struct, frozen=True):
    """`reason` is None if the server is ok. Otherwise it is a sentence without secrets."""

    ok: bool
    latency_seconds: float
    reason: str | None


class Health(msgspec.Struct, frozen=True):
    """`msgspec.json.encode` turns it into JSON."""

    ready: bool
    """Whether PostgreSQL answers. Without it nothing works, so send requests elsewhere."""
    degraded: bool
    """Whether PostgreSQL works and Redis does not. Then there are no sessions and no presence, and events are as
    late as a heartbeat."""
    postgres: ServerHealth
    redis: ServerHealth
    pool: PoolUse


class HealthProbe:
    """Asks both servers at the same time, over the connections that all callers share."""

    def __init__(self, pool: Pool, connection: Connection, subscriptions: Subscriptions) -> None:
        self._pool = pool
        self._connection = connection
        self._subscriptions = subscriptions

    async def health(self, deadline_seconds: float = DEADLINE_SECONDS) -> Health:
        """Returns by the deadline, and does not raise."""
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

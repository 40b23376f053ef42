"""The health of a hub and its servers, for a load balancer or an orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final

from hubbub.errors import HubbubError, Unavailable
from hubbub.instrumentation import PoolUse
from hubbub.models import Value
from hubbub.postgres import Pool, Statement
from hubbub.postgres.errors import READ_ONLY
from hubbub.redis import Connection, ReplyError, Subscriptions

DEADLINE_SECONDS: Final = 1.0
"""The default timeout of a probe by Kubernetes."""

_PING = Statement(
    "health.ping",
    bool,
    "SELECT current_setting('transaction_read_only')::boolean AS is_read_only",
)


class ServerHealth(Value, frozen=True):
    """`reason` is None if the server is ok. Otherwise it is a sentence without secrets."""

    ok: bool
    latency_seconds: float
    reason: str | None


class Health(Value, frozen=True):
    """`msgspec.json.encode` turns it into JSON."""

    ready: bool
    """Whether PostgreSQL answers and takes changes, as a standby does not. Without it nothing works, so send
    requests elsewhere."""
    degraded: bool
    """Whether PostgreSQL works and Redis does not. Then there are no sessions, unless they are durable, and no
    presence, and events are as late as a heartbeat."""
    postgres: ServerHealth
    redis: ServerHealth
    pool: PoolUse


async def probe(pool: Pool, connection: Connection, subscriptions: Subscriptions, seconds: float) -> Health:
    """Ask both servers at the same time, by the deadline, over the connections of all callers. Does not raise."""

    async def ask_postgres() -> None:
        if await pool.fetch_one(_PING, deadline=asyncio.get_running_loop().time() + seconds):
            raise Unavailable("postgresql", READ_ONLY)

    async def ping(server: Connection) -> None:
        await server.execute("PING", deadline_seconds=seconds)

    async def ask_redis() -> None:
        await asyncio.gather(*map(ping, connection.servers.values() or [connection]))
        for server in subscriptions.servers:
            if server.failure is not None:
                raise server.failure.for_another()

    postgres, redis = await asyncio.gather(_result(ask_postgres, seconds), _result(ask_redis, seconds))
    degraded = postgres.ok and not redis.ok
    return Health(postgres.ok, degraded, postgres, redis, pool.use)


async def _result(ask: Callable[[], Awaitable[None]], seconds: float) -> ServerHealth:
    since = perf_counter()
    reason = None
    try:
        await ask()
    except Unavailable as error:
        late = perf_counter() - since >= seconds
        reason = f"no answer within {seconds:g} s" if late else error.reason
    except (HubbubError, ReplyError) as error:
        reason = str(error)
    return ServerHealth(reason is None, perf_counter() - since, reason)

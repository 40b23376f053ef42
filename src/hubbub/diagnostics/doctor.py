"""The checks of `hubbub doctor`: of each server, and here of both and this machine together.

The latter are of clocks, passwords, delivery and followers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from time import monotonic, thread_time, time
from typing import Final, NamedTuple

from hubbub import new_id
from hubbub.diagnostics import postgresql, redis
from hubbub.diagnostics.report import (
    Check,
    Report,
    Result,
    Section,
    Skipped,
    error,
    run_checks,
    summarize,
    warning,
)
from hubbub.errors import HubbubError, Unavailable
from hubbub.events import room_channel
from hubbub.instrumentation import LatencyHistogram
from hubbub.migrations import HEAD, revisions
from hubbub.passwords import USUAL_COST
from hubbub.postgres import Pool, Statement
from hubbub.redis import Connection, ReplyError, Subscriptions, connection_to, subscriptions_to
from hubbub.redis.replies import as_bytes_list
from hubbub.services.feed import Feed
from hubbub.services.sessions import find_ended
from hubbub.settings import Settings

CONNECTIONS: Final = 2
"""To PostgreSQL. The second is for the feed, which reads memberships while a follower enters."""

CLOCK_SKEW_SECONDS: Final = 1.0
"""Leases last tens of seconds and times in a chat are read by people: less than a second shows nowhere."""

CHEAP_SECONDS: Final = 0.05
EXPENSIVE_SECONDS: Final = 0.5
"""OWASP asks for less than a second per hash; half of it leaves a core for two logins at once."""

DELIVERY_SECONDS: Final = 2


class Both(NamedTuple):
    """A server that is out of reach is None."""

    pool: Pool | None
    connection: Connection | None
    subscriptions: Subscriptions


_NOW = Statement(
    "doctor.now", lambda seconds: seconds, "SELECT extract(EPOCH FROM clock_timestamp())::float8 AS seconds"
)


async def _clocks(both: Both) -> Result:
    """Presence uses the clock of Redis, times of messages that of PostgreSQL, ids that of this machine."""
    offsets = {"this machine": 0.0}
    if (pool := both.pool) is not None:

        async def postgresql_now() -> float:
            [seconds] = await pool.fetch_all(_NOW)
            return float(seconds)

        offsets["PostgreSQL"] = await _offset(postgresql_now)
    if (connection := both.connection) is not None:

        async def redis_now() -> float:
            seconds, microseconds = as_bytes_list(await connection.execute("TIME"))
            return int(seconds) + int(microseconds) / 1_000_000

        offsets["Redis"] = await _offset(redis_now)
    if len(offsets) == 1:
        raise Skipped("no server is in reach")
    first, last = max(offsets, key=offsets.__getitem__), min(offsets, key=offsets.__getitem__)
    skew = offsets[first] - offsets[last]
    summary = f"at most {skew * 1000:,.0f} ms apart"
    if skew <= CLOCK_SKEW_SECONDS:
        return Result(summary)
    meaning = f"The clock of {first} is {skew:,.1f} s ahead of that of {last}: times in the chat disagree."
    return Result(summary, [warning(meaning, "Synchronize all machines by NTP.")])


async def _offset(now: Callable[[], Awaitable[float]]) -> float:
    """Seconds by which a clock is ahead of ours, from the fastest of some answers, less half of its round trip."""
    readings = []
    for _ in range(3):
        asked, begin = time(), monotonic()
        answer = await now()
        taken = monotonic() - begin
        readings.append((taken, answer - asked - taken / 2))
    return min(readings)[1]


async def _passwords(_: Both) -> Result:
    seconds = await asyncio.to_thread(_hash_seconds, USUAL_COST)
    summary = f"cost {USUAL_COST} takes {seconds * 1000:,.0f} ms"
    if seconds < CHEAP_SECONDS:
        meaning = "Hashes are cheap on this machine, so stolen hashes are cheap to guess."
        return Result(summary, [warning(meaning, f"Give hubbub.open Passwords(cost={USUAL_COST + 1}), or more.")])
    if seconds > EXPENSIVE_SECONDS:
        meaning = "Hashes are expensive on this machine: a few logins at the same time keep a core busy."
        return Result(summary, [warning(meaning, f"Give hubbub.open Passwords(cost={USUAL_COST - 1}), or less.")])
    return Result(summary)


def _hash_seconds(cost: int) -> float:
    """Seconds of a core, whatever else runs on the machine meanwhile."""
    from bcrypt import gensalt, hashpw  # noqa: PLC0415 - as in hubbub.passwords

    begin = thread_time()
    hashpw(b"no account has this", gensalt(cost))
    return thread_time() - begin


async def _delivery(both: Both) -> Result:
    """On the channel of a room that does not exist: a login that is limited to hubbub's channels may use it."""
    if both.connection is None:
        raise Skipped("Redis is out of reach")
    channel = room_channel(new_id())
    try:
        async with asyncio.timeout(DELIVERY_SECONDS), await both.subscriptions.subscribe(channel) as received:
            begin = monotonic()
            await both.connection.execute("PUBLISH", channel, '{"from":"doctor","messages":[]}')
            await anext(received)
    except TimeoutError:
        meaning = (
            f"A published message was not received within {DELIVERY_SECONDS} s: followers get events only at "
            "heartbeats."
        )
        return Result("nothing received", [error(meaning, "Check whether REDIS_HOST is more than one server.")])
    except (Unavailable, ReplyError) as refusal:
        if isinstance(refusal, Unavailable) and refusal.retryable:
            raise
        meaning = f"This login may not publish and subscribe ({refusal}): followers wait for heartbeats."
        return Result(
            "refused", [error(meaning, "Give the ACL user the channels and commands of deploy/redis-user.conf.")]
        )
    return Result(f"received after {(monotonic() - begin) * 1000:.1f} ms")


async def _follower(both: Both) -> Result:
    """As a user without rooms: a follower asks both servers for all that it needs, and writes nothing."""
    if both.pool is None or both.connection is None:
        raise Skipped("it needs both servers")
    if await revisions.current_revision(both.pool) != HEAD:
        raise Skipped(f"the database is not at {HEAD}")
    feed = Feed(
        both.pool,
        both.connection,
        both.subscriptions,
        heartbeat_seconds=1,
        at_most_behind=1_000,
        on_rewind=lambda _: None,
        ended_sessions=partial(find_ended, both.connection),
        sends=LatencyHistogram(),
    )
    begin = monotonic()
    try:
        await feed.load_key()
        feed.start()
        async with feed.follow(new_id(), after={}, rooms=None, buffer=1, typing=False, presence=False):
            return Result(f"started after {(monotonic() - begin) * 1000:.1f} ms")
    except HubbubError as refusal:
        if isinstance(refusal, Unavailable) and refusal.retryable:
            raise
        meaning = f"Followers cannot start: {refusal}."
        return Result("refused", [error(meaning, "Give the role the rights of `hubbub migrate grant ROLE`.")])
    finally:
        await feed.close()


CHECKS: Final = (
    Check("together.clocks", "clocks", _clocks),
    Check("together.passwords", "passwords", _passwords),
    Check("together.delivery", "delivery", _delivery),
    Check("together.follower", "follower", _follower),
)


async def check_together(both: Both) -> Section:
    """Does not raise for servers that cannot be asked."""
    return await run_checks("together", "Together", None, CHECKS, lambda check: check.run(both))


async def check_servers(settings: Settings, processes: int) -> Report:
    """The report about these servers, for an application with `processes`. Does not raise for a server."""
    pool = Pool(replace(settings.postgres, pool_size=CONNECTIONS))
    connection = connection_to(settings.redis)
    subscriptions = subscriptions_to(settings.redis, connection)
    try:
        await asyncio.gather(connection.start(), subscriptions.start())
        stored = await postgresql.check(pool, settings.postgres, processes, settings.replicas)
        live = await redis.check(connection, settings.redis)
        reachable = None if stored.out_of_reach else pool, None if live.out_of_reach else connection
        return summarize([stored, live, await check_together(Both(*reachable, subscriptions))])
    finally:
        await subscriptions.close()
        await connection.close()
        await pool.close()

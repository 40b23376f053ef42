"""What both servers and this machine do together: clocks, passwords, and whether a word arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic, thread_time, time
from typing import Final, NamedTuple

from hubbub import new_id
from hubbub.cli._doctor.examination import Section, examine
from hubbub.cli._doctor.findings import Check, Seen, Unseen, error, warning
from hubbub.errors import HubbubError, Unavailable
from hubbub.migrations import HEAD, revisions
from hubbub.passwords import USUAL_COST
from hubbub.postgres import Pool, Statement
from hubbub.redis import Connection, ReplyError, Subscriptions
from hubbub.redis.replies import as_bytes_list
from hubbub.services.feed import Feed
from hubbub.services.feed.announcements import room_channel

MOST_APART_SECONDS: Final = 1.0
ROUNDS: Final = 3

CHEAP_SECONDS: Final = 0.05
DEAR_SECONDS: Final = 0.5
"""OWASP asks for less than a second a hash; half of it leaves a core for two logins at once."""

HEARD_WITHIN_SECONDS: Final = 2


class Both(NamedTuple):
    """What the checks look at. A server that is out of reach is None."""

    pool: Pool | None
    connection: Connection | None
    subscriptions: Subscriptions


_NOW = Statement(
    "doctor.now", int, "SELECT (extract(EPOCH FROM clock_timestamp()) * 1000000)::bigint AS microseconds"
)


async def _clocks(both: Both) -> Seen:
    """Each against this machine's: presence goes by Redis, times of messages by PostgreSQL, ids by us."""
    clocks = {}
    if both.pool is not None:
        clocks["PostgreSQL"] = await _ahead(_of_postgresql(both.pool))
    if both.connection is not None:
        clocks["Redis"] = await _ahead(_of_redis(both.connection))
    if not clocks:
        raise Unseen("no server is in reach")
    ahead = {"this machine": 0.0, **clocks}
    first, last = max(ahead, key=lambda name: ahead[name]), min(ahead, key=lambda name: ahead[name])
    apart = ahead[first] - ahead[last]
    remark = f"at most {apart * 1000:,.0f} ms apart"
    if apart <= MOST_APART_SECONDS:
        return Seen(remark)
    meaning = f"The clock of {first} is {apart:,.1f} s ahead of that of {last}: times in the chat will not fit."
    return Seen(remark, (warning(meaning, "Let all machines keep their time by NTP."),))


async def _ahead(clock: Callable[[], Awaitable[float]]) -> float:
    """By how many seconds a clock is ahead of ours; of the quickest of some answers, half of which it was away."""
    rounds = []
    for _ in range(ROUNDS):
        asked, since = time(), monotonic()
        said = await clock()
        took = monotonic() - since
        rounds.append((took, said - asked - took / 2))
    return min(rounds)[1]


def _of_postgresql(pool: Pool) -> Callable[[], Awaitable[float]]:
    async def now() -> float:
        [microseconds] = await pool.fetch_all(_NOW)
        return microseconds / 1_000_000

    return now


def _of_redis(connection: Connection) -> Callable[[], Awaitable[float]]:
    async def now() -> float:
        seconds, microseconds = as_bytes_list(await connection.execute("TIME"))
        return int(seconds) + int(microseconds) / 1_000_000

    return now


async def _passwords(_: Both) -> Seen:
    seconds = await asyncio.to_thread(_hash_seconds, USUAL_COST)
    remark = f"cost {USUAL_COST} takes {seconds * 1000:,.0f} ms"
    if seconds < CHEAP_SECONDS:
        meaning = "Hashes are cheap to make on this machine, so stolen ones are cheap to guess."
        return Seen(remark, (warning(meaning, f"Passwords(cost={USUAL_COST + 1}), or more, for hubbub.open."),))
    if seconds > DEAR_SECONDS:
        meaning = "Hashes are dear to make on this machine: a few logins at a time keep a core busy."
        return Seen(remark, (warning(meaning, f"Passwords(cost={USUAL_COST - 1}), or less, for hubbub.open."),))
    return Seen(remark)


def _hash_seconds(cost: int) -> float:
    """Seconds of a core, whatever else the machine does meanwhile."""
    from bcrypt import gensalt, hashpw  # noqa: PLC0415 - as in hubbub.passwords

    since = thread_time()
    hashpw(b"nobody's", gensalt(cost))
    return thread_time() - since


async def _delivery(both: Both) -> Seen:
    """On the channel of a room that does not exist, so that a login which is bound to hubbub's channels may."""
    if both.connection is None:
        raise Unseen("Redis is out of reach")
    channel = room_channel(new_id())
    try:
        async with asyncio.timeout(HEARD_WITHIN_SECONDS), await both.subscriptions.subscribe(channel) as heard:
            since = monotonic()
            await both.connection.execute("PUBLISH", channel, '{"from":"doctor","messages":[]}')
            await anext(heard)
    except TimeoutError:
        meaning = (
            f"What was published was not heard within {HEARD_WITHIN_SECONDS} s: followers wait for a heartbeat."
        )
        return Seen("nothing heard", (error(meaning, "See whether REDIS_HOST leads to more than one server."),))
    except (Unavailable, ReplyError) as refusal:
        if isinstance(refusal, Unavailable) and refusal.retryable:
            raise
        meaning = f"This login may not publish and subscribe ({refusal}): followers wait for a heartbeat."
        return Seen("refused", (error(meaning, "Give the ACL user the channels that docs/redis.md lists."),))
    return Seen(f"heard after {(monotonic() - since) * 1000:.1f} ms")


async def _follower(both: Both) -> Seen:
    """As somebody who is in no room: all that a follower asks of both servers, and nothing is written."""
    if both.pool is None or both.connection is None:
        raise Unseen("it needs both servers")
    if await revisions.current_revision(both.pool) != HEAD:
        raise Unseen(f"the database is not at {HEAD}")
    feed = Feed(
        both.pool,
        both.connection,
        both.subscriptions,
        heartbeat_seconds=1,
        at_most_behind=1_000,
        on_rewind=lambda _: None,
    )
    feed.start()
    since = monotonic()
    try:
        async with feed.follow(new_id(), after={}, rooms=None, buffer=1, typing=False, presence=False):
            return Seen(f"began after {(monotonic() - since) * 1000:.1f} ms")
    except HubbubError as refusal:
        if isinstance(refusal, Unavailable) and refusal.retryable:
            raise
        meaning = f"Nobody can follow: {refusal}."
        return Seen("refused", (error(meaning, "Give the role the rights of `hubbub migrate grant ROLE`."),))
    finally:
        await feed.close()


CHECKS: Final = (
    Check("together.clocks", "clocks", _clocks),
    Check("together.passwords", "passwords", _passwords),
    Check("together.delivery", "delivery", _delivery),
    Check("together.follower", "follower", _follower),
)


async def look(both: Both) -> Section:
    """Does not raise for servers that cannot be asked."""
    outcomes, lost = await examine(CHECKS, lambda check: check.look(both))
    return Section("together", "Together", None, lost, tuple(outcomes))

"""A server does not answer, or no connection is free. No public call outlasts its deadline and a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from faults.calls import (
    CHANGES,
    CHANGES_AFTER_OTHER_WORK,
    CHANGES_IN_TURN,
    TRANSACTIONS,
    Call,
    calls_in,
    world_in,
)
from faults.chat import Chat
from faults.figures import Figures, in_time
from faults.fragile import FragileServers, Which
from faults.relays import Blackhole
from hubbub import Conflict, Hub, HubbubError, NotAMember, NotFound, Options, Settings, Unavailable
from hubbub.instrumentation import Instrumentation, PoolUse
from hubbub.passwords import MIN_COST, Passwords
from hubbub.postgres import connect
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

T = TypeVar("T")

DEADLINE_SECONDS = 1.0
# A busy machine holds the process for a while. For longer than this, calls may not send their statements in time.
MAX_PAUSE_SECONDS = DEADLINE_SECONDS / 4
# With many connections each statement is sent. With few connections most calls wait for one.
ENOUGH, FEW = 90, 5

# These have no deadline of their own. An import of history ends after half a minute (docs/guarantees.md).
WITHOUT_DEADLINE = {"presence.watch", "typing.watch", "history.load"}

QUESTIONS_TO_REDIS = {"sessions.get_session", "sessions.list", "presence.devices", "typing.typing_users"}


Silence = AbstractAsyncContextManager[None]
Situation = Callable[[FragileServers, Settings], AbstractAsyncContextManager[tuple[Settings, Silence]]]


class Outcome(NamedTuple):
    """How a call ended."""

    name: str
    seconds: float
    error: HubbubError | None


class Measured(Instrumentation):
    """Reads the use of the pool of a hub."""

    def watch(self, pool: Callable[[], PoolUse]) -> None:
        self.use = pool


async def outcome_of(name: str, call: Callable[[], Awaitable[object]]) -> Outcome:
    clock = asyncio.get_running_loop().time
    began, error = clock(), None
    try:
        await call()
    except HubbubError as raised:
        error = raised
    return Outcome(name, clock() - began, error)


async def answered(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat the call until it succeeds. A server that is back is not found at once."""
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while True:
            try:
                return await call()
            except Unavailable:
                await asyncio.sleep(0.01)


class Caller:
    """Makes every public call of a hub."""

    def __init__(self, hub: Hub, measured: Measured, folder: Path) -> None:
        self.hub = hub
        self._measured = measured
        self._folder = folder
        self.longest_pause_seconds = 0.0

    async def calls(self) -> dict[str, Call]:
        """Every public call, in a new world."""
        return calls_in(await answered(lambda: world_in(self.hub)), self._folder)

    async def pool_is_whole(self) -> None:
        """Wait until no connection is in use or waited for, and all can be held at the same time."""
        use = self._measured.use
        await until(lambda: use().in_use == use().waiting == 0)

        async def all_are_usable() -> bool:
            async with AsyncExitStack() as stack:
                for _ in range(use().limit):
                    try:
                        await stack.enter_async_context(self.hub.transaction())
                    except Unavailable:
                        return False
            return True

        await until_it_answers(all_are_usable)
        assert use().open == use().limit

    async def outcomes_during(self, silence: Silence) -> list[Outcome]:
        """Make all calls at once, and then start another hub. Each error has to be a `HubbubError`.

        Meanwhile the longest pause is measured in which the event loop did not run.
        """
        calls = [item for item in (await self.calls()).items() if item[0] not in WITHOUT_DEADLINE]
        await self.pool_is_whole()
        another = Hub(self.hub.settings)
        async with silence:
            watching = asyncio.create_task(self._measure_pauses())
            outcomes = await asyncio.gather(*(outcome_of(name, call) for name, call in calls))
            watching.cancel()
            outcomes.append(await outcome_of("start", another.start))
            outcomes.append(await outcome_of("close", another.close))
        return outcomes

    async def _measure_pauses(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            await asyncio.sleep(0.01)
            self.longest_pause_seconds = max(self.longest_pause_seconds, clock() - began)

    async def all_are_answered(self) -> None:
        """Wait until every call is answered again, or refused for a row that another call has deleted."""
        for call in (await self.calls()).values():
            with suppress(NotFound, NotAMember, Conflict):
                await answered(call)


@asynccontextmanager
async def calling(settings: Settings, folder: Path, *, pool_size: int) -> AsyncIterator[Caller]:
    """A hub with short deadlines."""
    measured = Measured()
    short = Settings(
        postgres=replace(settings.postgres, deadline_seconds=DEADLINE_SECONDS, pool_size=pool_size),
        redis=replace(
            settings.redis, deadline_seconds=DEADLINE_SECONDS, connect_timeout_seconds=DEADLINE_SECONDS / 2
        ),
    )

    async def started() -> Hub:
        # A read mark of an author that is under way at the freeze would delay a call for the same membership.
        options, passwords = Options(mark_read_on_send=False), Passwords(cost=MIN_COST)
        return await Hub(short, options=options, instrumentation=measured, passwords=passwords).start()

    hub = await answered(started)
    try:
        yield Caller(hub, measured, folder)
    finally:
        await hub.close()


@asynccontextmanager
async def postgresql_frozen(
    fragile: FragileServers, settings: Settings
) -> AsyncIterator[tuple[Settings, Silence]]:
    yield settings, _frozen(fragile, "postgresql")


@asynccontextmanager
async def redis_frozen(fragile: FragileServers, settings: Settings) -> AsyncIterator[tuple[Settings, Silence]]:
    yield settings, _frozen(fragile, "valkey")


@asynccontextmanager
async def _frozen(fragile: FragileServers, which: Which) -> AsyncIterator[None]:
    with fragile.frozen(which):
        yield


@asynccontextmanager
async def postgresql_swallowed(
    fragile: FragileServers, settings: Settings
) -> AsyncIterator[tuple[Settings, Silence]]:
    async with Blackhole(settings.postgres.host, settings.postgres.port) as hole:
        yield replace(settings, postgres=replace(settings.postgres, port=hole.port)), hole.swallowing()


@asynccontextmanager
async def redis_swallowed(fragile: FragileServers, settings: Settings) -> AsyncIterator[tuple[Settings, Silence]]:
    async with Blackhole(settings.redis.host, settings.redis.port) as hole:
        yield replace(settings, redis=replace(settings.redis, port=hole.port)), hole.swallowing()


@asynccontextmanager
async def tables_locked(fragile: FragileServers, settings: Settings) -> AsyncIterator[tuple[Settings, Silence]]:
    """Each statement waits for a lock."""
    yield settings, _locked(settings)


@asynccontextmanager
async def _locked(settings: Settings) -> AsyncIterator[None]:
    connection = await connect(settings.postgres)
    async with connection.transaction():
        await connection.execute("LOCK TABLE users, rooms, messages, room_users, room_events")
        yield
    await connection.close()


@pytest.mark.parametrize(
    ("situation", "pool_size"),
    [
        pytest.param(
            situation,
            pool_size,
            id=situation.__name__,
            marks=[
                pytest.mark.guarantee("G11", words),
                *(
                    [pytest.mark.session("has more transactions at once than a pooler has sessions")]
                    * (pool_size == ENOUGH)
                ),
            ],
        )
        for situation, pool_size, words in [
            (postgresql_frozen, ENOUGH, "PostgreSQL frozen, deadline 1 s"),
            (postgresql_swallowed, ENOUGH, "the network to PostgreSQL swallows everything, deadline 1 s"),
            (redis_frozen, FEW, "Redis frozen, deadline 1 s"),
            (redis_swallowed, FEW, "the network to Redis swallows everything, deadline 1 s"),
            (tables_locked, 1, "a pool of one, held by slow statements, deadline 1 s"),
        ]
    ],
)
async def test_every_public_call_ends_by_its_deadline(
    chat: Chat, fragile: FragileServers, situation: Situation, pool_size: int, tmp_path: Path, figures: Figures
) -> None:
    longest_pause_seconds = inf
    while longest_pause_seconds > MAX_PAUSE_SECONDS:
        async with (
            situation(fragile, chat.settings) as (settings, silence),
            calling(settings, tmp_path, pool_size=pool_size) as caller,
        ):
            outcomes = await caller.outcomes_during(silence)
            await caller.pool_is_whole()
            await caller.all_are_answered()
        longest_pause_seconds = caller.longest_pause_seconds
    longest = max(outcomes, key=lambda outcome: outcome.seconds)
    unavailable = {outcome.name for outcome in outcomes if isinstance(outcome.error, Unavailable)}
    figures.found(
        f"the longest of {len(outcomes)} calls took {longest.seconds:.2f} s ({longest.name}), "
        f"{len(unavailable)} were refused, {pool_size} of {pool_size} connections of the pool free"
    )
    assert unavailable
    assert in_time(longest.seconds, DEADLINE_SECONDS + 1)
    if situation in {postgresql_frozen, postgresql_swallowed}:
        unknown = {o.name for o in outcomes if isinstance(o.error, Unavailable) and o.error.outcome_unknown}
        may_be = CHANGES | CHANGES_AFTER_OTHER_WORK | TRANSACTIONS | {"maintain"}
        assert CHANGES - CHANGES_IN_TURN <= unknown <= may_be
        assert len(unknown & CHANGES_IN_TURN) == 1

"""A server says nothing, or nobody gets a connection. No public call outlasts its deadline and a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from faults.chat import Chat
from faults.everything import CHANGES, CHANGES_AFTER_OTHER_WORK, TRANSACTIONS, Call, calls_in, world_in
from faults.figures import Figures
from faults.fragile import FragileServers, Which
from faults.relay import Blackhole
from faults.scale import SCALE
from hubbub import Conflict, Hub, HubbubError, NotAMember, NotFound, Settings, Unavailable
from hubbub.instrumentation import Instrumentation, PoolUse
from hubbub.passwords import LEAST_COST, Passwords
from hubbub.postgres import connect
from waiting import PATIENCE_SECONDS, until, until_it_answers

T = TypeVar("T")

DEADLINE_SECONDS = 1.0
# Each call has a connection then, so that its statement leaves; and with few most of them wait for one.
ENOUGH, FEW = 90, 5

# Nothing ends these but what they wait for, and a load of history is given half a minute: docs/guarantees.md.
WITHOUT_DEADLINE = {"presence.watch", "typing.watch", "history.load"}

QUESTIONS_TO_REDIS = {"sessions.get_session", "sessions.list_sessions", "presence.devices", "typing.who_types"}


Silence = AbstractAsyncContextManager[None]
Situation = Callable[[FragileServers, Settings], AbstractAsyncContextManager[tuple[Settings, Silence]]]


class Outcome(NamedTuple):
    """How a call ended."""

    name: str
    seconds: float
    error: HubbubError | None


class Measured(Instrumentation):
    """Asks the pool of a hub how it does."""

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
    """What it gives in the end: a busy machine may be late, and a server that is back is not found at once."""
    async with asyncio.timeout(PATIENCE_SECONDS):
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

    async def calls(self) -> dict[str, Call]:
        """In a world of their own."""
        return calls_in(await answered(lambda: world_in(self.hub)), self._folder)

    async def pool_is_whole(self) -> None:
        """Nobody uses or waits for a connection, and as many can be had at a time as there may be."""
        use = self._measured.use
        await until(lambda: use().in_use == use().waiting == 0)

        async def all_can_be_had() -> bool:
            async with AsyncExitStack() as stack:
                for _ in range(use().limit):
                    try:
                        await stack.enter_async_context(self.hub.transaction())
                    except Unavailable:
                        return False
            return True

        await until_it_answers(all_can_be_had)
        assert use().open == use().limit

    async def outcomes_during(self, silence: Silence) -> list[Outcome]:
        """Of all calls at once, and then of the start of another hub. Each error is one of hubbub's."""
        calls = [item for item in (await self.calls()).items() if item[0] not in WITHOUT_DEADLINE]
        await self.pool_is_whole()
        another = Hub(self.hub.settings)
        async with silence:
            outcomes = await asyncio.gather(*(outcome_of(name, call) for name, call in calls))
            outcomes.append(await outcome_of("start", another.start))
            outcomes.append(await outcome_of("close", another.close))
        return outcomes

    async def all_is_well(self) -> None:
        """Every call is answered again. What one of them deletes another one does not find."""
        for call in (await self.calls()).values():
            with suppress(NotFound, NotAMember, Conflict):
                await answered(call)


@asynccontextmanager
async def calling(settings: Settings, folder: Path, *, pool_size: int) -> AsyncIterator[Caller]:
    """A hub with short deadlines."""
    measured = Measured()
    impatient = Settings(
        postgres=replace(settings.postgres, deadline_seconds=DEADLINE_SECONDS, pool_size=pool_size),
        redis=replace(
            settings.redis, deadline_seconds=DEADLINE_SECONDS, connect_timeout_seconds=DEADLINE_SECONDS / 2
        ),
    )
    async with Hub(impatient, instrumentation=measured, passwords=Passwords(cost=LEAST_COST)) as hub:
        yield Caller(hub, measured, folder)


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
    """Each statement is a slow one then."""
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
async def test_no_public_call_waits_longer_than_its_deadline(
    chat: Chat, fragile: FragileServers, situation: Situation, pool_size: int, tmp_path: Path, figures: Figures
) -> None:
    async with (
        situation(fragile, chat.settings) as (settings, silence),
        calling(settings, tmp_path, pool_size=pool_size) as caller,
    ):
        outcomes = await caller.outcomes_during(silence)
        await caller.pool_is_whole()
        await caller.all_is_well()
    longest = max(outcomes, key=lambda outcome: outcome.seconds)
    unavailable = {outcome.name for outcome in outcomes if isinstance(outcome.error, Unavailable)}
    figures.found(
        f"the longest of {len(outcomes)} calls took {longest.seconds:.2f} s ({longest.name}), "
        f"{len(unavailable)} were refused, {pool_size} of {pool_size} places in the pool free"
    )
    assert unavailable
    assert longest.seconds <= (DEADLINE_SECONDS + 1) * SCALE.patience
    if situation in {postgresql_frozen, postgresql_swallowed}:
        unknown = {o.name for o in outcomes if isinstance(o.error, Unavailable) and o.error.outcome_unknown}
        assert CHANGES <= unknown <= CHANGES | CHANGES_AFTER_OTHER_WORK | TRANSACTIONS

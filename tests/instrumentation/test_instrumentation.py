from __future__ import annotations

import asyncio
import gc
import inspect
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

import hubbub
from hubbub import Conflict, Hub, Instrumentation, Options, PoolUse, Room, Settings, Unavailable, User
from hubbub.postgres import Pool, Statement
from instrumentation.recording import Recording
from redis_server import Server, binaries
from waiting import until

_SLEEP = Statement("test.sleep", str, "SELECT pg_sleep($1)::text AS slept")


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Server]:
    server = Server(binaries()[0], tmp_path)
    yield server.start()
    server.stop()


async def test_a_statement_is_told_by_its_name_with_its_time(hub: Hub, told: Recording, room: Room) -> None:
    told.queries.clear()
    await hub.messages.page(room.id)
    of_the_page = [query for query in told.queries if query.statement.startswith("messages.")]
    assert of_the_page
    assert all(query.outcome == "ok" and 0 < query.seconds < 60 for query in of_the_page)


async def test_what_breaks_a_rule_is_told_as_refused(hub: Hub, told: Recording, ada: User) -> None:
    told.queries.clear()
    with pytest.raises(Conflict):
        await hub.users.create("ada@example.org", "countess", "not a hash")
    assert [query.outcome for query in told.queries] == ["refused"]


async def test_what_is_cancelled_or_late_is_told_as_well(settings: Settings, told: Recording) -> None:
    pool = Pool(replace(settings.postgres, deadline_seconds=0.5), told)
    with pytest.raises(Unavailable):
        await pool.fetch_all(_SLEEP, 30.0)
    task = asyncio.create_task(pool.fetch_all(_SLEEP, 30.0))
    await until(lambda: pool.use.in_use == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await pool.close()
    assert told.outcomes("test.sleep") == ["failed", "cancelled"]


async def test_of_a_transaction_each_statement_is_told(hub: Hub, told: Recording, ada: User) -> None:
    told.queries.clear()
    async with hub.transaction() as tx:
        await tx.users.get(ada.id)
        async with tx.savepoint() as part:
            await part.users.get(ada.id)
    names = [query.statement for query in told.queries]
    assert names == ["BEGIN", "users.get", "SAVEPOINT", "users.get", "RELEASE", "COMMIT"]


async def test_waiting_for_a_connection_is_told_and_seen_meanwhile(settings: Settings, told: Recording) -> None:
    pool = Pool(replace(settings.postgres, pool_size=1), told)
    async with pool.transaction() as holder:
        waiting = asyncio.create_task(pool.fetch_all(_SLEEP, 0.0))
        await until(lambda: pool.use.waiting == 1)
        assert pool.use.in_use == pool.use.limit == 1
        await holder.fetch_all(_SLEEP, 0.0)
        assert told.waits == []
    await waiting
    assert len(told.waits) == 1
    assert pool.use.waiting == 0
    assert told.lines["postgresql"] == 1
    await pool.close()


async def test_a_started_hub_lets_its_pool_be_watched(hub: Hub, told: Recording) -> None:
    [pool] = told.pools
    assert (pool().limit, pool().in_use, pool().waiting) == (hub.settings.postgres.pool_size, 0, 0)
    await hub.close()
    assert told.pools == []
    assert pool().open == 0


async def test_a_closed_hub_is_not_kept_by_one_that_does_not_ask_when_it_closes(settings: Settings) -> None:
    class Old(Instrumentation):
        def __init__(self) -> None:
            self.pools: list[Callable[[], PoolUse]] = []

        def watch(self, pool: Callable[[], PoolUse]) -> None:
            self.pools.append(pool)

    old = Old()
    hub = Hub(settings, instrumentation=old)
    kept = weakref.ref(hub)
    async with hub:
        pass
    del hub
    gc.collect()
    assert kept() is None
    assert [pool().open for pool in old.pools] == [0]


async def test_events_and_announcements_are_counted(hub: Hub, told: Recording, room: Room, ada: User) -> None:
    async with hub.follow(ada.id) as feed:
        await hub.messages.send(room.id, ada.id, "hello")
        await anext(feed)
    assert told.delivered_events == 1
    await until(lambda: told.announced > 0)
    before = told.announced
    await hub.realtime.publish(f"room:{room.id}", "hello")
    assert told.announced == before + 1
    assert told.lost == 0


async def test_a_follower_that_does_not_read_is_told_to_be_behind_once(
    hub: Hub, told: Recording, room: Room, ada: User
) -> None:
    async with hub.follow(ada.id, buffer=2) as feed:
        for number in range(6):
            await hub.messages.send(room.id, ada.id, str(number))
        assert told.times_behind == 1
        events = [await anext(feed) for _ in range(6)]
    assert [event.seq for event in events if isinstance(event, hubbub.MessageSent)] == list(range(2, 8))
    assert told.delivered_events == 6


async def test_a_resync_is_told_with_its_reason(
    settings: Settings, told: Recording, hub: Hub, room: Room, ada: User
) -> None:
    first, *_ = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(5)]
    options = Options(follow_at_most_behind=2)
    async with (
        Hub(settings, options=options, instrumentation=told) as strict,
        strict.follow(ada.id, after={room.id: first.cursor}) as feed,
    ):
        assert isinstance(await anext(feed), hubbub.Resync)
    assert told.resyncs == ["too_far_behind"]


async def test_a_listener_that_does_not_read_loses_messages_and_that_is_told(hub: Hub, told: Recording) -> None:
    channel = f"room:{hubbub.new_id()}"
    async with await hub.realtime.listen(channel, buffer=1) as heard:
        for number in range(3):
            await hub.realtime.publish(channel, str(number))
        await until(lambda: heard.dropped == 2)
    assert told.drops == 2


async def test_a_lost_redis_is_told_by_its_new_connections(
    settings: Settings, told: Recording, own_redis: Server
) -> None:
    redis = replace(own_redis.settings, connect_timeout_seconds=1)
    async with Hub(replace(settings, redis=redis), instrumentation=told) as hub:
        assert (told.lines["redis-commands"], told.lines["redis-subscriptions"]) == (1, 1)
        own_redis.kill()
        with pytest.raises(Unavailable):
            await hub.realtime.publish("news", "nobody hears it")
        assert told.lost == 1
        own_redis.start()
        await until(lambda: told.lines["redis-commands"] == told.lines["redis-subscriptions"] == 2)


def test_without_an_override_nothing_happens() -> None:
    """So that one who has overridden some is not hurt by what is added later."""
    silent = Instrumentation()

    def unused() -> NoReturn:
        raise AssertionError

    arguments = {"pool": unused, "statement": "x", "seconds": 1.0, "outcome": "ok", "line": "postgresql"}
    arguments |= {"number": 1, "reason": "rewound"}
    for name, method in inspect.getmembers(silent, inspect.ismethod):
        parameters = [one for one in inspect.signature(method).parameters if one in arguments]
        assert method(*[arguments[parameter] for parameter in parameters]) is None, name

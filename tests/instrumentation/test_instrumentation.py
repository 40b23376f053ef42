from __future__ import annotations

import asyncio
import gc
import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import NoReturn

import pytest

import hubbub
from hubbub import Conflict, Gap, Hub, Instrumentation, Options, PoolUse, Room, Settings, Unavailable, User
from hubbub.instrumentation import LatencyHistogram, percentile
from hubbub.postgres import Pool, Statement
from instrumentation.recording import Recording
from redis_server import Server, binaries
from reports import reports
from waiting import until

_SLEEP = Statement("test.sleep", str, "SELECT pg_sleep($1)::text AS slept")
METHODS = frozenset(name for name, _ in inspect.getmembers(Instrumentation(), inspect.ismethod))


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Server]:
    server = Server(binaries()[0], tmp_path)
    yield server.start()
    server.stop()


async def test_statement_is_reported_with_its_name_and_duration(
    hub: Hub, recording: Recording, room: Room
) -> None:
    recording.queries.clear()
    await hub.messages.page(room.id)
    of_the_page = [query for query in recording.queries if query.statement.startswith("messages.")]
    assert of_the_page
    assert all(query.outcome == "ok" and 0 < query.seconds < 60 for query in of_the_page)


async def test_statement_that_violates_a_constraint_is_reported_as_refused(
    hub: Hub, recording: Recording, ada: User
) -> None:
    recording.queries.clear()
    with pytest.raises(Conflict):
        await hub.users.create("ada@example.org", "countess", "not a hash")
    assert [query.outcome for query in recording.queries] == ["refused"]


async def test_cancelled_and_late_statements_are_reported(settings: Settings, recording: Recording) -> None:
    pool = Pool(settings.postgres, recording)
    await pool.open()
    with pytest.raises(Unavailable):
        await pool.fetch_all(_SLEEP, 30.0, deadline=asyncio.get_running_loop().time() + 2)
    task = asyncio.create_task(pool.fetch_all(_SLEEP, 30.0))
    await until(lambda: pool.use.in_use == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await pool.close()
    assert recording.outcomes("test.sleep") == ["failed", "cancelled"]


async def test_each_statement_of_a_transaction_is_reported(hub: Hub, recording: Recording, ada: User) -> None:
    recording.queries.clear()
    async with hub.transaction() as tx:
        await tx.users.get(ada.id)
        async with tx.savepoint() as part:
            await part.users.get(ada.id)
    names = [query.statement for query in recording.queries]
    assert names == ["BEGIN", "users.get", "SAVEPOINT", "users.get", "RELEASE", "COMMIT"]


async def test_wait_for_a_connection_is_reported_and_visible_meanwhile(
    settings: Settings, recording: Recording
) -> None:
    pool = Pool(replace(settings.postgres, pool_size=1), recording)
    async with pool.transaction() as holder:
        waiting = asyncio.create_task(pool.fetch_all(_SLEEP, 0.0))
        await until(lambda: pool.use.waiting == 1)
        assert pool.use.in_use == pool.use.limit == 1
        await holder.fetch_all(_SLEEP, 0.0)
        assert recording.waits == []
    await waiting
    assert len(recording.waits) == 1
    assert pool.use.waiting == 0
    assert recording.lines["postgresql"] == 1
    await pool.close()


async def test_pool_of_a_started_hub_is_watched_until_it_closes(hub: Hub, recording: Recording) -> None:
    [pool] = recording.pools
    assert (pool().limit, pool().in_use, pool().waiting) == (hub.settings.postgres.pool_size, 0, 0)
    await hub.close()
    assert recording.pools == []
    assert pool().open == 0


async def test_instrumentation_without_unwatch_does_not_keep_a_closed_hub_alive(settings: Settings) -> None:
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


async def test_events_and_announcements_are_counted(hub: Hub, recording: Recording, room: Room, ada: User) -> None:
    async with hub.follow(ada.id) as feed:
        await hub.messages.send(room.id, ada.id, "hello")
        await anext(feed)
    assert recording.delivered_events == 1
    await until(lambda: recording.announced > 0)
    before = recording.announced
    await hub.realtime.publish("news", "hello")
    assert recording.announced == before + 1
    assert recording.lost == 0


async def test_slow_follower_is_reported_as_behind_once(
    hub: Hub, recording: Recording, room: Room, ada: User
) -> None:
    async with hub.follow(ada.id, buffer=2) as feed:
        for number in range(6):
            await hub.messages.send(room.id, ada.id, str(number))
        assert recording.times_behind == 1
        events = [await anext(feed) for _ in range(6)]
    assert [event.seq for event in events if isinstance(event, hubbub.MessageSent)] == list(range(2, 8))
    assert recording.delivered_events == 6


async def test_resync_is_reported_with_its_reason(
    settings: Settings, recording: Recording, hub: Hub, room: Room, ada: User
) -> None:
    first, *_ = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(5)]
    options = Options(follow_at_most_behind=2)
    async with (
        Hub(settings, options=options, instrumentation=recording) as strict,
        strict.follow(ada.id, after={room.id: first.cursor}) as feed,
    ):
        assert isinstance(await anext(feed), hubbub.Resync)
    assert recording.resyncs == ["too_far_behind"]


async def test_messages_dropped_by_a_slow_listener_are_reported(hub: Hub, recording: Recording) -> None:
    async with await hub.realtime.listen("news", buffer=1) as heard:
        for number in range(3):
            await hub.realtime.publish("news", str(number))
        await until(lambda: heard.dropped == 2)
    assert recording.drops == 2


async def test_reconnects_to_redis_are_reported(
    settings: Settings, recording: Recording, own_redis: Server
) -> None:
    redis = replace(own_redis.settings, connect_timeout_seconds=1)
    async with Hub(replace(settings, redis=redis), instrumentation=recording) as hub:
        await until(lambda: recording.lines["redis-commands"] == recording.lines["redis-subscriptions"] == 1)
        own_redis.kill()
        with pytest.raises(Unavailable):
            await hub.realtime.publish("news", "nobody hears it")
        assert recording.lost == 1
        own_redis.start()
        await until(lambda: recording.lines["redis-commands"] == recording.lines["redis-subscriptions"] == 2)


def broken() -> Instrumentation:
    """Each method raises an error with its name."""

    def raises(name: str, *_: object, **__: object) -> NoReturn:
        raise RuntimeError(name)

    instrumentation = Instrumentation()
    for name in METHODS:
        setattr(instrumentation, name, partial(raises, name))
    return instrumentation


async def test_instrumentation_that_raises_is_reported_and_changes_nothing(
    settings: Settings, hub: Hub, room: Room, ada: User, own_redis: Server
) -> None:
    first, *_ = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(5)]
    one_connection = replace(settings.postgres, pool_size=1)
    on_own_redis = replace(settings, postgres=one_connection, redis=own_redis.settings)
    options = Options(follow_at_most_behind=2)
    with reports() as reported:
        async with Hub(on_own_redis, options=options, instrumentation=broken()) as other:
            async with other.transaction():
                waiting = asyncio.create_task(other.users.get(ada.id))
                await until(lambda: other._pool.use.waiting == 1)
            assert (await waiting).id == ada.id
            async with other.follow(ada.id, after={room.id: first.cursor}, buffer=1) as feed:
                assert isinstance(await anext(feed), hubbub.Resync)
                sent = [await other.messages.send(room.id, ada.id, text) for text in "abc"]
                events = [await anext(feed) for _ in sent]
            assert [event.message.id for event in events if isinstance(event, hubbub.MessageSent)] == [
                message.id for message in sent
            ]
            async with await other.realtime.listen("news", buffer=1) as slow:
                for text in "abc":
                    await other.realtime.publish("news", text)
                await until(lambda: slow.dropped == 2)
                assert [await anext(slow) for _ in range(2)] == [Gap("overflow", 2), "c"]
                own_redis.kill()
                with pytest.raises(Unavailable):
                    await other.realtime.publish("news", "lost")
                own_redis.start()
                assert await anext(slow) == Gap("reconnected")
    raised = Counter(str(one["exception"]) for one in reported)
    assert raised.keys() == METHODS
    assert raised["connected"] >= 4  # including those of the subscriptions' connection


def test_methods_without_an_override_do_nothing() -> None:
    """So methods that are added later break no existing subclasses."""
    silent = Instrumentation()

    def unused() -> NoReturn:
        raise AssertionError

    arguments = {"pool": unused, "statement": "x", "seconds": 1.0, "outcome": "ok", "line": "postgresql"}
    arguments |= {"number": 1, "reason": "rewound"}
    for name, method in inspect.getmembers(silent, inspect.ismethod):
        parameters = [one for one in inspect.signature(method).parameters if one in arguments]
        assert method(*[arguments[parameter] for parameter in parameters]) is None, name


def test_percentile_is_at_most_a_tenth_above_the_duration_that_holds_the_share() -> None:
    durations = LatencyHistogram()
    assert percentile(durations.counts, 0.5) is None
    seconds = [0.0, 1e-6, *(n / 1_000 for n in range(1, 1_000)), 3_600]
    for one in seconds:
        durations.add(one)
    for share in (0.01, 0.5, 0.99, 1):
        exact = sorted(seconds)[ceil(share * len(seconds)) - 1]
        found = percentile(durations.counts, share)
        assert found is not None
        assert exact <= found * 1.01
        assert found <= max(exact, 1e-4) * 1.11

"""The feed of changes has every entry of every room at least once. Workers share it, and may be killed."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from commands import execute
from hubbub import (
    Hub,
    Invalid,
    LogEvent,
    MemberJoined,
    MessageDeleted,
    MessageEdited,
    MessageSent,
    NewMessage,
    Options,
    PostgresSettings,
    RedisSettings,
    Room,
    Settings,
    Unavailable,
    User,
    migrations,
)
from hubbub.postgres import connect
from hubbub.postgres.connection import Connection
from hubbub.redis import Connection as RedisConnection
from hubbub.redis import Part, ReplyOrError
from hubbub.services.changes import (
    ANNOUNCED_EVERY_SECONDS,
    ENTRIES_PER_READ,
    IDLE_ANNOUNCE_SECONDS,
    PART_LEASE_SECONDS,
    ChangeFeed,
    Changes,
    FeedPosition,
)
from instrumentation.recording import Recording
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers


class Oops(Exception):
    pass


@pytest.fixture
async def owner(postgres_settings: PostgresSettings) -> AsyncIterator[Connection]:
    connection = await connect(postgres_settings)
    yield connection
    await connection.close()


@pytest.fixture
async def fast(settings: Settings) -> AsyncIterator[Hub]:
    """A hub whose feeds look for new entries at short intervals."""
    async with Hub(settings, options=Options(follow_heartbeat_seconds=0.05)) as hub:
        yield hub


async def rooms_of(hub: Hub, ada: User, number: int) -> list[Room]:
    return [await hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(number)]


async def take(feed: ChangeFeed, number: int) -> list[LogEvent]:
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        return [await anext(feed) for _ in range(number)]


def content(event: LogEvent) -> str:
    return event.message.content if isinstance(event, MessageSent) else type(event).__name__


def key(event: LogEvent) -> tuple[UUID, int]:
    return event.room_id, event.seq


async def test_feed_has_every_entry_of_every_room_once(hub: Hub, ada: User, bob: User) -> None:
    one, two = await rooms_of(hub, ada, 2)
    sent = await hub.messages.send(one.id, ada.id, "first")
    await hub.room_users.add(two.id, bob.id)
    await hub.messages.edit(sent.id, "changed", by=ada.id)
    await hub.messages.delete((await hub.messages.send(two.id, ada.id, "gone")).id, by=ada.id)
    async with hub.changes.follow() as feed:
        events = await take(feed, 7)
    assert [type(event) for event in events if event.room_id == one.id] == [
        MemberJoined,
        MessageSent,
        MessageEdited,
    ]
    assert [key(event) for event in events if event.room_id == two.id] == [(two.id, seq) for seq in range(1, 5)]
    assert events[-1] == (await hub.messages.since(two.id, None)).items[-1]
    assert isinstance(events[-1], MessageDeleted)


@pytest.mark.parametrize("consumer", [None, "index"])
async def test_feed_is_entered_once(hub: Hub, consumer: str | None) -> None:
    feed = hub.changes.follow(consumer=consumer)
    async with feed:
        with pytest.raises(RuntimeError, match="entered once"):
            await feed.__aenter__()
    with pytest.raises(RuntimeError, match="entered once"):
        await feed.__aenter__()


async def test_feed_goes_on_from_a_position_and_from_the_end(hub: Hub, ada: User, room: Room) -> None:
    await hub.messages.send_many(room.id, ada.id, [NewMessage(str(n)) for n in range(5)])
    async with hub.changes.follow() as feed:
        assert [content(event) for event in await take(feed, 3)] == ["MemberJoined", "0", "1"]
        position = feed.position
    end = await hub.changes.end()
    await hub.messages.send(room.id, ada.id, "new")
    async with hub.changes.follow(after=position) as feed:
        assert [content(event) for event in await take(feed, 4)] == ["2", "3", "4", "new"]
    async with hub.changes.follow(after=end) as feed:
        assert [content(event) for event in await take(feed, 1)] == ["new"]


async def test_entry_waits_for_older_transactions_that_are_open_and_none_is_lost(fast: Hub, ada: User) -> None:
    one, two = await rooms_of(fast, ada, 2)
    async with fast.changes.follow(after=await fast.changes.end()) as feed:
        reading = asyncio.create_task(take(feed, 3))
        async with fast.transaction() as older:
            await older.messages.send(one.id, ada.id, "older, committed last")
            await fast.messages.send(two.id, ada.id, "newer, committed first")
            async with fast.transaction() as newest:
                await newest.messages.send(two.id, ada.id, "newest")
            await asyncio.sleep(0.3)
            assert not reading.done()
        contents = [content(event) for event in await reading]
    assert contents == ["older, committed last", "newer, committed first", "newest"]


async def test_older_transaction_that_is_rolled_back_holds_nothing_back(fast: Hub, ada: User) -> None:
    one, two = await rooms_of(fast, ada, 2)
    async with fast.changes.follow(after=await fast.changes.end()) as feed:
        with suppress(Oops):
            async with fast.transaction() as older:
                await older.messages.send(one.id, ada.id, "undone")
                await fast.messages.send(two.id, ada.id, "kept")
                raise Oops
        assert [content(event) for event in await take(feed, 1)] == ["kept"]


async def test_entries_of_a_room_keep_their_order_where_an_older_transaction_locks_it_later(
    fast: Hub, ada: User
) -> None:
    one, two = await rooms_of(fast, ada, 2)
    async with fast.changes.follow(after=await fast.changes.end()) as feed:
        async with fast.transaction() as older:
            await older.messages.send(one.id, ada.id, "begins")
            await fast.messages.send(two.id, ada.id, "first in its room")
            await older.messages.send(two.id, ada.id, "second in its room")
        events = await take(feed, 3)
    assert [event.seq for event in events if event.room_id == two.id] == [2, 3]


async def test_random_transactions_that_end_in_any_order_lose_nothing(fast: Hub, ada: User) -> None:
    chance = random.Random(7)
    rooms = await rooms_of(fast, ada, 8)
    sent: set[str] = set()

    async def write(number: int) -> None:
        with suppress(Oops, Unavailable):
            async with fast.transaction() as tx:
                await tx.messages.send(chance.choice(rooms).id, ada.id, str(number))
                await asyncio.sleep(chance.random() / 50)
                if chance.random() < 0.2:
                    raise Oops
            sent.add(str(number))

    async with fast.changes.follow(after=await fast.changes.end()) as feed:
        found: list[str] = []

        async def read() -> None:
            async for event in feed:
                found.append(content(event))  # noqa: PERF401 - another task reads it

        reading = asyncio.create_task(read())
        for first in range(0, 200, 20):
            await asyncio.gather(*(write(number) for number in range(first, first + 20)))
        await until(lambda: set(found) == sent)
        feed.close()
        await reading
    assert len(found) == len(sent)


async def test_large_transaction_comes_in_order(hub: Hub, ada: User, room: Room) -> None:
    await hub.messages.send_many(room.id, ada.id, [NewMessage(str(n)) for n in range(1_000)])
    async with hub.changes.follow() as feed:
        events = await take(feed, 1_001)
    assert [event.seq for event in events] == list(range(1, 1_002))


# Consumers


async def test_consumer_goes_on_where_it_was(hub: Hub, ada: User, room: Room) -> None:
    await hub.messages.send_many(room.id, ada.id, [NewMessage(str(n)) for n in range(5)])
    async with hub.changes.follow(consumer="search") as feed:
        assert [content(event) for event in await take(feed, 3)] == ["MemberJoined", "0", "1"]
    async with hub.changes.follow(consumer="search") as feed:  # the last entry was not done
        assert [content(event) for event in await take(feed, 2)] == ["1", "2"]
        with pytest.raises(Invalid, match="consumer: has its positions in PostgreSQL"):
            _ = feed.position
    async with hub.changes.follow(consumer="push", after=await hub.changes.end()) as feed:
        await hub.messages.send(room.id, ada.id, "new")
        assert [content(event) for event in await take(feed, 1)] == ["new"]
    await hub.changes.forget("search")
    async with hub.changes.follow(consumer="search") as feed:
        assert [content(event) for event in await take(feed, 1)] == ["MemberJoined"]


async def test_workers_share_the_entries_and_keep_the_order_of_each_room(
    settings: Settings, fast: Hub, ada: User
) -> None:
    rooms = await rooms_of(fast, ada, 40)
    at_work: set[tuple[UUID, int]] = set()
    done: list[tuple[str, LogEvent]] = []

    async def work(name: str, feed: ChangeFeed) -> None:
        async for event in feed:
            assert key(event) not in at_work
            at_work.add(key(event))
            await asyncio.sleep(0.001)
            at_work.remove(key(event))
            done.append((name, event))

    async with AsyncExitStack() as stack:
        hubs = [fast, await stack.enter_async_context(Hub(settings))]
        feeds = [await stack.enter_async_context(hub.changes.follow(consumer="push")) for hub in hubs * 2]
        workers = [asyncio.create_task(work(str(n), feed)) for n, feed in enumerate(feeds)]
        for n in range(20):
            await asyncio.gather(*(fast.messages.send(room.id, ada.id, str(n)) for room in rooms))
        await until(lambda: len(done) == 21 * len(rooms) or any(worker.done() for worker in workers))
        for feed in feeds:
            feed.close()
        await asyncio.gather(*workers)
    assert Counter(key(event) for _, event in done).most_common(1)[0][1] == 1
    assert len({name for name, _ in done}) == len(feeds)
    by_room: dict[UUID, list[int]] = defaultdict(list)
    for _, event in done:
        by_room[event.room_id].append(event.seq)
    assert all(seqs == list(range(1, 22)) for seqs in by_room.values())


WORKER = """
import asyncio, sys, hubbub

async def main():
    async with hubbub.open() as hub, hub.changes.follow(consumer="push", lease_seconds=float(sys.argv[1])) as feed:
        async for event in feed:
            print(event.room_id, event.seq, flush=True)
            if event.seq == 150:
                await asyncio.Event().wait()  # until it is killed

asyncio.run(main())
"""


async def test_entries_of_a_killed_worker_come_again_and_none_is_lost(
    settings: Settings, fast: Hub, ada: User, room: Room
) -> None:
    await fast.messages.send_many(room.id, ada.id, [NewMessage(str(n)) for n in range(350)])
    command = (sys.executable, "-c", WORKER, "1")
    worker = await asyncio.create_subprocess_exec(
        *command, env={**settings.to_env(), "PATH": ""}, stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    lines = [await worker.stdout.readline() for _ in range(150)]
    worker.send_signal(signal.SIGKILL)
    rest, _ = await worker.communicate()
    printed = [int(line.split()[1]) for line in [*lines, *rest.splitlines()]]
    async with fast.changes.follow(consumer="push") as feed:
        first = (await take(feed, 1))[0].seq
        others = [event.seq for event in await take(feed, 351 - first)]
    assert first <= printed[-1] + 1
    assert printed[-1] - first < 2 * ENTRIES_PER_READ
    assert sorted({*printed, first, *others}) == list(range(1, 352))


async def test_handler_may_take_longer_than_the_lease(fast: Hub, ada: User, room: Room) -> None:
    async with (
        fast.changes.follow(consumer="push", lease_seconds=6) as slow,
        fast.changes.follow(consumer="push", lease_seconds=6) as other,
    ):
        await take(slow, 1)
        first_lease_ends = slow._lease_ends
        waiting = asyncio.create_task(take(other, 1))
        # `other` asks several times after the first lease has ended.
        await until(lambda: asyncio.get_running_loop().time() > first_lease_ends + 2)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await fast.messages.send(room.id, ada.id, "next")
        assert [content(event) for event in await take(slow, 1)] == ["next"]


async def test_worker_that_has_lost_its_lease_hands_out_nothing_of_it(
    fast: Hub, ada: User, room: Room, owner: Connection
) -> None:
    await fast.messages.send_many(room.id, ada.id, [NewMessage(str(n)) for n in range(10)])
    async with fast.changes.follow(consumer="push", lease_seconds=4) as frozen:
        await take(frozen, 2)  # before a renewal, after 1 s, would store that the first is done
        await owner.execute("UPDATE hubbub_consumers SET leased_until = now(), worker = NULL")
        async with fast.changes.follow(consumer="push") as other:
            assert [event.seq for event in await take(other, 11)] == list(range(1, 12))

            async def has_noticed() -> bool:
                return frozen._lease_ends < asyncio.get_running_loop().time()

            await until_it_answers(has_noticed)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await anext(frozen)


SET_BACK = "UPDATE hubbub_consumers SET leased_until = leased_until + interval '1 hour'"
"""Afterwards the leases are as they would be after the clock was set back by an hour."""


async def test_part_that_is_free_is_taken_at_once_after_the_clock_was_set_back(
    fast: Hub, ada: User, room: Room, owner: Connection
) -> None:
    """Also while another part has new entries all the time."""
    quiet = await fast.rooms.create("in another part", created_by=ada.id, id=UUID(int=room.id.int ^ 1))
    async with fast.changes.follow(consumer="push") as feed:
        assert {event.room_id for event in await take(feed, 2)} == {room.id, quiet.id}
    await owner.execute(SET_BACK)
    async with fast.changes.follow(consumer="push") as feed:
        assert [content(event) for event in await take(feed, 1)] == ["MemberJoined"]  # again, as it was the last
        contents: list[str] = []
        await fast.messages.send(quiet.id, ada.id, "has waited")
        while "has waited" not in contents and len(contents) < 20:
            await fast.messages.send(room.id, ada.id, "busy")
            contents += [content(event) for event in await take(feed, 1)]
        assert "has waited" in contents


async def test_lease_is_shortened_to_its_length_after_the_clock_was_set_back(
    fast: Hub, ada: User, room: Room, owner: Connection
) -> None:
    """The lease of a killed worker then ends soon. A living worker renews its lease."""

    async def is_shortened() -> bool:
        return bool(await owner.fetchval(f"SELECT {ends_soon} FROM hubbub_consumers WHERE worker IS NOT NULL"))

    ends_soon = f"max(leased_until) < now() + interval '{PART_LEASE_SECONDS + 1} seconds'"
    async with (
        fast.changes.follow(consumer="push", lease_seconds=3_600) as busy,
        fast.changes.follow(consumer="push") as other,
    ):
        await take(busy, 1)
        await owner.execute(SET_BACK)
        waiting = asyncio.create_task(take(other, 1))
        await until_it_answers(is_shortened)
        ended_at = busy._lease_ends
        await until(lambda: busy._lease_ends > ended_at)  # it has renewed the lease, which is still its own
        assert not waiting.done()
        await owner.execute("UPDATE hubbub_consumers SET worker = gen_random_uuid() WHERE worker IS NOT NULL")
        await until_it_answers(is_shortened)
        await owner.execute("UPDATE hubbub_consumers SET leased_until = now()")
        assert [content(event) for event in await waiting] == ["MemberJoined"]


async def test_cancelled_worker_gives_its_lease_back(fast: Hub, ada: User, room: Room) -> None:
    taken = asyncio.Event()

    async def work() -> None:
        async with fast.changes.follow(consumer="push", lease_seconds=3_600) as feed:
            async for _ in feed:
                taken.set()
                await asyncio.Event().wait()

    worker = asyncio.create_task(work())
    await taken.wait()
    worker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker
    async with fast.changes.follow(consumer="push") as feed:
        assert [content(event) for event in await take(feed, 1)] == ["MemberJoined"]


# Waking and outages


@pytest.mark.parametrize("consumer", [None, "push"])
async def test_commit_of_another_process_wakes_the_feed_through_redis(
    settings: Settings, hub: Hub, ada: User, room: Room, consumer: str | None
) -> None:
    end = await hub.changes.end()
    async with (
        Hub(settings, options=Options(follow_heartbeat_seconds=3_600)) as other,
        other.changes.follow(consumer=consumer, after=end) as feed,
    ):
        waiting = asyncio.create_task(take(feed, 1))

        async def is_read() -> bool:
            await hub.messages.send(room.id, ada.id, "wake up")
            return waiting.done()

        await until_it_answers(is_read)
        assert [content(event) for event in await waiting] == ["wake up"]


class Publisher(RedisConnection):
    """Gives the same answer to each PUBLISH, without a server."""

    def __init__(self, receivers: int, *, is_cluster: bool) -> None:
        super().__init__(RedisSettings(host="none"))
        self.is_cluster = is_cluster
        self._receivers = receivers

    def execute_many(
        self, commands: Iterable[Sequence[Part]], *, deadline_seconds: float | None = None, writes: bool = True
    ) -> asyncio.Future[list[ReplyOrError]]:
        published = asyncio.get_running_loop().create_future()
        published.set_result([self._receivers for _ in commands])
        return published


@pytest.mark.parametrize(
    ("receivers", "is_cluster", "is_postponed"), [(0, False, True), (1, False, False), (0, True, False)]
)
async def test_announcements_are_rare_only_where_no_process_subscribes(
    hub: Hub, receivers: int, is_cluster: bool, is_postponed: bool
) -> None:
    """A node of a cluster does not count the subscribers at other nodes."""
    connection = Publisher(receivers, is_cluster=is_cluster)
    changes = Changes(hub.changes._executor, connection, hub.changes._subscriptions, heartbeat_seconds=3_600)
    now = asyncio.get_running_loop().time()
    changes._publish(now)
    await asyncio.sleep(0)
    assert (changes._next_announcement >= now + IDLE_ANNOUNCE_SECONDS) is is_postponed
    assert (changes._next_announcement == now + ANNOUNCED_EVERY_SECONDS) is not is_postponed


async def test_feed_without_redis_reads_at_each_heartbeat(settings: Settings, ada: User, room: Room) -> None:
    without = replace(settings, redis=replace(settings.redis, port=1))
    options = Options(follow_heartbeat_seconds=0.05)
    async with Hub(without, options=options) as reader, Hub(without) as writer:
        end = await reader.changes.end()
        await writer.messages.send(room.id, ada.id, "by itself")
        async with reader.changes.follow(after=end) as feed:
            assert [content(event) for event in await take(feed, 1)] == ["by itself"]
            waiting = asyncio.create_task(take(feed, 1))
            await writer.messages.send(room.id, ada.id, "and again")
            assert [content(event) for event in await waiting] == ["and again"]


@pytest.mark.parametrize("consumer", [None, "push"])
async def test_feed_goes_on_after_its_connections_were_ended(
    fast: Hub,
    ada: User,
    room: Room,
    administrator: PostgresSettings,
    postgres_settings: PostgresSettings,
    consumer: str | None,
) -> None:
    terminate = f"""
        SELECT pg_terminate_backend(pid)
        FROM pg_stat_activity
        WHERE datname = '{postgres_settings.database}'
    """
    async with fast.changes.follow(consumer=consumer) as feed:
        assert len(await take(feed, 1)) == 1
        for n in range(5):
            await fast.messages.send(room.id, ada.id, str(n))
            await execute(administrator, terminate)
            assert [content(event) for event in await take(feed, 1)] == [str(n)]


@pytest.mark.parametrize("consumer", [None, "push"])
async def test_idle_feed_runs_one_statement_per_heartbeat(
    settings: Settings, ada: User, room: Room, consumer: str | None
) -> None:
    recording = Recording()
    options = Options(follow_heartbeat_seconds=0.4)
    async with (
        Hub(settings, options=options, instrumentation=recording) as hub,
        hub.changes.follow(consumer=consumer) as feed,
    ):
        await take(feed, 1)
        waiting = asyncio.create_task(take(feed, 1))
        await asyncio.sleep(2)  # until each part of a new consumer was checked once
        recording.queries.clear()

        def found() -> int:
            return sum(query.statement.startswith("changes.") for query in recording.queries)

        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.sleep(2)
        await until(lambda: found() > 1)
        seconds, statements = loop.time() - began, found()
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
    assert statements <= seconds / 0.2 + 1


async def test_closed_hub_ends_the_iteration(settings: Settings, ada: User, room: Room) -> None:
    hub = await Hub(settings).start()
    async with hub.changes.follow(consumer="push") as feed:
        await take(feed, 1)
        closing = asyncio.create_task(hub.close())
        with pytest.raises(StopAsyncIteration):
            await anext(feed)
        await closing


# Another server


async def test_feed_goes_back_a_minute_after_a_failover(
    fast: Hub, ada: User, room: Room, owner: Connection
) -> None:
    """The position is from a server whose transaction ids were higher than those of the server that took over."""
    for content_ in ("long ago", "recent"):
        await fast.messages.send(room.id, ada.id, content_)
    await owner.execute(
        "UPDATE messages SET created_at = created_at - interval '1 hour' WHERE content = 'long ago'"
    )
    await owner.execute("UPDATE room_events SET created_at = created_at - interval '1 hour'")
    position = FeedPosition.decode(await fast.changes.end())
    ahead = position._replace(transaction_id=position.transaction_id + 1_000_000, server=b"formerly")
    await fast.messages.send(room.id, ada.id, "since then")
    async with fast.changes.follow(after=ahead.encode()) as feed:
        assert [content(event) for event in await take(feed, 2)] == ["recent", "since then"]
        here = feed.position
    async with fast.changes.follow(after=here) as feed:
        await fast.messages.send(room.id, ada.id, "next")
        assert [content(event) for event in await take(feed, 1)] == ["next"]
    async with fast.changes.follow(consumer="push", after=ahead.encode()) as feed:
        assert [content(event) for event in await take(feed, 3)] == ["recent", "since then", "next"]


async def test_quiet_feed_after_a_failover_goes_on_from_there(fast: Hub, ada: User, room: Room) -> None:
    position = FeedPosition.decode(await fast.changes.end())
    later = position._replace(server=b"formerly", read_at=position.read_at + timedelta(hours=1))
    ahead = later._replace(transaction_id=2**40)
    async with fast.changes.follow(after=ahead.encode()) as feed:
        waiting = asyncio.create_task(take(feed, 1))

        async def is_here() -> bool:
            return feed._position.server == position.server

        await until_it_answers(is_here)
        await fast.messages.send(room.id, ada.id, "new")
        assert [content(event) for event in await waiting] == ["new"]


@pytest.mark.parametrize("consumer", [None, "push"])
async def test_entries_restored_from_another_cluster_are_reported(
    fast: Hub, ada: User, room: Room, owner: Connection, consumer: str | None
) -> None:
    await fast.messages.send(room.id, ada.id, "restored")
    await owner.execute("UPDATE messages SET transaction_id = transaction_id + 1000000")
    async with fast.changes.follow(consumer=consumer) as feed:
        assert [content(event) for event in await take(feed, 1)] == ["MemberJoined"]
        with pytest.raises(Unavailable, match="run `hubbub migrate restored`") as raised:
            await take(feed, 1)
    assert not raised.value.retryable


async def test_feed_goes_on_after_a_restore_into_another_cluster(
    fast: Hub, ada: User, room: Room, owner: Connection, postgres_settings: PostgresSettings
) -> None:
    async with fast.changes.follow(consumer="push") as feed:
        await take(feed, 1)
    assert not await migrations.restored(postgres_settings)
    await fast.messages.send(room.id, ada.id, "not read before the dump")
    for table in ("messages", "room_events", "hubbub_consumers"):
        await owner.execute(f"UPDATE {table} SET transaction_id = transaction_id + 1000000")
    await owner.execute("UPDATE hubbub_consumers SET server = 'formerly'")
    assert await migrations.restored(postgres_settings)
    assert not await migrations.restored(postgres_settings)
    await fast.messages.send(room.id, ada.id, "new")
    await fast.room_users.set_role(room.id, ada.id, "admin")
    async with fast.changes.follow(consumer="push") as feed:
        found = [content(event) for event in await take(feed, 3)]
        assert found == ["MemberJoined", "not read before the dump", "new"]
        position = await fast.changes.end()
    await fast.messages.send(room.id, ada.id, "newer")
    async with fast.changes.follow(after=position) as feed:
        assert [content(event) for event in await take(feed, 1)] == ["newer"]


# Input, and entries that are gone


@pytest.mark.parametrize("after", ["", "x", "A" * 68, "\ud800" * 68, b"x", 5])
async def test_forged_position_is_refused(hub: Hub, after: object) -> None:
    with pytest.raises(Invalid, match="after: is not a position of this feed"):
        hub.changes.follow(after=after)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "\ud800", "a\0", 5])
async def test_name_of_a_consumer_is_checked(hub: Hub, name: object) -> None:
    with pytest.raises(Invalid, match="consumer: must"):
        hub.changes.follow(consumer=name)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="consumer: must"):
        await hub.changes.forget(name)  # type: ignore[arg-type]


async def test_entries_of_deleted_rooms_and_messages_are_passed_over(
    hub: Hub, ada: User, owner: Connection
) -> None:
    one, two = await rooms_of(hub, ada, 2)
    sent = await hub.messages.send(one.id, ada.id, "purged")
    await hub.messages.edit(sent.id, "purged as well", by=ada.id)
    await hub.messages.send(two.id, ada.id, "hidden")
    await hub.messages.send(one.id, ada.id, "last")
    await owner.execute("DELETE FROM messages WHERE id = $1", sent.id)
    await owner.execute("INSERT INTO hubbub_deletions (id, is_room) VALUES ($1, true)", two.id)
    async with hub.changes.follow() as feed:
        events = await take(feed, 2)
    assert [content(event) for event in events] == ["MemberJoined", "last"]

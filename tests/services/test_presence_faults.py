from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from faults.figures import Figures, in_time
from hubbub import Settings
from hubbub.errors import Unavailable
from hubbub.events import PresenceChanged
from hubbub.redis import Connection, Gap, Subscriptions
from hubbub.redis.expiring_sets import bucket_of
from hubbub.services.presence import Presence
from hubbub.services.presence.leases import LEASES_PER_SCRIPT, Lease, Leases, online_key
from hubbub.settings import RedisSettings
from redis_server import PASSWORD, Server
from services import lease_holder
from services.presence_events import PresenceListener, Table, opened, together_online
from waiting import until, until_it_answers

HEARTBEAT_SECONDS = 1.0


def with_short_deadlines(server: Server) -> RedisSettings:
    """Settings for tests that wait until a missing server is noticed."""
    return replace(server.settings, connect_timeout_seconds=1, deadline_seconds=5)


@asynccontextmanager
async def connected(settings: RedisSettings) -> AsyncIterator[tuple[Connection, Subscriptions]]:
    connection, subscriptions = Connection(settings), Subscriptions(settings)
    await connection.start()
    await subscriptions.start()
    try:
        yield connection, subscriptions
    finally:
        await subscriptions.close()
        await connection.close()


@asynccontextmanager
async def holder(server: Server, users: list[UUID]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that holds a lease for each of the users."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        lease_holder.__file__,
        str(server.port),
        PASSWORD,
        str(HEARTBEAT_SECONDS),
        *[str(user_id) for user_id in users],
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"held\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def state_of(presence: Presence, user_id: UUID) -> bool | None:
    return (await presence.is_online([user_id]))[user_id]


def has_state(presence: Presence, user_id: UUID, state: bool | None) -> Callable[[], Awaitable[bool]]:
    async def answer() -> bool:
        return await state_of(presence, user_id) is state

    return answer


@pytest.mark.guarantee("G7", "kill -9 of a process through which fifty are online")
async def test_users_of_a_killed_process_go_offline_once(own_server: Server, figures: Figures) -> None:
    """They go offline within two heartbeats and a second, on an otherwise idle machine."""
    users = [uuid4() for _ in range(50)]
    kept = uuid4()
    async with (
        connected(own_server.settings) as (connection, subscriptions),
        opened(connection, subscriptions) as one,
        opened(connection, subscriptions) as other,
        PresenceListener(connection, subscriptions).listening() as listener,
        one.online(kept),
    ):
        async with holder(own_server, [*users, kept]) as process:
            clock = asyncio.get_running_loop().time
            process.send_signal(signal.SIGKILL)
            killed_at = clock()
            changes = await listener.until_offline(set(users))
            seconds = clock() - killed_at
        figures.found(f"{len(users)} offline after {seconds:.1f} s, with heartbeats of {HEARTBEAT_SECONDS:g} s")
        assert in_time(seconds, 2 * HEARTBEAT_SECONDS + 1)
        changes += await listener.until_now()
        for user_id in users:
            assert [change.is_online for change in changes if change.user_id == user_id] == [True, False]
        assert [change.is_online for change in changes if change.user_id == kept] == [True]
        assert await state_of(other, kept) is True


async def test_users_of_a_frozen_process_are_online_again_when_it_continues(own_server: Server) -> None:
    ada = uuid4()
    async with (
        connected(own_server.settings) as (connection, subscriptions),
        opened(connection, subscriptions),
        PresenceListener(connection, subscriptions).listening() as listener,
        holder(own_server, [ada]) as process,
    ):
        assert await listener.next() == PresenceChanged(ada, is_online=True)
        process.send_signal(signal.SIGSTOP)
        assert await listener.next() == PresenceChanged(ada, is_online=False)
        process.send_signal(signal.SIGCONT)
        assert await listener.next() == PresenceChanged(ada, is_online=True)


async def test_first_process_after_all_were_killed_publishes_the_offline_users(own_server: Server) -> None:
    ada, table = uuid4(), Table()
    async with connected(own_server.settings) as (connection, subscriptions):
        async with holder(own_server, [ada]) as process:
            process.send_signal(signal.SIGKILL)
        async with (
            PresenceListener(connection, subscriptions).listening() as listener,
            opened(connection, subscriptions, table.write),
        ):
            assert await listener.next() == PresenceChanged(ada, is_online=False)
            await until(lambda: table.users == {ada: False})


async def test_leases_are_restored_in_a_redis_that_lost_its_data(own_server: Server) -> None:
    """Online events are repeated, and there is no offline event."""
    users = [uuid4() for _ in range(500)]
    async with (
        connected(own_server.settings) as (connection, subscriptions),
        opened(connection, subscriptions) as presence,
        PresenceListener(connection, subscriptions).listening() as listener,
        together_online(presence, users),
    ):
        assert len(await listener.until_now()) == len(users)
        own_server.kill()
        own_server.start()

        async def all_are_back() -> bool:
            return await presence.is_online(users) == dict.fromkeys(users, True)

        await until_it_answers(all_are_back)
        assert all(change.is_online for change in await listener.until_now())
        assert len(await presence.devices(users[0])) == 1


async def test_presence_is_unknown_without_redis_and_restored_with_it(own_server: Server) -> None:
    ada, bob, table = uuid4(), uuid4(), Table()
    async with (
        connected(with_short_deadlines(own_server)) as (connection, subscriptions),
        opened(connection, subscriptions, table.write) as presence,
    ):
        async with presence.online(ada):
            own_server.kill()
            await until(lambda: not connection.connected)
            async with presence.online(bob):
                assert await presence.is_online([ada, bob]) == {ada: None, bob: None}
                with pytest.raises(Unavailable):
                    await presence.devices(ada)
                own_server.start()
                await until_it_answers(has_state(presence, bob, True))
                await until_it_answers(has_state(presence, ada, True))
        await until_it_answers(has_state(presence, bob, False))
        await until(lambda: table.users == {ada: False, bob: False})


async def test_user_who_leaves_while_redis_is_frozen_is_offline_when_it_continues(own_server: Server) -> None:
    ada, bob = uuid4(), uuid4()
    async with (
        connected(own_server.settings) as (connection, subscriptions),
        opened(connection, subscriptions) as presence,
        PresenceListener(connection, subscriptions).listening() as listener,
        presence.online(bob),
    ):
        leave = asyncio.Event()

        async def visit() -> None:
            async with presence.online(ada):
                await leave.wait()

        visiting = asyncio.create_task(visit())
        await until_it_answers(has_state(presence, ada, True))
        own_server.freeze()
        leave.set()
        asking = asyncio.create_task(presence.is_online([ada]))
        await until(lambda: connection.waiting > 1)
        own_server.thaw()
        await asking
        await visiting
        await until_it_answers(has_state(presence, ada, False))
        assert await state_of(presence, bob) is True
        assert await listener.until_now() == [
            PresenceChanged(bob, is_online=True),
            PresenceChanged(ada, is_online=True),
            PresenceChanged(ada, is_online=False),
        ]


async def test_outage_longer_than_a_lease_puts_no_user_offline(own_server: Server) -> None:
    """A frozen server keeps its data, and its clock goes on. When it continues, every lease has ended."""
    users = [uuid4() for _ in range(300)]
    settings = own_server.settings
    async with (
        connected(settings) as (connection, subscriptions),
        connected(settings) as (connection_2, subscriptions_2),
        opened(connection, subscriptions, heartbeat_seconds=1) as one,
        opened(connection_2, subscriptions_2, heartbeat_seconds=1) as other,
        AsyncExitStack() as stack,
        PresenceListener(connection, subscriptions).listening() as listener,
    ):
        for place, user_id in enumerate(users):
            await stack.enter_async_context((one, other)[place % 2].online(user_id))
        assert len(await listener.until_now()) == len(users)
        frozen_at = await _due(connection, users)
        own_server.freeze()
        await asyncio.sleep(3)  # the outage is longer than a lease of two heartbeats
        own_server.thaw()

        async def all_are_renewed() -> bool:
            return min((await _due(connection, users)).values()) > max(frozen_at.values()) + 3_000

        await until_it_answers(all_are_renewed)
        assert await listener.until_now() == []


async def _due(connection: Connection, users: list[UUID]) -> dict[UUID, float]:
    scores = await connection.execute_many(
        [("ZSCORE", online_key(bucket_of(user_id)), str(user_id)) for user_id in users]
    )
    return {user: score for user, score in zip(users, scores, strict=True) if isinstance(score, float)}


async def test_watch_continues_after_each_reconnect(connection: Connection, subscriptions: Subscriptions) -> None:
    async with opened(connection, subscriptions) as presence, aclosing(presence.watch()) as changes:
        assert isinstance(await anext(changes), Gap)
        for _ in range(10):
            assert await connection.execute("CLIENT", "KILL", "TYPE", "pubsub") == 1
            assert await anext(changes) == Gap("reconnected")
            ada = uuid4()
            async with presence.online(ada):
                assert await anext(changes) == PresenceChanged(ada, is_online=True)
            assert await anext(changes) == PresenceChanged(ada, is_online=False)


async def test_watch_can_begin_while_redis_is_down(own_server: Server) -> None:
    own_server.kill()
    async with (
        connected(own_server.settings) as (connection, subscriptions),
        opened(connection, subscriptions) as presence,
        aclosing(presence.watch()) as changes,
        presence.online(uuid4()),
    ):
        own_server.start()
        assert isinstance(await anext(changes), Gap)


async def test_no_transition_is_lost_when_commands_are_cut_off(
    servers: Settings, connection: Connection, subscriptions: Subscriptions
) -> None:
    """A script whose reply was lost may have run, and is sent again: still one event per transition."""
    users, table, ends = [uuid4() for _ in range(100)], Table(), asyncio.Event()

    async def cut() -> None:
        while not ends.is_set():
            await connection.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.05)  # the rate of the cuts

    async def come_and_go(presence: Presence, user_id: UUID) -> None:
        for _ in range(5):
            async with presence.online(user_id):
                await asyncio.sleep(0.05)

    async with (
        connected(servers.redis) as (cut_off, heard_by),
        opened(cut_off, heard_by, table.write, grace_seconds=0.05) as presence,
        PresenceListener(connection, subscriptions).listening() as listener,
    ):
        cutting = asyncio.create_task(cut())
        await asyncio.gather(*[come_and_go(presence, user_id) for user_id in users])
        ends.set()
        await cutting

        async def no_user_is_online() -> bool:
            return set((await presence.is_online(users)).values()) == {False}

        await until_it_answers(no_user_is_online)
        changes = await listener.until_now()
        await until(lambda: table.users == dict.fromkeys(users, False))
    assert changes  # not for all users, because a visit during an outage is not published
    for user_id in users:
        states = [change.is_online for change in changes if change.user_id == user_id]
        assert states == [True, False] * (len(states) // 2)


async def test_key_of_a_wrong_type_affects_only_its_bucket(
    connection: Connection, subscriptions: Subscriptions, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt, fine, gone = UUID(int=1), UUID(int=2), UUID(int=3)
    table = Table()
    await connection.execute("SET", online_key(bucket_of(spoilt)), "mine", "EX", 60)
    async with (
        opened(connection, subscriptions, table.write, heartbeat_seconds=1) as presence,
        presence.online(spoilt),
        presence.online(fine),
    ):
        assert await presence.is_online([spoilt, fine]) == {spoilt: None, fine: True}
        async with presence.online(gone):
            pass
        await until_it_answers(has_state(presence, gone, False))
        before = (await _due(connection, [fine]))[fine]

        async def fine_is_renewed() -> bool:
            return (await _due(connection, [fine]))[fine] > before + 3_000

        await until_it_answers(fine_is_renewed)
        await connection.execute("DEL", online_key(bucket_of(spoilt)))
        await until_it_answers(has_state(presence, spoilt, True))
        await until(lambda: table.users == {spoilt: True, fine: True, gone: False})
    assert "refused a script" in caplog.text


async def test_frozen_redis_delays_presence_by_its_deadline_only(own_server: Server) -> None:
    ada = uuid4()
    settings = replace(own_server.settings, deadline_seconds=0.5, connect_timeout_seconds=0.5)
    async with connected(settings) as (connection, subscriptions), opened(connection, subscriptions) as presence:
        own_server.freeze()
        async with asyncio.timeout(20), presence.online(ada):
            assert await state_of(presence, ada) is None
        async with asyncio.timeout(20):
            await presence._close()


class Scripts:
    """Counts the leases of each script, and the scripts of a bucket at a time. Measures turns of the loop."""

    def __init__(self, leases: Leases) -> None:
        self.sizes: list[int] = []
        self.most_at_a_time = 0
        self._in_flight = Counter[int]()
        self.longest_turn_seconds = 0.0
        self._update = leases._update
        leases._update = self.update  # type: ignore[method-assign]

    async def update(self, bucket: int, leases: Collection[Lease]) -> list[UUID] | None:
        self.sizes.append(len(leases))
        self._in_flight[bucket] += 1
        self.most_at_a_time = max(self.most_at_a_time, self._in_flight[bucket])
        try:
            return await self._update(bucket, leases)
        finally:
            self._in_flight[bucket] -= 1

    async def watch(self) -> None:
        """Measure in processor time, which a busy machine hardly stretches."""
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            self.longest_turn_seconds = max(self.longest_turn_seconds, time.thread_time() - before)


async def test_heartbeats_of_ten_thousand_leases_do_not_stall_the_event_loop(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    """The longest turn took 3 ms of processor time."""
    users = [uuid4() for _ in range(10_000)]
    async with (
        opened(connection, subscriptions, heartbeat_seconds=1, write_seconds=60) as presence,
        together_online(presence, users),
    ):

        async def heartbeats(count: int) -> None:
            before = await _due(connection, users[:100])

            async def have_passed() -> bool:
                return min((await _due(connection, users[:100])).values()) > max(before.values()) + count * 1_000

            await until_it_answers(have_passed)

        await heartbeats(1)  # until the first heartbeat of the new leases is over
        gc.collect()
        gc.freeze()  # otherwise collecting the test's own objects would be measured
        scripts = Scripts(presence._leases)
        watching = asyncio.create_task(scripts.watch())
        await heartbeats(2)
        watching.cancel()
        await asyncio.wait([watching])
        gc.unfreeze()
    assert sum(scripts.sizes) >= len(users)
    assert max(scripts.sizes) <= LEASES_PER_SCRIPT
    assert scripts.most_at_a_time == 1, "other tasks have their turns while a script is awaited"
    assert in_time(scripts.longest_turn_seconds, 0.05)

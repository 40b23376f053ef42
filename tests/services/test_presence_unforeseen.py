"""Data of other programs in the keys of presence, and malformed replies, end no background task."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import pytest

from hubbub.redis import Connection, Subscriptions
from hubbub.redis.expiring_sets import BUCKETS, Due, bucket_of
from hubbub.redis.replies import as_bytes_list
from hubbub.services.presence import Presence
from hubbub.services.presence import leases as leases_module
from hubbub.services.presence.leases import (
    USERS_PER_SWEEP,
    Lease,
    Leases,
    Sweeper,
    leases_key,
    online_key,
)
from hubbub.settings import RedisSettings
from reports import reports
from services.odd_answers import answering
from services.presence_events import PresenceListener, opened
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers

STRAYS = [
    b"junk",
    b"",
    b"\xff\x00",
    b'","isOnline":true}',
    b"long" * 100_000,
    b"urn:uuid:01920000-0000-7000-8000-000000000000",
    b"{01920000-0000-7000-8000-000000000000}",
    b"01920000-0000-7000-8000-00000000ABCD",
    b"01920000-0000-7000-8000-000000000000\n",
    b"01920000000070008000000000000000",
]
"""Members that hubbub does not write, though some of them can be read as an id."""


async def test_members_that_are_not_ids_are_swept_and_do_not_delay_users(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    """More of them than fit into a script come before Ada, and three processes find them."""
    ada = uuid4()
    key = online_key(bucket_of(ada))
    strays = [*STRAYS, *(b"stray %d" % n for n in range(USERS_PER_SWEEP))]
    await connection.execute("ZADD", key, *[word for stray in strays for word in (1, stray)])
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(PresenceListener(connection, subscriptions).listening())
        presence, *_ = [
            await stack.enter_async_context(opened(connection, subscriptions, grace_seconds=0)) for _ in range(3)
        ]
        async with presence.online(ada):
            pass
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            heard = await listener.until_offline({ada})
        assert [change.is_online for change in heard if change.user_id == ada] == [True, False]

        async def none_is_left() -> bool:
            return await connection.execute("EXISTS", key) == 0

        await until_it_answers(none_is_left)


async def test_device_name_that_is_not_utf_8_hides_no_other_device(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    ada = uuid4()
    async with opened(connection, subscriptions) as presence, presence.online(ada, "phone"):
        await connection.execute("ZADD", leases_key(ada), 2**53, b"0" * 32 + b":\xff")
        names = [device.name for device in await presence.devices(ada)]
        assert sorted(map(str, names)) == ["phone", "\N{REPLACEMENT CHARACTER}"]


async def test_malformed_reply_does_not_end_sweeping() -> None:
    swept: list[int] = []
    nobody = b"*%d\r\n:0\r\n" % (BUCKETS + 1) + b"*2\r\n:0\r\n*0\r\n" * BUCKETS
    async with answering(b"+what?\r\n", nobody) as (connection, _):
        sweeper = Sweeper(
            connection,
            every_seconds=0.01,
            heartbeat_seconds=1,
            on_transition=lambda _: None,
            on_empty=swept.append,
            holds_leases=lambda: True,
        )
        with reports() as reported:
            sweeper.task.start()
            await until(lambda: len(swept) >= 2 * BUCKETS)
            await sweeper.task.close()
    assert swept[: 2 * BUCKETS] == [*range(BUCKETS)] * 2
    assert [context["message"] for context in reported] == ["sweeping presence failed"]


async def test_lease_is_sent_again_after_a_malformed_reply() -> None:
    ada = uuid4()
    came: list[list[UUID]] = []
    async with answering(b":1\r\n", b"*1\r\n$36\r\n%s\r\n" % str(ada).encode(), b"*0\r\n") as (connection, _):
        leases = Leases(
            connection,
            heartbeat_seconds=60,
            grace_seconds=1,
            on_transition=lambda user_ids: came.append(list(user_ids)),
        )
        with reports() as reported:
            leases.start()
            await leases.acquire(lease := Lease(ada, None))
            await until(lambda: len(came) == 2)  # the first script may have run
            await leases.release(lease)
            await leases.close()
    assert came[:2] == [[ada], [ada]]
    assert [context["message"] for context in reported] == ["sending leases failed"]


async def test_release_waits_for_its_own_script_and_not_for_a_heartbeat_in_flight(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(connection, heartbeat_seconds=0.1, grace_seconds=0, on_transition=lambda _: None)
    update, may_answer, sent = leases._update, asyncio.Semaphore(0), list[bool]()

    async def answer_later(bucket: int, changed: Collection[Lease]) -> list[UUID] | None:
        sent.extend(lease in leases._held[bucket] for lease in changed)
        came = await update(bucket, changed)
        await may_answer.acquire()
        return came

    monkeypatch.setattr(leases, "_update", answer_later)
    leases.start()
    lease = Lease(uuid4(), None)
    may_answer.release()
    await leases.acquire(lease)
    await until(lambda: sent == [True, True])  # the second is that of a heartbeat
    releasing = asyncio.create_task(leases.release(lease))
    await asyncio.sleep(0)
    may_answer.release()
    await until(lambda: sent == [True, True, False])
    assert not releasing.done()
    may_answer.release()
    await releasing
    await leases.close()


class LostRedis:
    """Answers each script at once, then holds all back until it is lost.

    Then one more script of each bucket fails, and others have no answer until the end.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.leases = Leases(
            Connection(RedisSettings(host="none")),
            heartbeat_seconds=60,
            grace_seconds=0,
            on_transition=lambda _: None,
        )
        self.is_answering = self.is_connected = True
        self.held_back = 0
        self.lost, self.ended = asyncio.Event(), asyncio.Event()
        self._failed = set[int]()
        monkeypatch.setattr(self.leases, "_update", self._update)
        monkeypatch.setattr(Connection, "connected", property(lambda _: self.is_connected))

    async def _update(self, bucket: int, _: Collection[Lease]) -> list[UUID] | None:
        if self.is_answering:
            return []
        if self.is_connected:
            self.held_back += 1
            await self.lost.wait()
        elif bucket in self._failed:
            await self.ended.wait()
        else:
            self._failed.add(bucket)
        return None

    async def lose(self) -> None:
        """Lose it once a script is held back."""
        await until(lambda: self.held_back > 0)
        self.is_connected = False
        self.lost.set()

    async def end(self) -> None:
        self.ended.set()
        await self.leases.close()


@pytest.mark.parametrize("is_exit", [False, True], ids=["enter", "exit"])
async def test_no_caller_waits_for_its_turn_once_redis_is_lost(
    monkeypatch: pytest.MonkeyPatch, is_exit: bool
) -> None:
    """A frozen server is noticed by the first script. Each further one would wait for a connection."""
    monkeypatch.setattr(leases_module, "LEASES_PER_SCRIPT", 1)
    redis = LostRedis(monkeypatch)
    held = [Lease(UUID(int=number), None) for number in range(3 * BUCKETS)]
    redis.leases.start()
    change = redis.leases.acquire
    if is_exit:
        await asyncio.gather(*map(redis.leases.acquire, held))
        change = redis.leases.release
    redis.is_answering = False
    changing = [asyncio.create_task(change(lease)) for lease in held]
    await redis.lose()
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        await asyncio.gather(*changing)
    await redis.end()


async def test_bucket_that_does_not_answer_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cluster the buckets are on several servers."""
    monkeypatch.setattr(Connection, "connected", property(lambda _: True))
    connection = Connection(RedisSettings(host="none"))
    leases = Leases(connection, heartbeat_seconds=0.1, grace_seconds=0, on_transition=lambda _: None)
    hanging, healthy = range(6), range(6, BUCKETS)
    has_failed, is_back = asyncio.Event(), False
    sent, in_flight, most_in_flight = Counter[int](), Counter[int](), Counter[int]()

    async def update(bucket: int, _: Collection[Lease]) -> list[UUID] | None:
        sent[bucket] += 1
        in_flight[bucket] += 1
        most_in_flight[bucket] = max(most_in_flight[bucket], in_flight[bucket])
        if bucket in hanging and not is_back:
            await has_failed.wait()
            in_flight[bucket] -= 1
            return None
        await asyncio.sleep(0)
        in_flight[bucket] -= 1
        return []

    monkeypatch.setattr(leases, "_update", update)
    leases.start()
    entering = [asyncio.create_task(leases.acquire(Lease(UUID(int=bucket), None))) for bucket in range(BUCKETS)]
    await until(lambda: all(sent[bucket] >= 3 for bucket in healthy))
    assert [sent[bucket] for bucket in hanging] == [1] * len(hanging)
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        await leases.acquire(Lease(UUID(int=BUCKETS + healthy[0]), None))
        assert [task.done() for task in entering] == [bucket in healthy for bucket in range(BUCKETS)]
        has_failed.set()
        await asyncio.gather(*entering)
        is_back = True
        await until(lambda: all(sent[bucket] >= 5 for bucket in range(BUCKETS)))
        await leases.close()
    assert set(most_in_flight.values()) == {1}


async def set_clock_back(connection: Connection, by_ms: int, *users: UUID) -> None:
    """Emulate a clock that is set back: make each time in the keys later."""
    for user_id in users:
        for key in (online_key(bucket_of(user_id)), leases_key(user_id)):
            reply = await connection.execute("ZRANGE", key, 0, -1)
            for member in as_bytes_list(reply):
                await connection.execute("ZADD", key, "INCR", by_ms, member)
        await connection.execute("PEXPIRE", leases_key(user_id), by_ms)


@pytest.mark.parametrize("by_ms", [7_000, 3_600_000, 2**40])
async def test_killed_process_keeps_no_user_online_after_the_clock_went_back(
    connection: Connection, subscriptions: Subscriptions, by_ms: int
) -> None:
    gone, here = UUID(int=16), UUID(int=32)  # in the same bucket
    async with opened(connection, subscriptions, heartbeat_seconds=1, grace_seconds=0) as presence:
        await hold_from_a_killed_process(connection, gone, here)
        async with presence.online(here, "phone"):
            await set_clock_back(connection, by_ms, gone, here)
            await until_it_answers(lambda: is_online(presence, gone, False))
            assert await presence.devices(gone) == []
            assert await is_online(presence, here, True)

            async def has_one_device() -> bool:
                return [device.name for device in await presence.devices(here)] == ["phone"]

            await until_it_answers(has_one_device)
        await until_it_answers(lambda: is_online(presence, here, False))


async def test_process_with_a_shorter_heartbeat_shortens_no_lease_of_another(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    """During a rolling update, processes with different options run side by side."""
    gone, here = UUID(int=16), UUID(int=32)  # in the same bucket
    async with (
        opened(connection, subscriptions, heartbeat_seconds=600, grace_seconds=0) as slow,
        opened(connection, subscriptions, heartbeat_seconds=1, grace_seconds=0) as quick,
        slow.online(here),
    ):
        async with quick.online(here):
            pass
        await hold_from_a_killed_process(connection, gone)
        await until_it_answers(lambda: is_online(quick, gone, False))
        ends_at_ms = await connection.execute("ZSCORE", online_key(bucket_of(here)), str(here))
        assert isinstance(ends_at_ms, float)
        assert ends_at_ms / 1000 > time.time() + 600
        assert len(await quick.devices(here)) == 1


async def is_online(presence: Presence, user_id: UUID, state: bool) -> bool:
    return await presence.is_online([user_id]) == {user_id: state}


async def hold_from_a_killed_process(connection: Connection, *users: UUID) -> None:
    killed = Leases(connection, heartbeat_seconds=1, grace_seconds=0, on_transition=lambda _: None)
    killed.start()
    for user_id in users:
        await killed.acquire(Lease(user_id, None))
    for held in killed._held:
        held.clear()
    await killed.close()


async def test_clock_that_goes_ahead_puts_no_user_offline(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, at_ms, rounds = uuid4(), 10**12, 0
    ended: list[object] = []

    async def find_due(*_: object, **__: object) -> list[Due]:
        nonlocal rounds
        rounds += 1
        ahead_ms = 3_600_000 if rounds > 3 else 0
        due = [str(ada).encode()] if ahead_ms else []
        now_ms = at_ms + ahead_ms + round(asyncio.get_running_loop().time() * 1000)
        return [Due(now_ms, 1, due)] * BUCKETS

    monkeypatch.setattr(leases_module, "find_due", find_due)
    sweeper = Sweeper(
        connection,
        every_seconds=0.01,
        heartbeat_seconds=600,
        on_transition=ended.append,
        on_empty=lambda _: None,
        holds_leases=lambda: True,
    )
    sweeper.task.start()
    await until(lambda: rounds > 20)
    await sweeper.task.close()
    assert ended == []

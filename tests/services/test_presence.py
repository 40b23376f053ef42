from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from uuid import UUID, uuid4

import pytest

from hubbub.errors import Invalid, Unavailable
from hubbub.events import PRESENCE_CHANNEL, PresenceChanged
from hubbub.redis import Connection, Gap, Subscriptions
from hubbub.redis.expiring_sets import BUCKETS, bucket_of
from hubbub.services.presence import Presence
from hubbub.services.presence.leases import leases_key, online_key
from services.presence_events import PresenceListener, Table, opened, together_online
from waiting import until_it_answers


@pytest.fixture
async def presence(connection: Connection, subscriptions: Subscriptions) -> AsyncIterator[Presence]:
    async with opened(connection, subscriptions) as presence:
        yield presence


@pytest.fixture
async def listener(connection: Connection, subscriptions: Subscriptions) -> AsyncIterator[PresenceListener]:
    async with PresenceListener(connection, subscriptions).listening() as listener:
        yield listener


def came_online(user_id: UUID) -> PresenceChanged:
    return PresenceChanged(user_id, is_online=True)


def went_offline(user_id: UUID) -> PresenceChanged:
    return PresenceChanged(user_id, is_online=False)


async def test_user_is_online_while_connected_and_offline_after_the_grace_time(
    presence: Presence, listener: PresenceListener
) -> None:
    ada, bob = uuid4(), uuid4()
    async with presence.online(ada):
        assert await presence.is_online([ada, bob]) == {ada: True, bob: False}
        assert await listener.next() == came_online(ada)
    assert await presence.devices(ada) == []
    assert await listener.next() == went_offline(ada)
    assert await presence.is_online([ada]) == {ada: False}


async def test_second_device_publishes_nothing(presence: Presence, listener: PresenceListener) -> None:
    ada = uuid4()
    async with presence.online(ada, "phone"):
        async with presence.online(ada, "laptop"), presence.online(ada):
            devices = await presence.devices(ada)
            assert {device.name for device in devices} == {"phone", "laptop", None}
            assert len({device.lease for device in devices}) == 3
        assert [device.name for device in await presence.devices(ada)] == ["phone"]
        assert await listener.until_now() == [came_online(ada)]
    assert await listener.next() == went_offline(ada)
    assert await listener.until_now() == []


async def test_user_back_within_the_grace_time_stays_online(
    connection: Connection, subscriptions: Subscriptions, listener: PresenceListener
) -> None:
    ada = uuid4()
    async with opened(connection, subscriptions, grace_seconds=5) as presence:
        for _ in range(20):
            async with presence.online(ada):
                pass
            assert await presence.is_online([ada]) == {ada: True}
        assert await listener.until_now() == [came_online(ada)]


async def test_held_lease_is_renewed(
    connection: Connection, subscriptions: Subscriptions, listener: PresenceListener
) -> None:
    ada = uuid4()
    async with opened(connection, subscriptions) as presence, presence.online(ada):
        first = await connection.execute("ZSCORE", online_key(bucket_of(ada)), str(ada))
        assert isinstance(first, float)

        async def is_renewed_past_its_first_end() -> bool:
            score = await connection.execute("ZSCORE", online_key(bucket_of(ada)), str(ada))
            return isinstance(score, float) and score > first + 1_500

        await until_it_answers(is_renewed_past_its_first_end)
        assert await listener.until_now() == [came_online(ada)]


async def test_keys_of_presence_have_a_time_to_live(presence: Presence, connection: Connection) -> None:
    ada = uuid4()
    async with presence.online(ada):
        for key in (leases_key(ada), online_key(bucket_of(ada))):
            left = await connection.execute("PTTL", key)
            assert isinstance(left, int)
            assert left > 0


async def test_user_is_online_while_any_process_holds_a_lease(
    connection: Connection, subscriptions: Subscriptions, listener: PresenceListener
) -> None:
    ada = uuid4()
    async with (
        opened(connection, subscriptions) as one,
        opened(connection, subscriptions) as other,
        other.online(ada, "laptop"),
    ):
        async with one.online(ada, "phone"):
            assert len(await other.devices(ada)) == 2
        assert [device.name for device in await one.devices(ada)] == ["laptop"]
        assert await listener.until_now() == [came_online(ada)]


async def test_each_transition_is_published_once_with_five_processes_and_many_devices(
    connection: Connection, subscriptions: Subscriptions, listener: PresenceListener
) -> None:
    """All processes sweep continually, so each of them finds each end."""
    users = [uuid4() for _ in range(20)]
    source = random.Random(7)

    async def come_and_go(processes: list[Presence], user_id: UUID) -> None:
        for _ in range(25):
            async with source.choice(processes).online(user_id):
                await asyncio.sleep(source.uniform(0, 0.02))
            await asyncio.sleep(source.choice([0, 0.01, 0.06]))

    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(opened(connection, subscriptions, grace_seconds=0.03))
            for _ in range(5)
        ]
        await asyncio.gather(*[come_and_go(processes, user_id) for user_id in users for _ in range(3)])

        async def all_are_offline() -> bool:
            return not any((await processes[0].is_online(users)).values())

        await until_it_answers(all_are_offline)
        changes = await listener.until_now()
    assert {change.user_id for change in changes} == set(users)
    for user_id in users:
        states = [change.is_online for change in changes if change.user_id == user_id]
        assert states == [True, False] * (len(states) // 2)
    assert len(changes) > 2 * len(users)  # there were transitions that could be lost


async def test_cancelled_connects_and_disconnects_leave_no_user_online(
    presence: Presence, connection: Connection
) -> None:
    source = random.Random(11)
    users = [uuid4() for _ in range(300)]

    async def visit(user_id: UUID) -> None:
        async with presence.online(user_id):
            await asyncio.sleep(source.uniform(0, 0.01))

    visits = [asyncio.create_task(visit(user_id)) for user_id in users]
    while not all(visit.done() for visit in visits):
        source.choice(visits).cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*visits, return_exceptions=True)

    async def no_user_is_online() -> bool:
        return not any((await presence.is_online(users)).values())

    await until_it_answers(no_user_is_online)
    assert await connection.execute("KEYS", "presence:*:user:*") == []


async def test_closing_releases_every_lease(
    connection: Connection, subscriptions: Subscriptions, presence: Presence, listener: PresenceListener
) -> None:
    users = [uuid4() for _ in range(500)]
    async with AsyncExitStack() as stack:
        async with opened(connection, subscriptions) as closing:
            for user_id in users:
                await stack.enter_async_context(closing.online(user_id))
        assert await connection.execute("KEYS", "presence:*:user:*") == []
        await closing._close()
    changes = await listener.until_offline(set(users))
    assert len(changes) == 2 * len(users)
    assert await presence.is_online(users) == dict.fromkeys(users, False)


async def test_closing_during_a_release_leaves_no_lease(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    """Redis has lost the script, so the release takes two attempts. The close happens between them."""
    ada = uuid4()
    async with opened(connection, subscriptions) as presence:
        visit = presence.online(ada)
        await visit.__aenter__()
        await connection.execute("SCRIPT", "FLUSH")
        leaving = asyncio.create_task(visit.__aexit__(None, None, None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await presence._close()
        await leaving
        assert await presence.devices(ada) == []


async def test_online_before_start_or_after_close_is_unavailable(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    presence = Presence(connection, subscriptions, Table().write)
    with pytest.raises(Unavailable):
        async with presence.online(uuid4()):
            pass
    presence._start()
    await presence._close()
    with pytest.raises(Unavailable):
        async with presence.online(uuid4()):
            pass


async def test_second_start_leaves_no_task_behind(connection: Connection, subscriptions: Subscriptions) -> None:
    presence = Presence(connection, subscriptions, Table().write)
    presence._start()
    presence._start()
    await presence._close()


async def test_is_online_of_five_thousand_users(presence: Presence) -> None:
    users = [uuid4() for _ in range(5_000)]
    async with together_online(presence, users[:2_000]):
        answer = await presence.is_online(users)
        assert answer == {user_id: place < 2_000 for place, user_id in enumerate(users)}
    assert await presence.is_online([]) == {}


async def test_watch_yields_a_gap_and_then_each_transition(presence: Presence) -> None:
    ada = uuid4()
    async with aclosing(presence.watch()) as changes:
        assert isinstance(await anext(changes), Gap)
        async with presence.online(ada):
            assert await anext(changes) == came_online(ada)
        assert await anext(changes) == went_offline(ada)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"\xff",
        b"null",
        b'{"userId":"ada","isOnline":true}',
        b'{"x":' + b"[" * 200_000,
        b'{"userId":1}',
    ],
)
async def test_payload_that_is_not_a_transition_is_skipped(
    presence: Presence, connection: Connection, payload: bytes
) -> None:
    ada = uuid4()
    async with aclosing(presence.watch()) as changes:
        assert isinstance(await anext(changes), Gap)
        await connection.execute("PUBLISH", PRESENCE_CHANNEL, payload)
        await connection.execute(
            "PUBLISH", PRESENCE_CHANNEL, f'{{"userId":"{ada}","isOnline":true,"status":"busy"}}'
        )
        assert await anext(changes) == came_online(ada)


async def test_users_are_spread_over_all_buckets_and_the_keys_of_each_share_a_slot() -> None:
    users = [uuid4() for _ in range(1_000)]
    assert {bucket_of(user_id) for user_id in users} == set(range(BUCKETS))
    for user_id in users[:10]:
        tag = f"{{b{bucket_of(user_id)}}}"
        assert tag in leases_key(user_id)
        assert tag in online_key(bucket_of(user_id))


@pytest.mark.parametrize("device", ["", " ", "x" * 101, "\0", "\ud800", 7])
async def test_impossible_device_name_is_invalid(presence: Presence, device: object) -> None:
    with pytest.raises(Invalid, match="device"):
        async with presence.online(uuid4(), device):  # type: ignore[arg-type]
            pass


async def test_device_name_is_returned_unchanged(presence: Presence) -> None:
    ada, name = uuid4(), "Ada:s \N{MOBILE PHONE}\r\n{b1}"
    async with presence.online(ada, name):
        assert [device.name for device in await presence.devices(ada)] == [name]


async def test_malformed_user_id_is_invalid(presence: Presence) -> None:
    with pytest.raises(Invalid, match="user_ids"):
        await presence.is_online(["ada"])  # type: ignore[list-item]
    with pytest.raises(Invalid, match="user_id"):
        await presence.devices("ada")  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="user_id"):
        async with presence.online(None):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize(
    "times",
    [
        {"heartbeat_seconds": 0},
        {"grace_seconds": -1},
        {"grace_seconds": 21},
        {"sweep_seconds": 0},
        {"write_seconds": -1},
    ],
)
async def test_impossible_times_are_invalid(
    connection: Connection, subscriptions: Subscriptions, times: dict[str, float]
) -> None:
    with pytest.raises(Invalid):
        Presence(connection, subscriptions, Table().write, **times)  # type: ignore[arg-type]  # all are times

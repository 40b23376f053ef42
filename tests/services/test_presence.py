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
from hubbub.services.presence import Presence
from hubbub.services.presence.leases import BUCKETS, bucket_of, leases_key, online_key
from services.presence_events import Ear, Table, opened
from waiting import until_it_answers


@pytest.fixture
async def presence(connection: Connection, subscriptions: Subscriptions) -> AsyncIterator[Presence]:
    async with opened(connection, subscriptions) as presence:
        yield presence


@pytest.fixture
async def ear(connection: Connection, subscriptions: Subscriptions) -> AsyncIterator[Ear]:
    async with Ear(connection, subscriptions).listening() as ear:
        yield ear


def came(user_id: UUID) -> PresenceChanged:
    return PresenceChanged(user_id, is_online=True)


def went(user_id: UUID) -> PresenceChanged:
    return PresenceChanged(user_id, is_online=False)


async def test_who_connects_is_online_and_who_leaves_is_offline_after_the_grace(
    presence: Presence, ear: Ear
) -> None:
    ada, bob = uuid4(), uuid4()
    async with presence.online(ada):
        assert await presence.is_online([ada, bob]) == {ada: True, bob: False}
        assert await ear.next() == came(ada)
    assert await presence.devices(ada) == []
    assert await ear.next() == went(ada)
    assert await presence.is_online([ada]) == {ada: False}


async def test_a_second_device_changes_nothing_for_the_others(presence: Presence, ear: Ear) -> None:
    ada = uuid4()
    async with presence.online(ada, "phone"):
        async with presence.online(ada, "laptop"), presence.online(ada):
            devices = await presence.devices(ada)
            assert {device.name for device in devices} == {"phone", "laptop", None}
            assert len({device.lease for device in devices}) == 3
        assert [device.name for device in await presence.devices(ada)] == ["phone"]
        assert await ear.until_now() == [came(ada)]
    assert await ear.next() == went(ada)
    assert await ear.until_now() == []


async def test_who_comes_back_within_the_grace_was_never_gone(
    connection: Connection, subscriptions: Subscriptions, ear: Ear
) -> None:
    ada = uuid4()
    async with opened(connection, subscriptions, grace_seconds=5) as presence:
        for _ in range(20):
            async with presence.online(ada):
                pass
            assert await presence.is_online([ada]) == {ada: True}
        assert await ear.until_now() == [came(ada)]


async def test_a_lease_is_renewed_for_as_long_as_it_is_held(
    connection: Connection, subscriptions: Subscriptions, ear: Ear
) -> None:
    ada = uuid4()
    async with opened(connection, subscriptions) as presence, presence.online(ada):
        first = await connection.execute("ZSCORE", online_key(bucket_of(ada)), str(ada))
        assert isinstance(first, float)

        async def is_renewed_past_its_first_end() -> bool:
            score = await connection.execute("ZSCORE", online_key(bucket_of(ada)), str(ada))
            return isinstance(score, float) and score > first + 1_500

        await until_it_answers(is_renewed_past_its_first_end)
        assert await ear.until_now() == [came(ada)]


async def test_what_a_heartbeat_touches_has_an_end_in_redis(presence: Presence, connection: Connection) -> None:
    ada = uuid4()
    async with presence.online(ada):
        for key in (leases_key(ada), online_key(bucket_of(ada))):
            left = await connection.execute("PTTL", key)
            assert isinstance(left, int)
            assert left > 0


async def test_a_user_is_online_while_any_process_says_so(
    connection: Connection, subscriptions: Subscriptions, ear: Ear
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
        assert await ear.until_now() == [came(ada)]


async def test_one_event_a_transition_however_many_devices_come_and_go_in_five_processes(
    connection: Connection, subscriptions: Subscriptions, ear: Ear
) -> None:
    """All processes sweep all the time, so each of them sees each end."""
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
        changes = await ear.until_now()
    assert {change.user_id for change in changes} == set(users)
    for user_id in users:
        states = [change.is_online for change in changes if change.user_id == user_id]
        assert states == [True, False] * (len(states) // 2)
    assert len(changes) > 2 * len(users)  # there was something to get wrong


async def test_cancelling_whoever_comes_or_leaves_leaves_no_ghost(
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

    async def nobody_is_online() -> bool:
        return not any((await presence.is_online(users)).values())

    await until_it_answers(nobody_is_online)
    assert await connection.execute("KEYS", "presence:*:user:*") == []


async def test_closing_gives_up_every_lease(
    connection: Connection, subscriptions: Subscriptions, presence: Presence, ear: Ear
) -> None:
    users = [uuid4() for _ in range(500)]
    async with AsyncExitStack() as stack:
        async with opened(connection, subscriptions) as closing:
            for user_id in users:
                await stack.enter_async_context(closing.online(user_id))
        assert await connection.execute("KEYS", "presence:*:user:*") == []
        await closing.close()
    changes = await ear.until_offline(set(users))
    assert len(changes) == 2 * len(users)
    assert await presence.is_online(users) == dict.fromkeys(users, False)


async def test_closing_in_the_middle_of_a_leave_forgets_no_lease(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    """Redis has forgotten the script, so the leave takes a second attempt, and the end comes between the two."""
    ada = uuid4()
    async with opened(connection, subscriptions) as presence:
        visit = presence.online(ada)
        await visit.__aenter__()
        await connection.execute("SCRIPT", "FLUSH")
        leaving = asyncio.create_task(visit.__aexit__(None, None, None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await presence.close()
        await leaving
        assert await presence.devices(ada) == []


async def test_nobody_can_come_online_before_the_start_or_after_the_end(
    connection: Connection, subscriptions: Subscriptions
) -> None:
    presence = Presence(connection, subscriptions, Table().write)
    with pytest.raises(Unavailable):
        async with presence.online(uuid4()):
            pass
    presence.start()
    await presence.close()
    with pytest.raises(Unavailable):
        async with presence.online(uuid4()):
            pass


async def test_a_second_start_leaves_no_task_behind(connection: Connection, subscriptions: Subscriptions) -> None:
    presence = Presence(connection, subscriptions, Table().write)
    presence.start()
    presence.start()
    await presence.close()


async def test_a_crowd_is_told_apart_in_one_question(presence: Presence) -> None:
    users = [uuid4() for _ in range(5_000)]
    async with AsyncExitStack() as stack:
        await asyncio.gather(*[stack.enter_async_context(presence.online(user_id)) for user_id in users[:2_000]])
        answer = await presence.is_online(users)
        assert answer == {user_id: place < 2_000 for place, user_id in enumerate(users)}
    assert await presence.is_online([]) == {}


async def test_watching_says_first_that_it_knows_nothing_and_then_each_change(presence: Presence) -> None:
    ada = uuid4()
    async with aclosing(presence.watch()) as changes:
        assert isinstance(await anext(changes), Gap)
        async with presence.online(ada):
            assert await anext(changes) == came(ada)
        assert await anext(changes) == went(ada)


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
async def test_what_is_no_presence_is_passed_over(
    presence: Presence, connection: Connection, payload: bytes
) -> None:
    ada = uuid4()
    async with aclosing(presence.watch()) as changes:
        assert isinstance(await anext(changes), Gap)
        await connection.execute("PUBLISH", PRESENCE_CHANNEL, payload)
        await connection.execute(
            "PUBLISH", PRESENCE_CHANNEL, f'{{"userId":"{ada}","isOnline":true,"status":"busy"}}'
        )
        assert await anext(changes) == came(ada)


async def test_users_are_spread_over_the_buckets_and_each_has_one_slot() -> None:
    users = [uuid4() for _ in range(1_000)]
    assert {bucket_of(user_id) for user_id in users} == set(range(BUCKETS))
    for user_id in users[:10]:
        tag = f"{{b{bucket_of(user_id)}}}"
        assert tag in leases_key(user_id)
        assert tag in online_key(bucket_of(user_id))


@pytest.mark.parametrize("device", ["", " ", "x" * 101, "\0", "\ud800", 7])
async def test_a_device_name_that_cannot_be_is_refused(presence: Presence, device: object) -> None:
    with pytest.raises(Invalid, match="device"):
        async with presence.online(uuid4(), device):  # type: ignore[arg-type]
            pass


async def test_a_device_name_comes_back_as_it_was_given(presence: Presence) -> None:
    ada, name = uuid4(), "Ada:s \N{MOBILE PHONE}\r\n{b1}"
    async with presence.online(ada, name):
        assert [device.name for device in await presence.devices(ada)] == [name]


async def test_what_is_no_user_is_refused(presence: Presence) -> None:
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
async def test_times_that_do_not_fit_are_refused(
    connection: Connection, subscriptions: Subscriptions, times: dict[str, float]
) -> None:
    with pytest.raises(Invalid):
        Presence(connection, subscriptions, Table().write, **times)  # type: ignore[arg-type]  # all of them are times

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from hubbub.errors import Invalid, NotAMember, Unavailable
from hubbub.events import TypingChanged, typing_channel
from hubbub.redis import Connection, Gap, Subscription, Subscriptions
from hubbub.redis.expiring_sets import BUCKETS, bucket_of
from hubbub.redis.replies import as_bytes_list
from hubbub.services.typing_indicators import (
    ROOMS_PER_SCRIPT,
    Expiry,
    TypingIndicators,
    due_key,
    hint_key,
    room_key,
)
from redis_server import Server
from reports import reports
from services.odd_answers import answering
from waiting import until, until_it_answers

THE_END = b"the end"


class Members:
    """The members of all rooms. The user leaves after `leaves_after` checks, at the worst moment."""

    def __init__(self) -> None:
        self.non_members: set[UUID] = set()
        self.leaves_after = 1_000_000

    async def is_member(self, room_id: UUID, user_id: UUID) -> bool:
        self.leaves_after -= 1
        return self.leaves_after >= 0 and user_id not in self.non_members


@asynccontextmanager
async def opened(
    connection: Connection, subscriptions: Subscriptions, members: Members, *, ttl_seconds: float = 30
) -> AsyncIterator[TypingIndicators]:
    """The typing service of one process. By default nothing expires during a test."""
    typing = TypingIndicators(
        connection, subscriptions, members.is_member, ttl_seconds=ttl_seconds, expiry_seconds=0.02
    )
    typing._start()
    try:
        yield typing
    finally:
        await typing._close()


@pytest.fixture
def members() -> Members:
    return Members()


@pytest.fixture
async def typing(
    connection: Connection, subscriptions: Subscriptions, members: Members
) -> AsyncIterator[TypingIndicators]:
    async with opened(connection, subscriptions, members) as typing:
        yield typing


@pytest.fixture
def room_id() -> UUID:
    return uuid4()


@pytest.fixture
async def subscription(subscriptions: Subscriptions, room_id: UUID) -> AsyncIterator[Subscription]:
    """A subscription to the room's channel, like that of another program."""
    async with await subscriptions.subscribe(typing_channel(room_id), buffer=100_000) as subscription:
        yield subscription


async def until_now(connection: Connection, subscription: Subscription, room_id: UUID) -> list[tuple[UUID, bool]]:
    """All unread changes that were published in the room before this call."""
    await connection.execute("PUBLISH", typing_channel(room_id), THE_END)
    changes: list[tuple[UUID, bool]] = []
    async for payload in subscription:
        if payload == THE_END:
            return changes
        assert isinstance(payload, bytes)
        change = TypingChanged.from_json(room_id, payload)
        assert change is not None
        changes.append((change.user_id, change.is_typing))
    raise AssertionError("the connection was closed")


async def test_start_and_stop_are_published_once_each(
    typing: TypingIndicators, connection: Connection, subscription: Subscription, room_id: UUID
) -> None:
    ada = uuid4()
    assert [await typing.start(room_id, ada) for _ in range(3)] == [True, False, False]
    assert await typing.typing_users(room_id) == [ada]
    assert [await typing.stop(room_id, ada) for _ in range(3)] == [True, False, False]
    assert await typing.typing_users(room_id) == []
    assert await until_now(connection, subscription, room_id) == [(ada, True), (ada, False)]


async def test_payload_has_the_documented_keys(
    typing: TypingIndicators, subscription: Subscription, room_id: UUID
) -> None:
    ada = uuid4()
    await typing.start(room_id, ada)
    assert await anext(subscription) == f'{{"userId":"{ada}","isTyping":true}}'.encode()
    assert TypingChanged(room_id, ada, is_typing=True).to_json() == f'{{"userId":"{ada}","isTyping":true}}'


async def test_typing_is_published_in_its_room_only(
    typing: TypingIndicators, connection: Connection, subscription: Subscription, room_id: UUID
) -> None:
    ada, same_bucket = uuid4(), UUID(int=(room_id.int + BUCKETS) % 2**128)
    assert bucket_of(same_bucket) == bucket_of(room_id)
    await typing.start(same_bucket, ada)
    assert await typing.typing_users(room_id) == []
    assert await until_now(connection, subscription, room_id) == []


async def test_expired_typing_is_published_once_by_three_processes(
    connection: Connection,
    subscriptions: Subscriptions,
    members: Members,
    subscription: Subscription,
    room_id: UUID,
) -> None:
    """Three processes search for expired typing. The process that started it is closed."""
    users = [uuid4() for _ in range(30)]
    async with opened(connection, subscriptions, members, ttl_seconds=0.5) as gone:
        for user_id in users:
            await gone.start(room_id, user_id)
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(opened(connection, subscriptions, members)) for _ in range(3)]

        async def nothing_is_due() -> bool:
            return await connection.execute("EXISTS", due_key(bucket_of(room_id))) == 0

        await until_it_answers(nothing_is_due)
        assert await others[0].typing_users(room_id) == []
    changes = await until_now(connection, subscription, room_id)
    for user_id in users:
        assert [is_typing for user, is_typing in changes if user == user_id] == [True, False]


async def test_repeated_start_postpones_the_expiry(
    typing: TypingIndicators, connection: Connection, room_id: UUID
) -> None:
    ada, bob = uuid4(), uuid4()
    for user_id in (ada, bob):
        await typing.start(room_id, user_id)
        await connection.execute("ZADD", room_key(room_id), await now_ms(connection) + 500, str(user_id))
    await typing.start(room_id, ada)

    async def bob_has_expired() -> bool:
        return bob not in await typing.typing_users(room_id)

    await until_it_answers(bob_has_expired)
    assert await typing.typing_users(room_id) == [ada]


async def now_ms(connection: Connection) -> int:
    seconds, microseconds = map(int, as_bytes_list(await connection.execute("TIME")))
    return seconds * 1000 + microseconds // 1000


@pytest.mark.parametrize("by_ms", [31_000, 3_600_000, 2**40])
async def test_typing_stops_after_the_clock_went_back(
    typing: TypingIndicators, connection: Connection, room_id: UUID, by_ms: int
) -> None:
    """The process of the user was killed, so no other start follows."""
    ada = uuid4()
    async with aclosing(typing.watch(room_id)) as changes:
        assert isinstance(await anext(changes), Gap)
        await typing.start(room_id, ada)
        ahead = await now_ms(connection) + 30_000 + by_ms
        await connection.execute("ZADD", room_key(room_id), ahead, str(ada))
        await connection.execute("ZADD", due_key(bucket_of(room_id)), ahead, str(room_id))
        assert await anext(changes) == TypingChanged(room_id, ada, is_typing=True)
        assert await anext(changes) == TypingChanged(room_id, ada, is_typing=False)
        assert await typing.typing_users(room_id) == []


async def test_start_by_a_non_member_raises(
    typing: TypingIndicators,
    members: Members,
    connection: Connection,
    subscription: Subscription,
    room_id: UUID,
) -> None:
    eve = uuid4()
    members.non_members.add(eve)
    with pytest.raises(NotAMember):
        await typing.start(room_id, eve)
    assert await typing.typing_users(room_id) == []
    assert await until_now(connection, subscription, room_id) == []


async def test_member_who_leaves_during_a_start_is_not_typing(
    typing: TypingIndicators, members: Members, room_id: UUID
) -> None:
    members.leaves_after = 1
    with pytest.raises(NotAMember):
        await typing.start(room_id, uuid4())
    assert await typing.typing_users(room_id) == []


async def test_stop_everywhere_stops_the_user_in_all_rooms(
    connection: Connection, subscriptions: Subscriptions, members: Members
) -> None:
    """This includes typing that another process has started."""
    ada, bob = uuid4(), uuid4()
    rooms = [uuid4() for _ in range(40)]
    async with (
        opened(connection, subscriptions, members) as one,
        opened(connection, subscriptions, members) as other,
    ):
        for place, room_id in enumerate(rooms):
            await (one, other)[place % 2].start(room_id, ada)
        await one.start(rooms[0], bob)
        await one.stop(rooms[1], ada)
        assert await other.stop_everywhere(ada) == 39
        assert await other.stop_everywhere(ada) == 0
        assert await other.stop_everywhere(uuid4()) == 0
        assert [await one.typing_users(room_id) for room_id in rooms] == [[bob], *[[] for _ in rooms[1:]]]


async def test_thousand_queued_stops_are_sent(typing: TypingIndicators, connection: Connection) -> None:
    ada, rooms = uuid4(), [uuid4() for _ in range(1_000)]
    await asyncio.gather(*[typing.start(room_id, ada) for room_id in rooms])
    for room_id in rooms:
        typing.stop_soon(room_id, ada)

    async def all_have_stopped() -> bool:
        return not any(await asyncio.gather(*[typing.typing_users(room_id) for room_id in rooms]))

    await until_it_answers(all_have_stopped)
    assert await connection.execute("KEYS", "typing:{*") == []


async def test_queued_stop_everywhere_stops_the_user_in_all_rooms(
    connection: Connection, subscriptions: Subscriptions, members: Members
) -> None:
    ada, bob, rooms = uuid4(), uuid4(), [uuid4() for _ in range(40)]
    async with (
        opened(connection, subscriptions, members) as one,
        opened(connection, subscriptions, members) as other,
    ):
        await asyncio.gather(*[one.start(room_id, user) for room_id in rooms for user in (ada, bob)])
        other.stop_everywhere_soon(uuid4())
        other.stop_everywhere_soon(ada)

        async def only_bob_types() -> bool:
            return await asyncio.gather(*[one.typing_users(room_id) for room_id in rooms]) == [[bob]] * len(rooms)

        await until_it_answers(only_bob_types)
        other.stop_everywhere_soon(bob)
        await asyncio.sleep(0)
    assert not any(await asyncio.gather(*[one.typing_users(room_id) for room_id in rooms]))


async def test_closing_sends_the_queued_stops(
    connection: Connection, subscriptions: Subscriptions, members: Members, room_id: UUID
) -> None:
    ada = uuid4()
    async with opened(connection, subscriptions, members) as typing:
        await typing.start(room_id, ada)
        await connection.execute("SCRIPT", "FLUSH")  # so that a script takes two attempts
        typing.stop_soon(room_id, ada)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await typing.typing_users(room_id) == []


async def test_second_start_leaves_no_task_behind(
    connection: Connection, subscriptions: Subscriptions, members: Members
) -> None:
    async with opened(connection, subscriptions, members) as typing:
        typing._start()


async def test_starts_and_stops_of_a_user_are_published_in_turns(
    connection: Connection,
    subscriptions: Subscriptions,
    members: Members,
    subscription: Subscription,
    room_id: UUID,
) -> None:
    source = random.Random(3)
    users = [uuid4() for _ in range(20)]

    async def type_on(processes: list[TypingIndicators], user_id: UUID) -> None:
        for _ in range(40):
            process = source.choice(processes)
            act = source.choice([process.start, process.start, process.stop])
            await act(room_id, user_id)
            if source.random() < 0.3:
                process.stop_soon(room_id, user_id)
            await asyncio.sleep(source.uniform(0, 0.03))

    async with AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(opened(connection, subscriptions, members, ttl_seconds=0.05))
            for _ in range(4)
        ]
        await asyncio.gather(*[type_on(processes, user_id) for user_id in users for _ in range(2)])

        async def nothing_is_due() -> bool:
            return await connection.execute("EXISTS", due_key(bucket_of(room_id))) == 0

        await until_it_answers(nothing_is_due)
    changes = await until_now(connection, subscription, room_id)
    for user_id in users:
        states = [is_typing for user, is_typing in changes if user == user_id]
        assert states
        assert states == [True, False] * (len(states) // 2)


async def test_members_that_are_not_ids_expire_and_delay_no_user(
    connection: Connection, subscriptions: Subscriptions, members: Members, room_id: UUID
) -> None:
    """They come first among the due members, and are more than fit into a script."""
    ada = uuid4()
    due, room = due_key(bucket_of(room_id)), room_key(room_id)
    strays = [b"junk", b"\xff", str(uuid4()).upper().encode(), *(b"stray %d" % n for n in range(ROOMS_PER_SCRIPT))]
    await connection.execute("ZADD", due, *[word for stray in strays for word in (1, stray)])
    await connection.execute("ZADD", room, 1, b'","isTyping":true}', 1, b"junk")
    await connection.execute("SADD", hint_key(ada), b"junk", b"\xff")
    async with (
        opened(connection, subscriptions, members, ttl_seconds=3) as typing,
        aclosing(typing.watch(room_id)) as changes,
    ):
        assert isinstance(await anext(changes), Gap)
        await typing.start(room_id, ada)
        assert await typing.typing_users(room_id) == [ada]
        assert await anext(changes) == TypingChanged(room_id, ada, is_typing=True)
        assert await anext(changes) == TypingChanged(room_id, ada, is_typing=False)

        async def nothing_is_left() -> bool:
            return await connection.execute("EXISTS", due, room) == 0

        await until_it_answers(nothing_is_left)
        assert await typing.stop_everywhere(ada) == 0


async def test_malformed_reply_does_not_end_the_expiry() -> None:
    async with answering(b"+what?\r\n", b"*1\r\n:0\r\n") as (connection, given):
        expiry = Expiry(connection, ttl_ms=10, every_seconds=0.01)
        with reports() as reported:
            expiry.task.start()
            await until(lambda: len(given) > 2 * BUCKETS)
            await expiry.task.close()
    assert [context["message"] for context in reported] == ["expiring typing failed"]


async def test_keys_of_typing_have_a_time_to_live(
    typing: TypingIndicators, connection: Connection, room_id: UUID
) -> None:
    await typing.start(room_id, uuid4())
    keys = await connection.execute("KEYS", "*")
    assert isinstance(keys, list)
    assert len(keys) == 3
    assert f"{{b{bucket_of(room_id)}}}" in room_key(room_id)
    for key in keys:
        assert isinstance(key, bytes)
        left = await connection.execute("PTTL", key)
        assert isinstance(left, int)
        assert left > 0


async def test_watch_yields_a_gap_and_then_each_change_also_after_a_reconnect(
    typing: TypingIndicators, connection: Connection, room_id: UUID
) -> None:
    ada = uuid4()
    async with aclosing(typing.watch(room_id)) as changes:
        assert isinstance(await anext(changes), Gap)
        await connection.execute("PUBLISH", typing_channel(room_id), b"\xff is no typing")
        await typing.start(room_id, ada)
        assert await anext(changes) == TypingChanged(room_id, ada, is_typing=True)
        assert await connection.execute("CLIENT", "KILL", "TYPE", "pubsub") == 1
        assert await anext(changes) == Gap("reconnected")
        await typing.stop(room_id, ada)
        assert await anext(changes) == TypingChanged(room_id, ada, is_typing=False)


@pytest.mark.parametrize("id_", ["ada", None, 7, b"", "*"])
async def test_malformed_room_or_user_id_is_invalid(typing: TypingIndicators, id_: object) -> None:
    for act in (typing.start, typing.stop):
        with pytest.raises(Invalid):
            await act(id_, uuid4())  # type: ignore[arg-type]
        with pytest.raises(Invalid):
            await act(uuid4(), id_)  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        typing.stop_soon(uuid4(), id_)  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        await typing.stop_everywhere(id_)  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        typing.stop_everywhere_soon(id_)  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        await typing.typing_users(id_)  # type: ignore[arg-type]


async def test_calls_to_a_frozen_redis_end_by_their_deadline(
    own_server: Server, members: Members, room_id: UUID
) -> None:
    settings = replace(own_server.settings, deadline_seconds=0.5)
    connection, subscriptions = Connection(settings), Subscriptions(settings)
    await connection.start()
    await subscriptions.start()
    ada = uuid4()
    try:
        async with opened(connection, subscriptions, members) as typing:
            own_server.freeze()
            for act in (typing.start(room_id, ada), typing.stop(room_id, ada), typing.stop_everywhere(ada)):
                async with asyncio.timeout(20):
                    with pytest.raises(Unavailable):
                        await act
            typing.stop_soon(room_id, ada)
            own_server.thaw()

            async def types() -> bool:
                try:
                    await typing.start(room_id, ada)
                    return await typing.typing_users(room_id) == [ada]
                except Unavailable:
                    return False

            await until_it_answers(types)
    finally:
        await subscriptions.close()
        await connection.close()


async def test_queued_stops_are_dropped_without_redis(own_server: Server, members: Members, room_id: UUID) -> None:
    settings = replace(own_server.settings, connect_timeout_seconds=1)
    connection, subscriptions = Connection(settings), Subscriptions(settings)
    await connection.start()
    await subscriptions.start()
    ada = uuid4()
    try:
        async with opened(connection, subscriptions, members) as typing:
            own_server.kill()
            await until(lambda: not connection.connected)
            for _ in range(20_000):
                typing.stop_soon(uuid4(), ada)
            for act in (typing.start, typing.stop):
                with pytest.raises(Unavailable):
                    await act(room_id, ada)
            own_server.start()

            async def starts() -> bool:
                try:
                    return await typing.start(room_id, ada)
                except Unavailable:
                    return False

            await until_it_answers(starts)
            assert await typing.typing_users(room_id) == [ada]
    finally:
        await subscriptions.close()
        await connection.close()


async def test_impossible_times_are_invalid(
    connection: Connection, subscriptions: Subscriptions, members: Members
) -> None:
    with pytest.raises(Invalid):
        TypingIndicators(connection, subscriptions, members.is_member, ttl_seconds=0)
    with pytest.raises(Invalid):
        TypingIndicators(connection, subscriptions, members.is_member, expiry_seconds=-1)

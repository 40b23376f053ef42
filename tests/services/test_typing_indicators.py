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
from hubbub.services.typing_indicators import (
    BUCKETS,
    ROOMS_PER_SCRIPT,
    Expiry,
    TypingIndicators,
    bucket_of,
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
    """Who is in which room. `leaves_after` looks, the user leaves: the worst moment for a check."""

    def __init__(self) -> None:
        self.strangers: set[UUID] = set()
        self.leaves_after = 1_000_000

    async def is_member(self, room_id: UUID, user_id: UUID) -> bool:
        self.leaves_after -= 1
        return self.leaves_after >= 0 and user_id not in self.strangers


@asynccontextmanager
async def opened(
    connection: Connection, subscriptions: Subscriptions, members: Members, *, ttl_seconds: float = 30
) -> AsyncIterator[TypingIndicators]:
    """One process' typing. Nothing fades within the time of a test that does not ask for it."""
    typing = TypingIndicators(
        connection, subscriptions, members.is_member, ttl_seconds=ttl_seconds, expiry_seconds=0.02
    )
    typing.start_tasks()
    try:
        yield typing
    finally:
        await typing.close()


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
async def heard(subscriptions: Subscriptions, room_id: UUID) -> AsyncIterator[Subscription]:
    """The room's channel, as another program would hear it."""
    async with await subscriptions.subscribe(typing_channel(room_id), buffer=100_000) as heard:
        yield heard


async def until_now(connection: Connection, heard: Subscription, room_id: UUID) -> list[tuple[UUID, bool]]:
    """Everything that was published in the room before this was called and not read yet."""
    await connection.execute("PUBLISH", typing_channel(room_id), THE_END)
    changes: list[tuple[UUID, bool]] = []
    async for payload in heard:
        if payload == THE_END:
            return changes
        assert isinstance(payload, bytes)
        change = TypingChanged.from_json(room_id, payload)
        assert change is not None
        changes.append((change.user_id, change.is_typing))
    raise AssertionError("the connection was closed")


async def test_a_start_and_a_stop_are_said_once_each(
    typing: TypingIndicators, connection: Connection, heard: Subscription, room_id: UUID
) -> None:
    ada = uuid4()
    assert [await typing.start(room_id, ada) for _ in range(3)] == [True, False, False]
    assert await typing.who_types(room_id) == [ada]
    assert [await typing.stop(room_id, ada) for _ in range(3)] == [True, False, False]
    assert await typing.who_types(room_id) == []
    assert await until_now(connection, heard, room_id) == [(ada, True), (ada, False)]


async def test_what_is_said_has_the_keys_of_the_seed(
    typing: TypingIndicators, heard: Subscription, room_id: UUID
) -> None:
    ada = uuid4()
    await typing.start(room_id, ada)
    assert await anext(heard) == f'{{"userId":"{ada}","isTyping":true}}'.encode()
    assert TypingChanged(room_id, ada, is_typing=True).to_json() == f'{{"userId":"{ada}","isTyping":true}}'


async def test_rooms_do_not_hear_each_other(
    typing: TypingIndicators, connection: Connection, heard: Subscription, room_id: UUID
) -> None:
    ada, same_bucket = uuid4(), UUID(int=(room_id.int + BUCKETS) % 2**128)
    assert bucket_of(same_bucket) == bucket_of(room_id)
    await typing.start(same_bucket, ada)
    assert await typing.who_types(room_id) == []
    assert await until_now(connection, heard, room_id) == []


async def test_typing_that_is_not_refreshed_fades_and_everybody_is_told_once(
    connection: Connection, subscriptions: Subscriptions, members: Members, heard: Subscription, room_id: UUID
) -> None:
    """Three processes look for what has faded; the one that started it is gone."""
    users = [uuid4() for _ in range(30)]
    async with opened(connection, subscriptions, members, ttl_seconds=0.5) as gone:
        for user_id in users:
            await gone.start(room_id, user_id)
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(opened(connection, subscriptions, members)) for _ in range(3)]

        async def nothing_is_due() -> bool:
            return await connection.execute("EXISTS", due_key(bucket_of(room_id))) == 0

        await until_it_answers(nothing_is_due)
        assert await others[0].who_types(room_id) == []
    changes = await until_now(connection, heard, room_id)
    for user_id in users:
        assert [is_typing for user, is_typing in changes if user == user_id] == [True, False]


async def test_a_refresh_keeps_it_from_fading(
    connection: Connection, subscriptions: Subscriptions, members: Members, room_id: UUID
) -> None:
    ada, bob = uuid4(), uuid4()
    async with (
        opened(connection, subscriptions, members, ttl_seconds=0.5) as short,
        opened(connection, subscriptions, members) as long,
    ):
        await short.start(room_id, ada)
        await short.start(room_id, bob)
        await long.start(room_id, ada)

        async def bob_has_faded() -> bool:
            return bob not in await long.who_types(room_id)

        await until_it_answers(bob_has_faded)
        assert await long.who_types(room_id) == [ada]


async def test_who_is_no_member_cannot_type(
    typing: TypingIndicators,
    members: Members,
    connection: Connection,
    heard: Subscription,
    room_id: UUID,
) -> None:
    eve = uuid4()
    members.strangers.add(eve)
    with pytest.raises(NotAMember):
        await typing.start(room_id, eve)
    assert await typing.who_types(room_id) == []
    assert await until_now(connection, heard, room_id) == []


async def test_who_leaves_while_starting_does_not_go_on_typing(
    typing: TypingIndicators, members: Members, room_id: UUID
) -> None:
    members.leaves_after = 1
    with pytest.raises(NotAMember):
        await typing.start(room_id, uuid4())
    assert await typing.who_types(room_id) == []


async def test_who_disconnects_stops_everywhere(
    connection: Connection, subscriptions: Subscriptions, members: Members
) -> None:
    """Also what was started by way of another process."""
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
        assert [await one.who_types(room_id) for room_id in rooms] == [[bob], *[[] for _ in rooms[1:]]]


async def test_stops_that_nobody_waits_for_travel_together(
    typing: TypingIndicators, connection: Connection
) -> None:
    ada, rooms = uuid4(), [uuid4() for _ in range(1_000)]
    await asyncio.gather(*[typing.start(room_id, ada) for room_id in rooms])
    for room_id in rooms:
        typing.stop_soon(room_id, ada)

    async def all_have_stopped() -> bool:
        return not any(await asyncio.gather(*[typing.who_types(room_id) for room_id in rooms]))

    await until_it_answers(all_have_stopped)
    assert await connection.execute("KEYS", "typing:{*") == []


async def test_who_has_disconnected_stops_everywhere_without_anybody_waiting(
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
            return await asyncio.gather(*[one.who_types(room_id) for room_id in rooms]) == [[bob]] * len(rooms)

        await until_it_answers(only_bob_types)
        other.stop_everywhere_soon(bob)
        await asyncio.sleep(0)
    assert not any(await asyncio.gather(*[one.who_types(room_id) for room_id in rooms]))


async def test_closing_tells_the_stops_that_wait(
    connection: Connection, subscriptions: Subscriptions, members: Members, room_id: UUID
) -> None:
    ada = uuid4()
    async with opened(connection, subscriptions, members) as typing:
        await typing.start(room_id, ada)
        await connection.execute("SCRIPT", "FLUSH")  # so that it takes two attempts
        typing.stop_soon(room_id, ada)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await typing.who_types(room_id) == []


async def test_a_second_start_leaves_no_task_behind(
    connection: Connection, subscriptions: Subscriptions, members: Members
) -> None:
    async with opened(connection, subscriptions, members) as typing:
        typing.start_tasks()


async def test_starts_stops_and_fades_of_many_are_told_in_turns(
    connection: Connection, subscriptions: Subscriptions, members: Members, heard: Subscription, room_id: UUID
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
    changes = await until_now(connection, heard, room_id)
    for user_id in users:
        states = [is_typing for user, is_typing in changes if user == user_id]
        assert states
        assert states == [True, False] * (len(states) // 2)


async def test_strays_go_when_they_are_due_and_are_in_nobodys_way(
    connection: Connection, subscriptions: Subscriptions, members: Members, room_id: UUID
) -> None:
    """In what is due they come first, and are more than fit into a script."""
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
        assert await typing.who_types(room_id) == [ada]
        assert await anext(changes) == TypingChanged(room_id, ada, is_typing=True)
        assert await anext(changes) == TypingChanged(room_id, ada, is_typing=False)

        async def nothing_is_left() -> bool:
            return await connection.execute("EXISTS", due, room) == 0

        await until_it_answers(nothing_is_left)
        assert await typing.stop_everywhere(ada) == 0


async def test_an_answer_that_cannot_be_ends_no_fading() -> None:
    async with answering(b"+what?\r\n", b"*0\r\n") as (connection, given):
        expiry = Expiry(connection, every_seconds=0.01)
        with reports() as reported:
            expiry.task.start()
            await until(lambda: len(given) > 2 * BUCKETS)
            await expiry.task.close()
    assert [context["message"] for context in reported] == ["expiring typing failed"]


async def test_every_key_has_an_end(typing: TypingIndicators, connection: Connection, room_id: UUID) -> None:
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


async def test_watching_a_room_says_first_that_it_knows_nothing_and_then_each_change(
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
async def test_what_is_no_room_or_user_is_refused(typing: TypingIndicators, id_: object) -> None:
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
        await typing.who_types(id_)  # type: ignore[arg-type]


async def test_a_frozen_redis_keeps_nobody_who_types_longer_than_the_deadline(
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
                    return await typing.who_types(room_id) == [ada]
                except Unavailable:
                    return False

            await until_it_answers(types)
    finally:
        await subscriptions.close()
        await connection.close()


async def test_without_redis_sending_is_not_bothered(own_server: Server, members: Members, room_id: UUID) -> None:
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
            assert await typing.who_types(room_id) == [ada]
    finally:
        await subscriptions.close()
        await connection.close()


async def test_times_that_do_not_fit_are_refused(
    connection: Connection, subscriptions: Subscriptions, members: Members
) -> None:
    with pytest.raises(Invalid):
        TypingIndicators(connection, subscriptions, members.is_member, ttl_seconds=0)
    with pytest.raises(Invalid):
        TypingIndicators(connection, subscriptions, members.is_member, expiry_seconds=-1)

"""What the doorbell loses, doubles or makes up costs a heartbeat at the most, and no event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import msgspec
import pytest

from hubbub import Hub, MemberJoined, MemberLeft, Message, MessageType, Room, Settings, User
from hubbub.positions import NOT_SEEN
from hubbub.redis import Connection
from hubbub.services.feed.announcements import MEMBERSHIPS_CHANNEL, room_channel
from redis_server import Server
from services.feed.conftest import OFTEN
from services.feed.reading import entries, is_at, log_of, resync, seqs, take, take_until, until_live
from waiting import until


@pytest.fixture
async def two(settings: Settings, own_server: Server, no_task_is_left: None) -> AsyncIterator[tuple[Hub, Hub]]:
    """Two processes of a chat whose Redis is the test's own."""
    redis = replace(own_server.settings, deadline_seconds=0.5, connect_timeout_seconds=0.5)
    settings = replace(settings, redis=redis)
    async with Hub(settings, options=OFTEN) as one, Hub(settings, options=OFTEN) as other:
        yield one, other


async def talk(hub: Hub, room: Room, user: User, halt: asyncio.Event) -> int:
    """Sends and edits until it is told to stop; how many entries of the log that made."""
    made = 0
    while not halt.is_set():
        sent = await hub.messages.send(room.id, user.id, f"message {made}")
        await hub.messages.edit(sent.id, f"edited {made}", by=user.id)
        made += 2
    return made


async def test_whatever_becomes_of_redis_every_event_comes_once_and_in_order(
    hub: Hub, two: tuple[Hub, Hub], own_server: Server, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    halt = asyncio.Event()
    one, other = two
    connection = Connection(own_server.settings)
    await connection.start()
    async with one.follow(ada.id) as near, other.follow(bob.id) as far:
        talking = [
            asyncio.create_task(talk(one, room, ada, halt)),
            asyncio.create_task(talk(other, room, bob, halt)),
        ]
        heard = [await take(near, 20), await take(far, 20)]

        async def hear_more() -> None:
            for feed, history in zip((near, far), heard, strict=True):
                history.extend(await take(feed, 20))

        for _ in range(3):
            await connection.execute("CLIENT", "KILL", "TYPE", "pubsub")
            await hear_more()
        own_server.freeze()
        await hear_more()
        own_server.thaw()
        await hear_more()
        own_server.kill()
        await hear_more()
        own_server.start()
        await hear_more()
        halt.set()
        made = sum(await asyncio.gather(*talking))
        for feed, history in zip((near, far), heard, strict=True):
            history.extend(await take_until(feed, is_at(2 + made)))
            assert seqs(history) == list(range(3, 3 + made))
        assert len(await log_of(one, room.id)) == 2 + made
    await connection.close()


async def test_what_nobody_rang_for_is_found_by_comparing_heads(
    watchful: Hub, mute: Hub, room: Room, ada: User, bob: User
) -> None:
    async with watchful.follow(ada.id) as feed:
        sent = await mute.messages.send(room.id, ada.id, "in silence")
        assert seqs(await take(feed)) == [sent.seq]
        await mute.messages.edit(sent.id, "in silence!", by=ada.id)
        await mute.room_users.add(room.id, bob.id)
        assert seqs(await take(feed, 2)) == [sent.seq + 1, sent.seq + 2]


async def test_a_process_that_never_reached_redis_follows_all_the_same(
    watchful: Hub, mute: Hub, room: Room, ada: User
) -> None:
    async with mute.follow(ada.id, after={room.id: None}) as feed:
        sent = await watchful.messages.send(room.id, ada.id, "hello")
        own = await mute.messages.send(room.id, ada.id, "hello to you")
        assert seqs(await take(feed, 3)) == [1, sent.seq, own.seq]


async def test_a_join_that_nobody_rang_for_is_found(
    watchful: Hub, mute: Hub, room: Room, ada: User, bob: User
) -> None:
    async with watchful.follow(bob.id) as feed:
        await mute.room_users.add(room.id, bob.id)
        (joined,) = await take(feed)
        assert isinstance(joined, MemberJoined)


async def test_leaving_and_coming_back_at_once_is_found_though_nobody_rang(
    watchful: Hub, mute: Hub, room: Room, ada: User, bob: User
) -> None:
    """Bob is in the same rooms as before, whenever somebody looks."""
    await watchful.room_users.add(room.id, bob.id)
    async with watchful.follow(bob.id) as feed:
        for _ in range(3):
            async with mute.transaction() as tx:
                await tx.room_users.remove(room.id, bob.id)
                await tx.room_users.add(room.id, bob.id)
            left, joined = await take(feed, 2)
            assert isinstance(left, MemberLeft)
            assert isinstance(joined, MemberJoined)


async def test_an_old_leaving_that_is_read_late_ends_no_follower_who_began_after_it(
    hub: Hub, mute: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id) as witness:
        async with mute.transaction() as tx:
            await tx.room_users.remove(room.id, bob.id)
            await tx.room_users.add(room.id, bob.id)
        async with hub.follow(bob.id) as feed:
            sent = await elsewhere.messages.send(room.id, ada.id, "welcome back")
            assert seqs(await take(witness, 3)) == [3, 4, 5]
            assert seqs(await take(feed)) == [sent.seq]


def payload(*messages: Message) -> bytes:
    return msgspec.json.encode({"from": "somebody", "messages": messages})


def made_up(room: Room, user: User, seq: int, message_id: UUID | None = None) -> Message:
    now = room.created_at
    return Message(
        message_id or uuid4(), room.id, seq, user.id, "made up", MessageType.TEXT, False, now, now, None
    )


@pytest.fixture
async def bell(connection: Connection) -> Connection:
    """Who can ring as anybody may who reaches Redis."""
    return connection


async def test_rings_may_come_doubled_out_of_order_and_for_other_rooms(
    hub: Hub, mute: Hub, bell: Connection, room: Room, ada: User
) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    async with hub.follow(ada.id) as feed:
        await until_live(hub)
        sent = [await mute.messages.send(room.id, ada.id, str(number)) for number in range(6)]
        foreign = await mute.messages.send(other.id, ada.id, "other")
        for ring in (payload(sent[3]), payload(sent[0], sent[0]), payload(foreign), payload(sent[2], sent[1])):
            await bell.execute("PUBLISH", room_channel(room.id), ring)
            await bell.execute("PUBLISH", room_channel(room.id), ring)
        await bell.execute("PUBLISH", room_channel(room.id), payload(sent[5]))
        await bell.execute("PUBLISH", room_channel(other.id), payload(foreign))
        heard = entries(await take(feed, 7))
        assert [event.seq for event in heard if event.room_id == room.id] == [one.seq for one in sent]
        assert [event.seq for event in heard if event.room_id == other.id] == [foreign.seq]


NONSENSE = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b'{"from": 1}',
    b'{"from": "x", "messages": {}}',
    b'{"from": "x", "messages": [{}]}',
    b'{"from": "x", "users": ["not a uuid"]}',
    b'{"from": "x", "messages": []}',
    b'{"from": "x", "users": []}',
    b"[" * 100_000,
]


async def test_nonsense_on_the_channels_hurts_nobody(
    hub: Hub, elsewhere: Hub, bell: Connection, room: Room, ada: User, caplog: pytest.LogCaptureFixture
) -> None:
    strange = made_up(room, ada, 2)
    nonsense = [
        *NONSENSE,
        payload(msgspec.structs.replace(strange, seq=-1)),
        payload(msgspec.structs.replace(strange, seq=2**63)),
        payload(msgspec.structs.replace(strange, seq=2**64)),
        payload(msgspec.structs.replace(strange, created_at=strange.created_at.replace(tzinfo=None))),
        payload(strange).replace(b'"text"', b'"smell"'),
    ]
    async with elsewhere.follow(ada.id) as feed:
        await until_live(elsewhere)
        for one in nonsense:
            await bell.execute("PUBLISH", room_channel(room.id), one)
            await bell.execute("PUBLISH", MEMBERSHIPS_CHANNEL, one)
        sent = await hub.messages.send(room.id, ada.id, "hello")
        assert seqs(await take(feed)) == [sent.seq]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_ring_from_far_ahead_is_looked_at_once_and_stops_nothing(
    hub: Hub, elsewhere: Hub, bell: Connection, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with elsewhere.follow(ada.id) as feed:
        await until_live(elsewhere)
        rooms, reads = elsewhere._feed._rooms, 0
        # The subscription began with a comparison of heads, which may find what is sent before its ring is heard.
        await until(lambda: rooms._rooms[room.id].position.mark != NOT_SEEN)
        really = rooms._logs.read

        async def read(*args: object) -> object:
            nonlocal reads
            reads += 1
            return await really(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(rooms._logs, "read", read)
        await bell.execute("PUBLISH", room_channel(room.id), payload(made_up(room, ada, 1_000_000)))
        await until(lambda: reads > 0 and not rooms._reading)
        assert reads == 1
        for number in range(3):
            sent = await hub.messages.send(room.id, ada.id, str(number))
            assert seqs(await take(feed)) == [sent.seq]
        assert reads == 1


async def test_a_made_up_message_is_found_out_at_the_next_heartbeat(
    watchful: Hub, bell: Connection, room: Room, ada: User
) -> None:
    async with watchful.follow(ada.id) as feed:
        await until(lambda: watchful._subscriptions._is_live(room_channel(room.id).encode()))
        await bell.execute("PUBLISH", room_channel(room.id), payload(made_up(room, ada, 2)))
        lie, told = await take(feed, 2)
        assert is_at(2)(lie)
        assert resync(told).reason == "rewound"
        sent = await watchful.messages.send(room.id, ada.id, "the truth")
        assert sent.seq == 2
        assert seqs(await take(feed)) == [2]


async def test_a_made_up_message_in_the_place_of_a_real_one_is_found_out(
    hub: Hub, elsewhere: Hub, bell: Connection, room: Room, ada: User
) -> None:
    async with elsewhere.follow(ada.id) as feed:
        await until_live(elsewhere)
        await bell.execute("PUBLISH", room_channel(room.id), payload(made_up(room, ada, 2)))
        assert is_at(2)((await take(feed))[0])
        await hub.messages.send(room.id, ada.id, "the truth")
        (told,) = await take(feed)
        assert resync(told).reason == "rewound"
        async with hub.follow(ada.id, after={room.id: resync(told).cursor}) as again:
            sent = await hub.messages.send(room.id, ada.id, "more of it")
            assert seqs(await take(again)) == [sent.seq]

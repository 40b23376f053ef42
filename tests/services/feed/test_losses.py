"""Lost, repeated or forged announcements delay an event at most until the next heartbeat, and lose none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID, uuid4

import msgspec
import pytest

from hubbub import Hub, MemberJoined, MemberLeft, Message, MessageSent, MessageType, Room, Settings, User
from hubbub.events import MEMBERSHIPS_CHANNEL, room_channel
from hubbub.positions import ANY_ENTRY
from hubbub.redis import Connection
from hubbub.services.feed import rooms
from hubbub.services.feed.announcements import sign
from instrumentation.recording import Recording
from redis_server import Server
from services.feed.conftest import FAST_HEARTBEAT
from services.feed.reading import entries, is_at, log_of, resync, seqs, take, take_until, until_live
from waiting import until


@pytest.fixture
async def two(settings: Settings, own_server: Server, no_task_is_left: None) -> AsyncIterator[tuple[Hub, Hub]]:
    """Two processes of a chat with a Redis for this test alone."""
    redis = replace(own_server.settings, deadline_seconds=0.5, connect_timeout_seconds=0.5)
    settings = replace(settings, redis=redis)
    async with Hub(settings, options=FAST_HEARTBEAT) as one, Hub(settings, options=FAST_HEARTBEAT) as other:
        yield one, other


async def keep_sending(hub: Hub, room: Room, user: User, is_over: asyncio.Event) -> int:
    """Send and edit until the test sets the event. Returns the number of entries."""
    made = 0
    while not is_over.is_set():
        sent = await hub.messages.send(room.id, user.id, f"message {made}")
        await hub.messages.edit(sent.id, f"edited {made}", by=user.id)
        made += 2
    return made


async def test_every_event_is_delivered_once_and_in_order_while_redis_fails(
    hub: Hub, two: tuple[Hub, Hub], own_server: Server, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    is_over = asyncio.Event()
    one, other = two
    connection = Connection(own_server.settings)
    await connection.start()
    async with one.follow(ada.id) as near, other.follow(bob.id) as far:
        sending = [
            asyncio.create_task(keep_sending(one, room, ada, is_over)),
            asyncio.create_task(keep_sending(other, room, bob, is_over)),
        ]
        received = [await take(near, 20), await take(far, 20)]

        async def receive_more() -> None:
            for feed, history in zip((near, far), received, strict=True):
                history.extend(await take(feed, 20))

        for _ in range(3):
            await connection.execute("CLIENT", "KILL", "TYPE", "pubsub")
            await receive_more()
        own_server.freeze()
        await receive_more()
        own_server.thaw()
        await receive_more()
        own_server.kill()
        await receive_more()
        own_server.start()
        await receive_more()
        is_over.set()
        made = sum(await asyncio.gather(*sending))
        for feed, history in zip((near, far), received, strict=True):
            history.extend(await take_until(feed, is_at(2 + made)))
            assert seqs(history) == list(range(3, 3 + made))
        assert len(await log_of(one, room.id)) == 2 + made
    await connection.close()


async def test_unannounced_entries_are_found_by_comparing_heads(
    comparing: Hub, without_redis: Hub, room: Room, ada: User, bob: User
) -> None:
    async with comparing.follow(ada.id) as feed:
        sent = await without_redis.messages.send(room.id, ada.id, "in silence")
        assert seqs(await take(feed)) == [sent.seq]
        await without_redis.messages.edit(sent.id, "in silence!", by=ada.id)
        await without_redis.room_users.add(room.id, bob.id)
        assert seqs(await take(feed, 2)) == [sent.seq + 1, sent.seq + 2]


async def test_unannounced_entries_of_many_rooms_are_found_within_a_round(
    comparing: Hub, without_redis: Hub, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "MIN_PER_HEARTBEAT", 1)
    created = [await comparing.rooms.create(str(number), created_by=ada.id) for number in range(25)]
    async with comparing.follow(ada.id) as feed:
        await until_live(comparing)
        sent = [await without_redis.messages.send(room.id, ada.id, "in silence") for room in created]
        found = [event.message for event in await take(feed, len(sent)) if isinstance(event, MessageSent)]
        assert sorted(message.id for message in found) == sorted(message.id for message in sent)


@pytest.mark.parametrize(("number", "part"), [(0, 0), (1, 1), (100, 100), (101, 100), (1_500, 150), (1_501, 151)])
def test_heartbeat_compares_a_tenth_and_at_least_a_hundred(number: int, part: int) -> None:
    assert rooms.part_of_round(number) == part


async def test_process_without_redis_receives_all_events(
    comparing: Hub, without_redis: Hub, room: Room, ada: User
) -> None:
    async with without_redis.follow(ada.id, after={room.id: None}) as feed:
        sent = await comparing.messages.send(room.id, ada.id, "hello")
        own = await without_redis.messages.send(room.id, ada.id, "hello to you")
        assert seqs(await take(feed, 3)) == [1, sent.seq, own.seq]


async def test_unannounced_join_is_found_by_digest(
    comparing: Hub, without_redis: Hub, room: Room, ada: User, bob: User
) -> None:
    async with comparing.follow(bob.id) as feed:
        await without_redis.room_users.add(room.id, bob.id)
        (joined,) = await take(feed)
        assert isinstance(joined, MemberJoined)


async def test_unannounced_leave_and_rejoin_are_delivered(
    comparing: Hub, without_redis: Hub, room: Room, ada: User, bob: User
) -> None:
    """Whenever the memberships are read, Bob is in the same rooms as before."""
    await comparing.room_users.add(room.id, bob.id)
    async with comparing.follow(bob.id) as feed:
        for _ in range(3):
            async with without_redis.transaction() as tx:
                await tx.room_users.remove(room.id, bob.id)
                await tx.room_users.add(room.id, bob.id)
            left, joined = await take(feed, 2)
            assert isinstance(left, MemberLeft)
            assert isinstance(joined, MemberJoined)


async def test_follower_is_not_ended_by_late_read_leave_from_before_its_start(
    hub: Hub, without_redis: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id) as witness:
        async with without_redis.transaction() as tx:
            await tx.room_users.remove(room.id, bob.id)
            await tx.room_users.add(room.id, bob.id)
        async with hub.follow(bob.id) as feed:
            sent = await elsewhere.messages.send(room.id, ada.id, "welcome back")
            assert seqs(await take(witness, 3)) == [3, 4, 5]
            assert seqs(await take(feed)) == [sent.seq]


def payload(*messages: Message) -> bytes:
    return msgspec.json.encode({"from": "another", "messages": messages})


def signed(hub: Hub, *messages: Message) -> bytes:
    """The payload as a process of the same database signs it."""
    return sign(hub._feed._announcements._key, payload(*messages))


def forged(room: Room, user: User, seq: int, message_id: UUID | None = None) -> Message:
    now = room.created_at
    return Message(
        message_id or uuid4(), room.id, seq, user.id, "made up", MessageType.TEXT, False, now, now, None
    )


@pytest.fixture
async def publisher(connection: Connection) -> Connection:
    """A client of Redis that publishes its own announcements, as any client can."""
    return connection


async def test_repeated_reordered_and_misdirected_announcements_change_nothing(
    hub: Hub, without_redis: Hub, publisher: Connection, room: Room, ada: User
) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    async with hub.follow(ada.id) as feed:
        await until_live(hub)
        sent = [await without_redis.messages.send(room.id, ada.id, str(number)) for number in range(6)]
        foreign = await without_redis.messages.send(other.id, ada.id, "other")
        for announcement in (
            signed(hub, sent[3]),
            signed(hub, sent[0], sent[0]),
            signed(hub, foreign),
            signed(hub, sent[2], sent[1]),
        ):
            await publisher.execute("PUBLISH", room_channel(room.id), announcement)
            await publisher.execute("PUBLISH", room_channel(room.id), announcement)
        await publisher.execute("PUBLISH", room_channel(room.id), signed(hub, sent[5]))
        await publisher.execute("PUBLISH", room_channel(other.id), signed(hub, foreign))
        received = entries(await take(feed, 7))
        assert [event.seq for event in received if event.room_id == room.id] == [one.seq for one in sent]
        assert [event.seq for event in received if event.room_id == other.id] == [foreign.seq]


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


async def test_invalid_payload_on_the_channels_is_ignored(
    hub: Hub, elsewhere: Hub, publisher: Connection, room: Room, ada: User, caplog: pytest.LogCaptureFixture
) -> None:
    strange = forged(room, ada, 2)
    nonsense = [
        *NONSENSE,
        payload(msgspec.structs.replace(strange, seq=-1)),
        payload(msgspec.structs.replace(strange, seq=2**63)),
        payload(msgspec.structs.replace(strange, seq=2**64)),
        payload(msgspec.structs.replace(strange, created_at=strange.created_at.replace(tzinfo=None))),
        sign(hub._feed._announcements._key, payload(strange).replace(b'"text"', b'"smell"')),
    ]
    async with elsewhere.follow(ada.id) as feed:
        await until_live(elsewhere)
        for one in nonsense:
            await publisher.execute("PUBLISH", room_channel(room.id), one)
            await publisher.execute("PUBLISH", MEMBERSHIPS_CHANNEL, one)
        sent = await hub.messages.send(room.id, ada.id, "hello")
        assert seqs(await take(feed)) == [sent.seq]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_message_that_is_only_announced_is_not_delivered(
    hub: Hub, elsewhere: Hub, publisher: Connection, room: Room, ada: User
) -> None:
    forgery, foreign_key = forged(room, ada, 3), bytes(32)
    async with hub.follow(ada.id) as feed, elsewhere.follow(ada.id) as witness:
        await until_live(hub)
        async with await hub._subscriptions.subscribe(room_channel(room.id)) as announced:
            first = await elsewhere.messages.send(room.id, ada.id, "really")
            genuine = await anext(announced)
        assert isinstance(genuine, bytes)
        for announcement in (
            payload(forgery),
            sign(foreign_key, payload(forgery)),
            sign(b"", payload(forgery)),
            genuine.replace(b'"really"', b'"I quit"').replace(b'"seq":2', b'"seq":3'),
            genuine + b"}",
            payload(forgery)[:-1] + b"," + genuine[genuine.index(b'"seal"') :],
        ):
            await publisher.execute("PUBLISH", room_channel(room.id), announcement)
        last = await elsewhere.messages.send(room.id, ada.id, "the truth")
        for one in (feed, witness):
            received = entries(await take(one, 2))
            assert [event.message for event in received if isinstance(event, MessageSent)] == [first, last]


async def test_announced_messages_are_delivered_without_a_statement(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with elsewhere.follow(ada.id) as feed:
        await until_live(elsewhere)
        await until(lambda: elsewhere._feed._rooms._rooms[room.id].position.entry_hash != ANY_ENTRY)
        for part in (elsewhere._feed._rooms._logs, elsewhere._feed._followers.memberships):
            monkeypatch.setattr(part, "_executor", None)
        sent = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(20)]
        assert seqs(await take(feed, 20)) == [one.seq for one in sent]


async def test_announcement_far_ahead_of_the_log_is_read_once(
    hub: Hub, elsewhere: Hub, publisher: Connection, room: Room, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with elsewhere.follow(ada.id) as feed:
        await until_live(elsewhere)
        rooms, reads = elsewhere._feed._rooms, 0
        # The comparison after subscribing may find a message before its announcement.
        await until(lambda: rooms._rooms[room.id].position.entry_hash != ANY_ENTRY)
        really = rooms._logs.read

        async def read(*args: object) -> object:
            nonlocal reads
            reads += 1
            return await really(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(rooms._logs, "read", read)
        await publisher.execute("PUBLISH", room_channel(room.id), signed(hub, forged(room, ada, 1_000_000)))
        await until(lambda: reads > 0 and not rooms._reading)
        for number in range(10):
            sent = await hub.messages.send(room.id, ada.id, str(number))
            assert seqs(await take(feed)) == [sent.seq]
        # A comparison of heads may find a message before its announcement, and read once more.
        assert reads < 4


async def test_announced_message_of_a_lost_commit_gives_a_resync_at_the_next_heartbeat(
    comparing: Hub, publisher: Connection, room: Room, ada: User
) -> None:
    async with comparing.follow(ada.id) as feed:
        await until(lambda: comparing._subscriptions.is_live(room_channel(room.id).encode()))
        await publisher.execute("PUBLISH", room_channel(room.id), signed(comparing, forged(room, ada, 2)))
        forgery, resynced = await take(feed, 2)
        assert is_at(2)(forgery)
        assert resync(resynced).reason == "rewound"
        sent = await comparing.messages.send(room.id, ada.id, "the truth")
        assert sent.seq == 2
        assert seqs(await take(feed)) == [2]


async def test_announced_message_of_a_lost_commit_gives_a_resync_when_another_is_announced(
    hub: Hub, elsewhere: Hub, publisher: Connection, room: Room, ada: User
) -> None:
    async with elsewhere.follow(ada.id) as feed:
        await until_live(elsewhere)
        await publisher.execute("PUBLISH", room_channel(room.id), signed(hub, forged(room, ada, 2)))
        assert is_at(2)((await take(feed))[0])
        await hub.messages.send(room.id, ada.id, "the truth")
        (resynced,) = await take(feed)
        assert resync(resynced).reason == "rewound"
        async with hub.follow(ada.id, after={room.id: resync(resynced).cursor}) as again:
            sent = await hub.messages.send(room.id, ada.id, "more of it")
            assert seqs(await take(again)) == [sent.seq]


async def test_announcement_that_redis_refuses_is_counted_as_lost(
    settings: Settings, own_server: Server, room: Room, ada: User
) -> None:
    administrator = Connection(own_server.settings)
    await administrator.start()
    rules = ["on", ">quiet", "~*", "+@all", "resetchannels", "&memberships"]
    await administrator.execute("ACL", "SETUSER", "quiet", *rules)
    await administrator.close()
    recorded = Recording()
    redis = replace(own_server.settings, username="quiet", password="quiet")
    async with Hub(replace(settings, redis=redis), instrumentation=recorded) as hub:
        await hub.messages.send(room.id, ada.id, "not announced")
        await until(lambda: recorded.lost == 1)
        assert recorded.announced == 0

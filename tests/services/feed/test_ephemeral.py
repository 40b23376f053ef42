"""Typing, presence, read marks and profiles in a feed, for followers with these options, in their rooms."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec
import pytest

from hubbub import (
    Hub,
    Invalid,
    MemberJoined,
    MemberLeft,
    MessageSent,
    Missed,
    PresenceChanged,
    ProfileChanged,
    ReadMarkChanged,
    Room,
    Settings,
    TypingChanged,
    User,
)
from hubbub.events import MEMBERSHIPS_CHANNEL, PRESENCE_CHANNEL, room_channel, typing_channel
from hubbub.redis import Connection
from hubbub.services.feed.announcements import sign
from instrumentation.recording import Recording
from services.feed.conftest import NO_HEARTBEAT
from services.feed.reading import is_at, take, take_until, until_live
from waiting import until, until_it_answers


async def are_subscribed(administrator_of_redis: Connection, *channels: str) -> None:
    """Wait until each of the channels has a subscriber."""

    async def all_of_them() -> bool:
        reply = await administrator_of_redis.execute("PUBSUB", "NUMSUB", *channels)
        assert isinstance(reply, list)
        return all(reply[1::2])

    await until_it_answers(all_of_them)


async def is_unsubscribed(administrator_of_redis: Connection, channel: str) -> None:
    async def has_no_subscriber() -> bool:
        return await administrator_of_redis.execute("PUBSUB", "NUMSUB", channel) == [channel.encode(), 0]

    await until_it_answers(has_no_subscriber)


async def test_typing_is_delivered_among_the_messages_of_the_room(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id, typing=True) as feed:
        await are_subscribed(administrator_of_redis, typing_channel(room.id))
        await elsewhere.typing.start(room.id, bob.id)
        assert await take(feed) == [TypingChanged(room.id, bob.id, is_typing=True)]
        sent = await elsewhere.messages.send(room.id, bob.id, "there")
        events = await take(feed, 2)  # sending stops typing, in any order
        assert TypingChanged(room.id, bob.id, is_typing=False) in events
        assert [event.message for event in events if isinstance(event, MessageSent)] == [sent]


async def test_follower_that_did_not_ask_gets_no_typing_or_presence(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id) as quiet, hub.follow(ada.id, typing=True, presence=True) as asked:
        await are_subscribed(administrator_of_redis, typing_channel(room.id), PRESENCE_CHANNEL)
        await elsewhere.typing.start(room.id, bob.id)
        await take(asked)
        async with elsewhere.presence.online(bob.id):
            assert await take(asked) == [PresenceChanged(bob.id, is_online=True)]
            sent = await elsewhere.messages.send(room.id, ada.id, "hello")
            [event] = await take(quiet)
            assert isinstance(event, MessageSent)
            assert event.message == sent


async def test_presence_of_users_in_shared_rooms_is_delivered_once(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    second = await hub.rooms.create("second", created_by=ada.id)
    for one in (room, second):
        await hub.room_users.add(one.id, bob.id)
    stranger = await hub.users.create("eve@example.org", "eve", "!")
    async with hub.follow(ada.id, presence=True) as feed:
        await are_subscribed(administrator_of_redis, PRESENCE_CHANNEL)
        async with elsewhere.presence.online(stranger.id), elsewhere.presence.online(bob.id):
            assert await take(feed) == [PresenceChanged(bob.id, is_online=True)]
            sent = await hub.messages.send(room.id, ada.id, "hello")
            [event] = await take(feed)
            assert isinstance(event, MessageSent)
            assert event.message == sent


async def test_typing_is_subscribed_to_in_followed_rooms_alone(
    hub: Hub, administrator_of_redis: Connection, room: Room, ada: User
) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    async with hub.follow(ada.id, rooms=[room.id], typing=True):
        await are_subscribed(administrator_of_redis, typing_channel(room.id))
        assert await administrator_of_redis.execute("PUBSUB", "NUMSUB", typing_channel(other.id)) == [
            typing_channel(other.id).encode(),
            0,
        ]


async def test_subscriptions_end_with_the_last_follower_that_wants_them(
    hub: Hub, administrator_of_redis: Connection, room: Room, ada: User
) -> None:
    before = await administrator_of_redis.execute("PUBSUB", "NUMSUB", PRESENCE_CHANNEL)
    async with hub.follow(ada.id, typing=True, presence=True), hub.follow(ada.id, typing=True):
        await are_subscribed(administrator_of_redis, typing_channel(room.id), PRESENCE_CHANNEL)
    await is_unsubscribed(administrator_of_redis, typing_channel(room.id))
    assert await administrator_of_redis.execute("PUBSUB", "NUMSUB", PRESENCE_CHANNEL) == before
    assert not hub._feed._ephemeral._typing


async def test_leaving_a_room_ends_its_typing_subscription(
    hub: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(bob.id, typing=True) as feed:
        await are_subscribed(administrator_of_redis, typing_channel(room.id))
        await hub.room_users.remove(room.id, bob.id)
        await take(feed)
        await is_unsubscribed(administrator_of_redis, typing_channel(room.id))


async def test_removed_member_who_is_behind_gets_no_typing(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with (
        hub.follow(ada.id, typing=True) as member,
        hub.follow(bob.id, typing=True, buffer=2) as removed,
    ):
        await are_subscribed(administrator_of_redis, typing_channel(room.id))
        for number in range(5):
            await hub.messages.send(room.id, ada.id, str(number))
        await hub.room_users.remove(room.id, bob.id)
        await take(removed, 2)  # so that it has space again
        await take(member, 6)
        await elsewhere.typing.start(room.id, ada.id)
        assert await take(member) == [TypingChanged(room.id, ada.id, is_typing=True)]
        rest = await take(removed, 4)
    assert [type(event) for event in rest] == [MessageSent] * 3 + [MemberLeft]


async def test_removed_member_who_is_behind_gets_no_presence(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    """This holds until the user has joined again, however far the follower has read."""
    await hub.room_users.add(room.id, bob.id)
    async with (
        hub.follow(ada.id, presence=True) as member,
        hub.follow(bob.id, presence=True, buffer=3) as removed,
    ):
        await are_subscribed(administrator_of_redis, PRESENCE_CHANNEL)
        for number in range(5):
            await hub.messages.send(room.id, ada.id, str(number))
        await take(removed, 3)  # so that it has space again
        await take(member, 5)
        await elsewhere.realtime.publish_user_presence(ada.id, True)
        for one in (member, removed):  # including one that is behind and still a member
            assert await take(one) == [PresenceChanged(ada.id, is_online=True)]
        await hub.room_users.remove(room.id, bob.id)
        assert [type(event) for event in await take(member)] == [MemberLeft]
        await elsewhere.realtime.publish_user_presence(ada.id, False)
        assert await take(member) == [PresenceChanged(ada.id, is_online=False)]
        await hub.room_users.add(room.id, bob.id)
        await take(member)
        await elsewhere.realtime.publish_user_presence(ada.id, True)
        assert await take(member) == [PresenceChanged(ada.id, is_online=True)]
        assert await take(removed) == [PresenceChanged(ada.id, is_online=True)]
        assert [type(event) for event in await take(removed, 4)] == [
            *(MessageSent, MessageSent, MemberLeft, MemberJoined)
        ]


async def test_invalid_payload_and_full_buffer_drop_signals_alone(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id, typing=True, presence=True, buffer=2) as feed:
        await are_subscribed(administrator_of_redis, typing_channel(room.id), PRESENCE_CHANNEL)
        for payload in ("", "null", "[" * 10_000, '{"userId":"x","isTyping":true}', "\0"):
            for channel in (typing_channel(room.id), PRESENCE_CHANNEL):
                await administrator_of_redis.execute("PUBLISH", channel, payload)
        for number in range(10):
            await elsewhere.realtime.publish_typing_indicator(room.id, bob.id, number % 2 == 0)
        sent = await elsewhere.messages.send(room.id, bob.id, "a message is never dropped for typing")
        messages: list[MessageSent] = []
        while not messages:
            messages = [event for event in await take(feed) if isinstance(event, MessageSent)]
        assert [event.message for event in messages] == [sent]


async def test_typing_that_is_not_a_bool_is_refused(hub: Hub, ada: User) -> None:
    with pytest.raises(Invalid):
        hub.follow(ada.id, typing="yes")  # type: ignore[arg-type]  # as from a socket


async def join_many(hub: Hub, room: Room, count: int) -> list[User]:
    users = [await hub.users.create(f"user-{n}@example.org", f"user-{n}", "!") for n in range(count)]
    await hub.room_users.add_many(room.id, [user.id for user in users])
    return users


async def test_read_mark_reaches_own_devices_and_members_to_whom_the_room_shows_receipts(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with (
        hub.follow(bob.id, read_marks=True) as device,
        elsewhere.follow(bob.id, read_marks=True) as other_device,
        elsewhere.follow(ada.id, read_marks=True) as member,
        elsewhere.follow(ada.id) as quiet,
    ):
        await asyncio.gather(until_live(hub), until_live(elsewhere))
        sent = await hub.messages.send(room.id, ada.id, "hello")
        await hub.receipts.mark_read(room.id, bob.id, up_to=sent.seq)
        await hub.receipts.mark_read(room.id, bob.id, up_to=sent.seq)  # changes nothing
        await hub.receipts.mark_unread(room.id, bob.id, from_seq=sent.seq)
        last = await hub.messages.send(room.id, ada.id, "the last")
        for feed in (device, other_device, member):
            events = await take_until(feed, is_at(last.seq))
            if not any(isinstance(event, ReadMarkChanged) for event in events):
                events += await take(feed)
            marks = [event for event in events if isinstance(event, ReadMarkChanged)]
            assert {(mark.room_id, mark.user_id) for mark in marks} == {(room.id, bob.id)}
            assert marks[-1].last_read_seq in (sent.seq, sent.seq - 1)
        assert [event.message for event in await take(quiet, 2) if isinstance(event, MessageSent)] == [sent, last]


async def test_read_mark_reaches_own_devices_alone_where_the_room_keeps_no_receipts(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    await hub.rooms.update(room.id, keeps_receipts=False, by=ada.id)
    async with (
        elsewhere.follow(bob.id, read_marks=True) as device,
        elsewhere.follow(ada.id, read_marks=True) as member,
    ):
        await asyncio.gather(until_live(hub), until_live(elsewhere))
        sent = await hub.messages.send(room.id, ada.id, "hello")
        await hub.receipts.mark_read(room.id, bob.id, up_to=sent.seq)
        [first, mark] = await take(device, 2)
        assert isinstance(first, MessageSent)
        assert mark == ReadMarkChanged(room.id, bob.id, sent.seq)
        await hub.messages.send(room.id, ada.id, "next")
        assert all(isinstance(event, MessageSent) for event in await take(member, 2))


async def test_read_marks_of_one_commit_are_announced_together_and_after_it(
    settings: Settings, elsewhere: Hub, room: Room, ada: User
) -> None:
    recording = Recording()
    async with Hub(settings, options=NO_HEARTBEAT, instrumentation=recording) as hub:
        users = await join_many(hub, room, 10)
        async with elsewhere.follow(ada.id, read_marks=True) as feed:
            sent = await hub.messages.send(room.id, ada.id, "hello")
            assert len(await take(feed)) == 1
            with suppress(LookupError):
                async with hub.transaction() as transaction:
                    await transaction.receipts.mark_read(room.id, users[0].id, up_to=sent.seq)
                    raise LookupError
            announced = recording.announced
            async with hub.transaction() as transaction:
                for user in users:
                    await transaction.receipts.mark_read(room.id, user.id, up_to=sent.seq)
            marks = await take(feed, 10)
            assert sorted(marks, key=repr) == sorted(
                (ReadMarkChanged(room.id, user.id, sent.seq) for user in users), key=repr
            )
            await until(lambda: recording.announced > announced)
            assert recording.announced == announced + 1


async def test_profile_reaches_own_devices_and_users_who_share_a_room(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    stranger = await hub.users.create("stranger@example.org", "stranger", "!")
    await hub.room_users.add(room.id, bob.id)
    async with (
        elsewhere.follow(ada.id, profiles=True) as member,
        hub.follow(bob.id, profiles=True) as device,
        elsewhere.follow(stranger.id, profiles=True) as other,
    ):
        await asyncio.gather(until_live(hub), until_live(elsewhere))
        await hub.users.update_profile(bob.id, email="robert@example.org")  # other people do not see it
        await hub.users.update_profile(bob.id, username="robert", avatar_url="/robert.png")
        for feed in (member, device):
            assert await take(feed) == [ProfileChanged(bob.id, "robert", "/robert.png")]
        await hub.users.update_profile(bob.id, display_name="Robert", metadata={"team": "a"})
        for feed in (member, device):
            changed = ProfileChanged(bob.id, "robert", "/robert.png", "Robert", {"team": "a"})
            assert await take(feed) == [changed]
        await hub.users.update_profile(stranger.id, username="odd")
        assert await take(other) == [ProfileChanged(stranger.id, "odd", None)]


async def test_forged_read_mark_and_profile_are_ignored(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id, read_marks=True, profiles=True) as feed:
        mark = {"room_id": str(room.id), "user_id": str(bob.id), "last_read_seq": 9, "is_shown": True}
        profile = {"user_id": str(bob.id), "username": "ada", "avatar_url": None}
        payload = {"from": "x", "messages": [], "marks": [mark], "users": [], "profiles": [profile]}
        forged = msgspec.json.encode(payload)
        for channel in (room_channel(room.id), MEMBERSHIPS_CHANNEL):
            await administrator_of_redis.execute("PUBLISH", channel, forged)
            await administrator_of_redis.execute(
                "PUBLISH", channel, sign(b"a key of another database", msgspec.json.encode(payload))
            )
        await elsewhere.users.update_profile(bob.id, username="robert")
        sent = await elsewhere.messages.send(room.id, ada.id, "hello")
        await elsewhere.receipts.mark_read(room.id, bob.id, up_to=sent.seq)
        events = await take(feed, 3)
        assert ProfileChanged(bob.id, "robert", None) in events
        assert ReadMarkChanged(room.id, bob.id, sent.seq) in events


async def test_feed_of_a_new_client_has_no_missed_before_its_first_event(
    hub: Hub, elsewhere: Hub, room: Room, ada: User
) -> None:
    for _ in range(3):  # each time the first follower of the room in this process
        async with elsewhere.follow(ada.id, read_marks=True, profiles=True) as feed:
            await hub.users.update_profile(ada.id, display_name="Ada")
            sent = await hub.messages.send(room.id, ada.id, "hello")
            await hub.receipts.mark_read(room.id, ada.id, up_to=sent.seq)
            events = await take_until(feed, lambda event: isinstance(event, ReadMarkChanged))
            assert not any(isinstance(event, Missed) for event in events)


async def test_reader_that_is_too_slow_for_read_marks_gets_missed(
    hub: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id, read_marks=True, buffer=2) as feed:
        sent = [await hub.messages.send(room.id, bob.id, str(number)) for number in range(5)]
        for message in sent:
            await hub.receipts.mark_read(room.id, ada.id, up_to=message.seq)
        await until(lambda: feed.inbox.has_missed)
        events = await take_until(feed, lambda event: isinstance(event, Missed))
        assert not any(isinstance(event, ReadMarkChanged) for event in events)


async def test_read_mark_in_a_room_where_the_reader_is_behind_gives_missed(
    hub: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with (
        hub.follow(ada.id, read_marks=True, buffer=2) as feed,
        hub.follow(bob.id, read_marks=True) as own,
    ):
        sent = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(5)]
        await until(lambda: bool(feed.inbox.behind))
        await take(feed, 2)  # it has space again
        await hub.receipts.mark_read(room.id, bob.id, up_to=sent[0].seq)
        await take_until(own, lambda event: isinstance(event, ReadMarkChanged))
        events = await take(feed, 4)
        assert sorted(type(event).__name__ for event in events) == ["MessageSent"] * 3 + ["Missed"]
        await hub.receipts.mark_read(room.id, bob.id, up_to=sent[-1].seq)
        assert await take(feed) == [ReadMarkChanged(room.id, bob.id, sent[-1].seq)]

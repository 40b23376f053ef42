"""Typing and presence in a feed, for followers that want them, in the rooms that they follow."""

from __future__ import annotations

import pytest

from hubbub import Hub, Invalid, MemberJoined, MemberLeft, MessageSent, PresenceChanged, Room, TypingChanged, User
from hubbub.events import PRESENCE_CHANNEL, typing_channel
from hubbub.redis import Connection
from services.feed.reading import take
from waiting import until_it_answers


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
        events = await take(feed, 2)  # sending stops typing, in an order of its own
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
    assert not hub._feed._signals._typing


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
        await take(removed, 2)  # and has space again
        await take(member, 6)
        await elsewhere.typing.start(room.id, ada.id)
        assert await take(member) == [TypingChanged(room.id, ada.id, is_typing=True)]
        rest = await take(removed, 4)
    assert [type(event) for event in rest] == [MessageSent] * 3 + [MemberLeft]


async def test_removed_member_who_is_behind_gets_no_presence(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    """Until the user has joined again, however far the follower has read."""
    await hub.room_users.add(room.id, bob.id)
    async with (
        hub.follow(ada.id, presence=True) as member,
        hub.follow(bob.id, presence=True, buffer=3) as removed,
    ):
        await are_subscribed(administrator_of_redis, PRESENCE_CHANNEL)
        for number in range(5):
            await hub.messages.send(room.id, ada.id, str(number))
        await take(removed, 3)  # and has space again
        await take(member, 5)
        await elsewhere.realtime.publish_user_presence(ada.id, True)
        for one in (member, removed):  # also the one that is behind, and still a member
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

"""Typing and presence in a feed: for those who want them, in the rooms that they follow."""

from __future__ import annotations

import pytest

from hubbub import Hub, Invalid, MemberJoined, MemberLeft, MessageSent, PresenceChanged, Room, TypingChanged, User
from hubbub.events import PRESENCE_CHANNEL, typing_channel
from hubbub.redis import Connection
from services.feed.reading import take
from waiting import until_it_answers


async def are_heard(administrator_of_redis: Connection, *channels: str) -> None:
    """Wait until somebody is subscribed to each of the channels."""

    async def all_of_them() -> bool:
        reply = await administrator_of_redis.execute("PUBSUB", "NUMSUB", *channels)
        assert isinstance(reply, list)
        return all(reply[1::2])

    await until_it_answers(all_of_them)


async def is_heard_no_more(administrator_of_redis: Connection, channel: str) -> None:
    async def by_nobody() -> bool:
        return await administrator_of_redis.execute("PUBSUB", "NUMSUB", channel) == [channel.encode(), 0]

    await until_it_answers(by_nobody)


async def test_typing_comes_in_between_the_messages_of_the_room(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id, typing=True) as feed:
        await are_heard(administrator_of_redis, typing_channel(room.id))
        await elsewhere.typing.start(room.id, bob.id)
        assert await take(feed) == [TypingChanged(room.id, bob.id, is_typing=True)]
        sent = await elsewhere.messages.send(room.id, bob.id, "there")
        events = await take(feed, 2)  # sending stops typing, in an order of its own
        assert TypingChanged(room.id, bob.id, is_typing=False) in events
        assert [event.message for event in events if isinstance(event, MessageSent)] == [sent]


async def test_who_did_not_ask_hears_nothing_of_it(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id) as quiet, hub.follow(ada.id, typing=True, presence=True) as curious:
        await are_heard(administrator_of_redis, typing_channel(room.id), PRESENCE_CHANNEL)
        await elsewhere.typing.start(room.id, bob.id)
        await take(curious)
        async with elsewhere.presence.online(bob.id):
            assert await take(curious) == [PresenceChanged(bob.id, is_online=True)]
            sent = await elsewhere.messages.send(room.id, ada.id, "hello")
            [event] = await take(quiet)
            assert isinstance(event, MessageSent)
            assert event.message == sent


async def test_presence_is_of_those_who_share_a_room_and_comes_once(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    second = await hub.rooms.create("second", created_by=ada.id)
    for one in (room, second):
        await hub.room_users.add(one.id, bob.id)
    stranger = await hub.users.create("eve@example.org", "eve", "!")
    async with hub.follow(ada.id, presence=True) as feed:
        await are_heard(administrator_of_redis, PRESENCE_CHANNEL)
        async with elsewhere.presence.online(stranger.id), elsewhere.presence.online(bob.id):
            assert await take(feed) == [PresenceChanged(bob.id, is_online=True)]
            sent = await hub.messages.send(room.id, ada.id, "hello")
            [event] = await take(feed)
            assert isinstance(event, MessageSent)
            assert event.message == sent


async def test_only_the_rooms_that_are_followed_are_listened_to(
    hub: Hub, administrator_of_redis: Connection, room: Room, ada: User
) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    async with hub.follow(ada.id, rooms=[room.id], typing=True):
        await are_heard(administrator_of_redis, typing_channel(room.id))
        assert await administrator_of_redis.execute("PUBSUB", "NUMSUB", typing_channel(other.id)) == [
            typing_channel(other.id).encode(),
            0,
        ]


async def test_with_the_last_who_wants_them_the_subscriptions_go(
    hub: Hub, administrator_of_redis: Connection, room: Room, ada: User
) -> None:
    before = await administrator_of_redis.execute("PUBSUB", "NUMSUB", PRESENCE_CHANNEL)
    async with hub.follow(ada.id, typing=True, presence=True), hub.follow(ada.id, typing=True):
        await are_heard(administrator_of_redis, typing_channel(room.id), PRESENCE_CHANNEL)
    await is_heard_no_more(administrator_of_redis, typing_channel(room.id))
    assert await administrator_of_redis.execute("PUBSUB", "NUMSUB", PRESENCE_CHANNEL) == before
    assert not hub._feed._signals._typing


async def test_leaving_a_room_ends_its_typing(
    hub: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(bob.id, typing=True) as feed:
        await are_heard(administrator_of_redis, typing_channel(room.id))
        await hub.room_users.remove(room.id, bob.id)
        await take(feed)
        await is_heard_no_more(administrator_of_redis, typing_channel(room.id))


async def test_who_was_removed_and_has_not_read_so_far_hears_no_typing(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with (
        hub.follow(ada.id, typing=True) as member,
        hub.follow(bob.id, typing=True, buffer=2) as removed,
    ):
        await are_heard(administrator_of_redis, typing_channel(room.id))
        for number in range(5):
            await hub.messages.send(room.id, ada.id, str(number))
        await hub.room_users.remove(room.id, bob.id)
        await take(removed, 2)  # and has space again
        await take(member, 6)
        await elsewhere.typing.start(room.id, ada.id)
        assert await take(member) == [TypingChanged(room.id, ada.id, is_typing=True)]
        rest = await take(removed, 4)
    assert [type(event) for event in rest] == [MessageSent] * 3 + [MemberLeft]


async def test_who_was_removed_and_has_not_read_so_far_hears_no_presence(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    """Until they have joined again, however far they have read."""
    await hub.room_users.add(room.id, bob.id)
    async with (
        hub.follow(ada.id, presence=True) as member,
        hub.follow(bob.id, presence=True, buffer=3) as removed,
    ):
        await are_heard(administrator_of_redis, PRESENCE_CHANNEL)
        for number in range(5):
            await hub.messages.send(room.id, ada.id, str(number))
        await take(removed, 3)  # and has space again
        await take(member, 5)
        await elsewhere.realtime.publish_user_presence(ada.id, True)
        for one in (member, removed):  # who is behind, and still a member
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


async def test_what_is_no_event_and_a_full_buffer_hurt_nobody(
    hub: Hub, elsewhere: Hub, administrator_of_redis: Connection, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(ada.id, typing=True, presence=True, buffer=2) as feed:
        await are_heard(administrator_of_redis, typing_channel(room.id), PRESENCE_CHANNEL)
        for payload in ("", "null", "[" * 10_000, '{"userId":"x","isTyping":true}', "\0"):
            await elsewhere.realtime.publish(typing_channel(room.id), payload)
            await elsewhere.realtime.publish(PRESENCE_CHANNEL, payload)
        for number in range(10):
            await elsewhere.realtime.publish_typing_indicator(room.id, bob.id, number % 2 == 0)
        sent = await elsewhere.messages.send(room.id, bob.id, "a message is never dropped for typing")
        messages: list[MessageSent] = []
        while not messages:
            messages = [event for event in await take(feed) if isinstance(event, MessageSent)]
        assert [event.message for event in messages] == [sent]


async def test_what_is_asked_for_is_true_or_false(hub: Hub, ada: User) -> None:
    with pytest.raises(Invalid):
        hub.follow(ada.id, typing="yes")  # type: ignore[arg-type]  # as from a socket

"""Every kind of event, live in its own process and in another one, and when a follower catches up."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import msgspec
import pytest

from hubbub import FeedEvent, Hub, Invalid, MessageSent, NewMessage, NotAMember, Role, Room, User, events
from hubbub.services.feed import Follower
from services.feed.reading import entries, is_at, log_of, seqs, take, take_until


async def do_everything(hub: Hub, room: Room, ada: User, bob: User) -> int:
    """Append thirteen entries to the log. Returns the head."""
    first = await hub.messages.send(room.id, ada.id, "one")
    await hub.room_users.add(room.id, bob.id)
    answer = await hub.messages.send(room.id, bob.id, "two", reply_to=first.id, metadata={"mood": "glad"})
    await hub.messages.edit(answer.id, "two!", by=bob.id)
    await hub.room_users.set_role(room.id, bob.id, Role.MODERATOR)
    await hub.room_users.update(room.id, bob.id, metadata={"nickname": "bobby"})
    await hub.messages.delete(first.id, by=bob.id)
    await hub.rooms.update(room.id, name="the bridge", description="", is_private=True, by=ada.id)
    await hub.room_users.remove(room.id, bob.id)
    async with hub.transaction() as tx:
        await tx.room_users.add(room.id, bob.id, Role.ADMIN)
        await tx.messages.send(room.id, bob.id, "back")
    await hub.messages.send_many(room.id, ada.id, [NewMessage("three"), NewMessage("four")])
    return (await hub.rooms.get(room.id)).last_seq


KINDS = [
    "MessageSent",
    "MemberJoined",
    "MessageSent",
    "MessageEdited",
    "RoleChanged",
    "MemberChanged",
    "MessageDeleted",
    "RoomChanged",
    "MemberLeft",
    "MemberJoined",
    "MessageSent",
    "MessageSent",
    "MessageSent",
]


def test_every_kind_of_event_is_tested_here() -> None:
    assert set(KINDS) == {event.__name__ for event in events.KINDS.values()}


async def test_live_and_late_followers_in_both_processes_receive_every_kind_of_event(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    async with hub.follow(ada.id) as near, elsewhere.follow(ada.id) as far:
        head = await do_everything(hub, room, ada, bob)
        received = [await take_until(feed, is_at(head)) for feed in (near, far)]
    for history in received:
        assert [type(event).__name__ for event in history] == KINDS
        assert seqs(history) == list(range(2, head + 1))
    stored = (await log_of(hub, room.id))[1:]
    async with elsewhere.follow(ada.id, after={room.id: None}) as late:
        caught_up = (await take(late, head))[1:]
    assert caught_up == stored
    for history in received:
        assert [but_for_content(event) for event in history] == [but_for_content(event) for event in stored]


def but_for_content(event: FeedEvent) -> FeedEvent:
    """The events without those parts of a message that a later edit or deletion changes."""
    if not isinstance(event, MessageSent | events.MessageEdited | events.MessageDeleted):
        return event
    message = msgspec.structs.replace(
        event.message,
        content="",
        is_edited=False,
        updated_at=event.message.created_at,
        deleted_at=None,
        metadata=None,
    )
    return msgspec.structs.replace(event, message=message)


async def test_event_carries_the_change(hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User) -> None:
    async with elsewhere.follow(ada.id) as feed:
        await do_everything(hub, room, ada, bob)
        received = entries(await take(feed, len(KINDS)))
    assert all(event.room_id == room.id and event.at.tzinfo is not None for event in received)
    sent, joined, answered, edited, promoted, tagged, deleted, changed, left, rejoined, *_ = received
    assert isinstance(sent, events.MessageSent)
    assert sent.cursor == sent.message.cursor
    assert isinstance(joined, events.MemberJoined)
    assert (joined.user_id, joined.role) == (bob.id, Role.MEMBER)
    assert isinstance(answered, events.MessageSent)
    assert (answered.message.reply_to, answered.message.metadata) == (sent.message.id, {"mood": "glad"})
    assert isinstance(edited, events.MessageEdited)
    assert (edited.by, edited.message.content, edited.message.id) == (bob.id, "two!", answered.message.id)
    assert isinstance(promoted, events.RoleChanged)
    assert (promoted.user_id, promoted.role) == (bob.id, Role.MODERATOR)
    assert isinstance(tagged, events.MemberChanged)
    assert (tagged.user_id, tagged.metadata) == (bob.id, {"nickname": "bobby"})
    assert isinstance(deleted, events.MessageDeleted)
    assert (deleted.by, deleted.message.content) == (bob.id, "")
    assert deleted.message.deleted_at is not None
    assert isinstance(changed, events.RoomChanged)
    assert (changed.by, changed.name, changed.description, changed.is_private) == (
        ada.id,
        "the bridge",
        None,
        True,
    )
    assert isinstance(left, events.MemberLeft)
    assert left.user_id == bob.id
    assert isinstance(rejoined, events.MemberJoined)
    assert rejoined.role is Role.ADMIN


async def test_every_event_survives_json_with_its_type(hub: Hub, room: Room, ada: User, bob: User) -> None:
    await do_everything(hub, room, ada, bob)
    found = await log_of(hub, room.id)
    cursor = entries(found)[-1].cursor
    found += [events.Resync(room.id, cursor, "rewound"), events.RoomGone(room.id)]
    tags = [msgspec.json.decode(msgspec.json.encode(event))["type"] for event in found]
    assert set(tags) == {kind.__struct_config__.tag for kind in events.KINDS.values()} | {"room_gone", "resync"}
    assert msgspec.json.decode(msgspec.json.encode(found), type=list[FeedEvent]) == found


async def test_direct_room_is_followed_from_its_creation(hub: Hub, elsewhere: Hub, ada: User, bob: User) -> None:
    async with elsewhere.follow(bob.id) as feed:
        direct = await hub.rooms.direct(ada.id, bob.id)
        await hub.messages.send(direct.id, ada.id, "psst")
        *joinings, sent = entries(await take_until(feed, lambda event: isinstance(event, MessageSent)))
    assert bob.id in [event.user_id for event in joinings if isinstance(event, events.MemberJoined)]
    assert sent.room_id == direct.id


async def test_rolled_back_transaction_delivers_nothing(hub: Hub, room: Room, ada: User) -> None:
    async def give_up() -> None:
        async with hub.transaction() as tx:
            await tx.messages.send(room.id, ada.id, "never")
            raise ZeroDivisionError

    async with hub.follow(ada.id) as feed:
        with pytest.raises(ZeroDivisionError):
            await give_up()
        sent = await hub.messages.send(room.id, ada.id, "always")
        assert entries(await take(feed))[0].cursor == sent.cursor


async def test_retried_send_is_delivered_once(hub: Hub, elsewhere: Hub, room: Room, ada: User) -> None:
    async with hub.follow(ada.id) as near, elsewhere.follow(ada.id) as far:
        first = await hub.messages.send(room.id, ada.id, "once", id=uuid4())
        for one in (hub, elsewhere, hub):
            assert await one.messages.send(room.id, ada.id, "once", id=first.id) == first
        last = await elsewhere.messages.send(room.id, ada.id, "then")
        for feed in (near, far):
            assert seqs(await take(feed, 2)) == [first.seq, last.seq]


async def test_follower_of_many_rooms_receives_each_log_in_order(
    hub: Hub, elsewhere: Hub, ada: User, bob: User
) -> None:
    rooms = [await hub.rooms.create(f"room {number}", created_by=ada.id) for number in range(5)]
    for one in rooms:
        await hub.room_users.add(one.id, bob.id)

    async def send_twenty(one: Hub, target: Room, user: User) -> None:
        for number in range(20):
            await one.messages.send(target.id, user.id, str(number))

    async with hub.follow(ada.id) as near, elsewhere.follow(bob.id) as far:
        await asyncio.gather(
            *(send_twenty(hub, target, ada) for target in rooms),
            *(send_twenty(elsewhere, target, bob) for target in rooms),
        )
        for feed in (near, far):
            received = entries(await take(feed, 200))
            for target in rooms:
                assert [event.seq for event in received if event.room_id == target.id] == list(range(3, 43))


async def test_follow_refuses_invalid_arguments(hub: Hub, room: Room, ada: User, bob: User) -> None:
    elsewhere = await hub.rooms.create("elsewhere", created_by=bob.id)
    message = await hub.messages.send(elsewhere.id, bob.id, "hello")
    for wrong in ({room.id: "no cursor"}, {room.id: message.cursor}, {room.id: ""}):
        with pytest.raises(Invalid, match="after"):
            hub.follow(ada.id, after=wrong)
    with pytest.raises(Invalid, match="not among the rooms"):
        hub.follow(ada.id, after={room.id: None}, rooms=[])
    with pytest.raises(Invalid, match="at most 10000 cursors"):
        hub.follow(ada.id, after={uuid4(): None for _ in range(10_001)})
    for buffer in (0, -1, 100_001):
        with pytest.raises(Invalid, match="buffer"):
            hub.follow(ada.id, buffer=buffer)
    strange: list[Follower] = [
        hub.follow(ada.id, rooms=[elsewhere.id]),
        hub.follow(ada.id, rooms=[uuid4()]),
        hub.follow(uuid4(), rooms=[room.id]),
    ]
    for feed in strange:
        with pytest.raises(NotAMember):
            await feed.__aenter__()
        assert feed.is_closed

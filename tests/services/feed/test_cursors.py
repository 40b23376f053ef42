"""The cursors of a feed, including those of quiet rooms, and the events of a client that returns with them."""

from __future__ import annotations

from hubbub import Hub, MemberJoined, MessageSent, Options, Room, RoomGone, Settings, User
from hubbub.postgres import Pool
from services.feed.reading import entries, log_of, resync, seqs, take
from services.feed.test_rewound import rewind


async def test_client_that_received_nothing_misses_nothing(hub: Hub, room: Room, ada: User, bob: User) -> None:
    quiet = await hub.rooms.create("quiet", created_by=ada.id)
    await hub.messages.send(room.id, ada.id, "old")
    async with hub.follow(ada.id) as feed:
        inside = feed.cursors
    assert inside == feed.cursors
    assert inside == {one.id: entries(await log_of(hub, one.id))[-1].cursor for one in (room, quiet)}
    sent = [await hub.messages.send(one.id, ada.id, "away") for one in (quiet, room, quiet)]
    async with hub.follow(ada.id, after=feed.cursors) as again:
        received = entries(await take(again, 3))
        assert {event.cursor for event in received} == {one.cursor for one in sent}
        assert again.cursors == {quiet.id: sent[2].cursor, room.id: sent[1].cursor}


async def test_cursors_move_with_read_events(hub: Hub, room: Room, ada: User) -> None:
    """Events that wait in the buffer do not move them."""
    async with hub.follow(ada.id, after={room.id: None}) as feed:
        sent = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(3)]
        (first,) = entries(await take(feed))
        assert first.seq == 1
        for message in [None, *sent]:
            assert feed.cursors == {room.id: message.cursor if message else first.cursor}
            if message is not sent[-1]:
                await take(feed)
    assert feed.cursors == {room.id: sent[-1].cursor}


async def test_end_of_a_room_takes_its_cursor_once_it_was_read(hub: Hub, room: Room, ada: User, bob: User) -> None:
    gone = await hub.rooms.create("gone", created_by=ada.id)
    for one in (room, gone):
        await hub.room_users.add(one.id, bob.id)
    async with hub.follow(bob.id) as feed:
        started = feed.cursors
        assert started.keys() == {room.id, gone.id}
        await hub.room_users.remove(room.id, bob.id)
        await hub.rooms.delete(gone.id)
        waiting = feed.cursors
        assert waiting == started
        await take(feed, 2)
        assert feed.cursors == {}
    async with hub.follow(bob.id, after=started) as again:
        assert again.cursors == started
        assert {event.room_id for event in await take(again, 2) if isinstance(event, RoomGone)} == started.keys()
        assert again.cursors == {}


async def test_room_joined_while_away_begins_with_the_joining(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(bob.id) as feed:
        pass
    direct = await hub.rooms.direct(ada.id, bob.id)
    await hub.messages.send(direct.id, ada.id, "first")
    known = await hub.messages.send(room.id, ada.id, "known")
    async with elsewhere.follow(bob.id, after=feed.cursors) as again:
        received = entries(await take(again, 3))
        of_direct = [event for event in received if event.room_id == direct.id]
        assert [type(event) for event in of_direct] == [MemberJoined, MessageSent]
        assert [event.cursor for event in received if event.room_id == room.id] == [known.cursor]


async def test_long_room_joined_while_away_gives_a_resync(
    settings: Settings, hub: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with Hub(settings, options=Options(follow_at_most_behind=3)) as strict:
        async with strict.follow(bob.id) as feed:
            pass
        other = await hub.rooms.create("other", created_by=ada.id)
        await hub.room_users.add(other.id, bob.id)
        sent = [await hub.messages.send(other.id, ada.id, str(number)) for number in range(4)]
        async with strict.follow(bob.id, after=feed.cursors) as again:
            (event,) = await take(again)
            assert (resync(event).reason, resync(event).cursor) == ("too_far_behind", sent[-1].cursor)


async def test_old_room_without_a_cursor_starts_at_its_end(hub: Hub, room: Room, ada: User) -> None:
    quiet = await hub.rooms.create("quiet", created_by=ada.id)
    cursor = (await hub.messages.send(room.id, ada.id, "newest")).cursor
    async with hub.follow(ada.id, after={room.id: cursor}) as feed:
        live = await hub.messages.send(quiet.id, ada.id, "live")
        assert seqs(await take(feed)) == [live.seq]


async def test_quiet_room_that_was_rewound_while_away_gives_a_resync(
    hub: Hub, pool: Pool, room: Room, ada: User
) -> None:
    await hub.messages.send(room.id, ada.id, "lost")
    async with hub.follow(ada.id) as feed:
        pass
    await rewind(pool, room.id, 1)
    async with hub.follow(ada.id, after=feed.cursors) as again:
        assert resync(*await take(again)).reason == "rewound"

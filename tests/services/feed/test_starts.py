"""The starting point of a follower, and its rooms while memberships begin and end."""

from __future__ import annotations

import pytest

from hubbub import (
    Hub,
    MemberJoined,
    MemberLeft,
    MessageSent,
    Options,
    Room,
    RoomGone,
    Settings,
    User,
)
from hubbub.postgres import Pool, Statement
from hubbub.repositories.messages import entry_of
from hubbub.services.feed import rooms
from services.feed.reading import entries, is_at, resync, seqs, take, take_until

DELETE_USER = Statement("test.delete_user", int, "DELETE FROM users WHERE id = $1")


async def test_follower_without_cursor_starts_at_the_head(hub: Hub, room: Room, ada: User) -> None:
    await hub.messages.send(room.id, ada.id, "before")
    async with hub.follow(ada.id) as feed:
        sent = await hub.messages.send(room.id, ada.id, "after")
        assert seqs(await take(feed)) == [sent.seq]


async def test_cursor_of_event_message_or_page_is_a_starting_point(hub: Hub, room: Room, ada: User) -> None:
    sent = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(5)]
    page = await hub.messages.since(room.id, None, limit=3)
    for after in (sent[1].cursor, entries(list(page.items))[-1].cursor, page.cursor):
        async with hub.follow(ada.id, after={room.id: after}) as feed:
            assert seqs(await take(feed, 3)) == [4, 5, 6]
    async with hub.follow(ada.id, after={room.id: None}) as feed:
        assert seqs(await take(feed, 6)) == [1, 2, 3, 4, 5, 6]
    async with hub.follow(ada.id, after={room.id: sent[-1].cursor}) as feed:
        live = await hub.messages.send(room.id, ada.id, "live")
        assert seqs(await take(feed)) == [live.seq]


async def test_each_room_starts_at_its_own_cursor(hub: Hub, room: Room, ada: User) -> None:
    second, third = [await hub.rooms.create(name, created_by=ada.id) for name in ("second", "third")]
    for number in range(3):
        for one in (room, second, third):
            await hub.messages.send(one.id, ada.id, str(number))
    cursor = (await hub.messages.since(second.id, None, limit=2)).cursor
    async with hub.follow(ada.id, after={room.id: None, second.id: cursor}) as feed:
        live = await hub.messages.send(third.id, ada.id, "live")
        received = entries(await take(feed, 4 + 2 + 1))
    assert [event.seq for event in received if event.room_id == room.id] == [1, 2, 3, 4]
    assert [event.seq for event in received if event.room_id == second.id] == [3, 4]
    assert [event.seq for event in received if event.room_id == third.id] == [live.seq]


async def test_follower_with_rooms_receives_these_alone(hub: Hub, room: Room, ada: User) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    async with hub.follow(ada.id, rooms=[room.id]) as feed, hub.follow(ada.id, rooms=[]) as empty:
        for one in (other, await hub.rooms.create("later", created_by=ada.id), room):
            await hub.messages.send(one.id, ada.id, "hello")
        (event,) = entries(await take(feed))
        assert event.room_id == room.id
        assert not empty.inbox.events
        assert not empty.inbox.behind


async def test_cursor_too_far_behind_gives_a_resync_and_then_new_entries(
    settings: Settings, hub: Hub, room: Room, ada: User
) -> None:
    sent = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(6)]
    async with Hub(settings, options=Options(follow_at_most_behind=4)) as strict:
        async with strict.follow(ada.id, after={room.id: sent[1].cursor}) as feed:
            assert seqs(await take(feed, 4)) == [4, 5, 6, 7]
        async with strict.follow(ada.id, after={room.id: sent[0].cursor}) as feed:
            (event,) = await take(feed)
            assert (resync(event).reason, resync(event).cursor) == ("too_far_behind", sent[-1].cursor)
            live = await strict.messages.send(room.id, ada.id, "live")
            assert seqs(await take(feed)) == [live.seq]
        async with strict.follow(ada.id, after={room.id: None}) as feed:
            assert seqs(await take(feed, 8)) == list(range(1, 9))


async def test_membership_that_ended_before_reading_is_delivered_and_nothing_after(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    """Only a member may start a follower, so the membership ends between its start and the first read."""
    await hub.room_users.add(room.id, bob.id)
    cursor = (await hub.messages.since(room.id, None)).cursor
    sent = await hub.messages.send(room.id, ada.id, "for bob")
    async with elsewhere.follow(bob.id, after={room.id: cursor}) as feed:
        await hub.room_users.remove(room.id, bob.id)
        await hub.messages.send(room.id, ada.id, "not for bob")
        own = await hub.rooms.create("of bob", created_by=bob.id)
        received = await take_until(feed, is_at(1, own.id))
    assert seqs(received[:-1]) == [sent.seq, sent.seq + 1]
    assert isinstance(received[-2], MemberLeft)
    assert isinstance(received[-1], MemberJoined)


@pytest.mark.parametrize("entries_between", [0, 2])
async def test_removed_member_who_is_behind_gets_no_edit_from_after_the_removal(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User, entries_between: int
) -> None:
    """A follower with a small buffer reads small pages, which do not reach the removal."""
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(bob.id, buffer=1) as small, hub.follow(bob.id, buffer=3) as large:
        sent = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(7)]
        before = await hub.messages.edit(sent[4].id, "before", by=ada.id)
        for _ in range(entries_between):
            await hub.messages.send(room.id, ada.id, "between")
        await hub.room_users.remove(room.id, bob.id)
        after = await hub.messages.edit(sent[5].id, "after", by=ada.id)
        for feed in (small, large):
            received = await take_until(feed, lambda event: isinstance(event, MemberLeft))
            messages = {event.message.id: event.message for event in received if isinstance(event, MessageSent)}
            assert seqs(received) == list(range(sent[0].seq, sent[0].seq + 9 + entries_between))
            assert messages[sent[4].id] == before
            withheld = messages[sent[5].id]
            assert (withheld.content, withheld.metadata, withheld.deleted_at) == ("", None, after.updated_at)
    async with elsewhere.follow(ada.id, after={room.id: None}) as member:
        received = await take_until(member, is_at(sent[5].seq))
        assert isinstance(received[-1], MessageSent)
        assert received[-1].message == after


@pytest.mark.parametrize("page", [2, 500])
async def test_live_member_gets_no_edit_from_after_an_unannounced_removal(
    comparing: Hub,
    without_redis: Hub,
    room: Room,
    ada: User,
    bob: User,
    page: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The room reads the message, the removal and the edit at once, or in several pages."""
    monkeypatch.setattr(rooms, "LOG_PAGE", page)
    await comparing.room_users.add(room.id, bob.id)
    for number in range(5):
        async with comparing.follow(bob.id) as removed, comparing.follow(ada.id) as member:
            async with without_redis.transaction() as tx:
                sent = await tx.messages.send(room.id, ada.id, "before")
                await tx.messages.send(room.id, ada.id, str(number))
                await tx.room_users.remove(room.id, bob.id)
                edited = await tx.messages.edit(sent.id, "after", by=ada.id)
            received = await take_until(removed, lambda event: isinstance(event, MemberLeft))
            assert seqs(received) == [sent.seq, sent.seq + 1, sent.seq + 2]
            assert isinstance(received[0], MessageSent)
            assert received[0].message.content == ""
            assert received[0].message.deleted_at is not None
            (first, *_) = await take(member, 4)
            assert first == entry_of(edited).event
        await comparing.room_users.add(room.id, bob.id)


async def test_entries_between_leave_and_rejoin_are_not_delivered(
    hub: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    cursor = (await hub.messages.since(room.id, None)).cursor
    await hub.messages.send(room.id, ada.id, "3")
    for _ in range(2):
        await hub.room_users.remove(room.id, bob.id)
        await hub.messages.send(room.id, ada.id, "not for bob")
        await hub.rooms.update(room.id, description="without bob", by=ada.id)
        await hub.rooms.update(room.id, description="with bob", by=ada.id)
        await hub.room_users.add(room.id, bob.id)
    last = await hub.messages.send(room.id, ada.id, "14")
    for buffer in (1, 2, 1_000):
        async with hub.follow(bob.id, after={room.id: cursor}, buffer=buffer) as feed:
            assert seqs(await take_until(feed, is_at(last.seq))) == [3, 4, 8, 9, 13, 14]


async def test_removal_ends_the_room_and_rejoin_begins_it_again(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    async with hub.follow(bob.id) as near, elsewhere.follow(bob.id) as far:
        for _ in range(3):
            await elsewhere.room_users.add(room.id, bob.id)
            for feed in (near, far):
                assert isinstance((await take(feed))[0], MemberJoined)
            message = await hub.messages.send(room.id, ada.id, "for bob")
            await hub.room_users.remove(room.id, bob.id)
            await elsewhere.messages.send(room.id, ada.id, "not for bob")
            for feed in (near, far):
                sent, left = await take(feed, 2)
                assert isinstance(sent, MessageSent)
                assert sent.seq == message.seq
                assert isinstance(left, MemberLeft)


async def test_leave_of_another_member_ends_nothing(hub: Hub, room: Room, ada: User, bob: User) -> None:
    async with hub.follow(ada.id) as feed:
        await hub.room_users.add(room.id, bob.id)
        await hub.room_users.remove(room.id, bob.id)
        await hub.messages.send(room.id, ada.id, "still here")
        assert seqs(await take(feed, 3)) == [2, 3, 4]


async def test_follower_of_user_without_rooms_receives_the_first_join(
    hub: Hub, elsewhere: Hub, room: Room, bob: User
) -> None:
    async with hub.follow(bob.id) as feed:
        await elsewhere.room_users.add(room.id, bob.id)
        (joined,) = await take(feed)
        assert isinstance(joined, MemberJoined)


async def test_follower_with_rooms_receives_a_rejoin(hub: Hub, room: Room, ada: User, bob: User) -> None:
    await hub.room_users.add(room.id, bob.id)
    other = await hub.rooms.create("other", created_by=ada.id)
    async with hub.follow(bob.id, rooms=[room.id]) as feed:
        await hub.room_users.remove(room.id, bob.id)
        await hub.room_users.add(other.id, bob.id)
        await hub.room_users.add(room.id, bob.id)
        left, joined = await take(feed, 2)
        assert isinstance(left, MemberLeft)
        assert isinstance(joined, MemberJoined)
        assert joined.room_id == room.id


async def test_deleted_room_is_gone_in_both_processes_and_while_behind(
    hub: Hub, comparing: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with (
        hub.follow(ada.id) as near,
        comparing.follow(bob.id) as far,
        comparing.follow(ada.id, after={room.id: None}) as behind,
    ):
        await hub.rooms.delete(room.id)
        for feed in (near, far, behind):
            events = await take_until(feed, lambda event: isinstance(event, RoomGone))
            assert events[-1] == RoomGone(room.id)
            assert not feed.positions


async def test_deleted_account_leaves_every_room_and_its_followers_end(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User
) -> None:
    other = await hub.rooms.create("other", created_by=bob.id)
    await hub.room_users.add(room.id, bob.id)
    await hub.room_users.add(other.id, ada.id)
    async with elsewhere.follow(ada.id) as feed, elsewhere.follow(bob.id) as own:
        await hub.users.delete(bob.id)
        ends = entries(await take(feed, 2))
        left = [event async for event in own]
    assert all(isinstance(event, MemberLeft) and event.user_id == bob.id for event in ends)
    assert {event.room_id for event in ends} == {room.id, other.id}
    assert all(isinstance(event, MemberLeft) for event in left)  # events from before the end


@pytest.mark.one_server("a foreign key keeps the account of a member there")
async def test_account_deleted_by_sql_ends_its_feed_and_no_other(
    comparing: Hub, pool: Pool, room: Room, ada: User, bob: User
) -> None:
    """An account that is deleted by SQL loses its memberships without an entry in a log."""
    await comparing.room_users.add(room.id, bob.id)
    async with comparing.follow(bob.id) as feed, comparing.follow(ada.id) as other:
        await pool.execute(DELETE_USER, bob.id)
        assert [event async for event in feed] in ([], [RoomGone(room.id)])
        sent = await comparing.messages.send(room.id, ada.id, "still here")
        assert seqs(await take(other)) == [sent.seq]


async def test_rooms_left_or_deleted_while_away_are_gone_and_others_go_on(
    hub: Hub, room: Room, ada: User, bob: User
) -> None:
    left, deleted = [await hub.rooms.create(name, created_by=ada.id) for name in ("left", "deleted")]
    for one in (room, left, deleted):
        await hub.room_users.add(one.id, bob.id)
    after = {one.id: (await hub.messages.since(one.id, None)).cursor for one in (room, left, deleted)}
    await hub.room_users.remove(left.id, bob.id)
    await hub.rooms.delete(deleted.id)
    sent = await hub.messages.send(room.id, ada.id, "still here")
    async with hub.follow(bob.id, after=after) as feed:
        gone = await take(feed, 2)
        assert {event.room_id for event in gone if isinstance(event, RoomGone)} == {left.id, deleted.id}
        assert seqs(await take(feed)) == [sent.seq]


async def recreate(hub: Hub, room: Room, ada: User, bob: User) -> list[int]:
    """Create the room again with the same id. Returns the seqs of its log."""
    await hub.rooms.create("again", created_by=ada.id, id=room.id)
    await hub.room_users.add(room.id, bob.id)
    return [1, 2, (await hub.messages.send(room.id, ada.id, "new")).seq]


@pytest.mark.parametrize("before", [0, 1, 10])
async def test_room_made_again_under_its_id_is_followed_from_the_joining(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User, before: int
) -> None:
    """Even if the old log was longer, and more than once."""
    await hub.room_users.add(room.id, bob.id)
    for number in range(before):
        await hub.messages.send(room.id, ada.id, str(number))
    async with hub.follow(bob.id) as here, elsewhere.follow(bob.id) as there:
        for _ in range(2):
            await hub.rooms.delete(room.id)
            for feed in (here, there):
                assert await take(feed) == [RoomGone(room.id)]
            _, joined, sent = await recreate(hub, room, ada, bob)
            for feed in (here, there):
                assert seqs(await take(feed, 2)) == [joined, sent]


@pytest.mark.parametrize("before", [0, 1, 10])
async def test_room_made_again_after_the_user_left_it_gives_a_resync(
    hub: Hub, elsewhere: Hub, room: Room, ada: User, bob: User, before: int
) -> None:
    await hub.room_users.add(room.id, bob.id)
    for number in range(before):
        await hub.messages.send(room.id, ada.id, str(number))
    async with hub.follow(bob.id) as here, elsewhere.follow(bob.id) as there:
        await hub.room_users.remove(room.id, bob.id)
        for feed in (here, there):
            assert isinstance((await take(feed))[0], MemberLeft)
        await hub.rooms.delete(room.id)
        await recreate(hub, room, ada, bob)
        for feed in (here, there):
            assert resync(*await take(feed)).reason == "rewound"
        live = await hub.messages.send(room.id, ada.id, "live")
        for feed in (here, there):
            assert (await take_until(feed, is_at(live.seq)))[-1] == entry_of(live).event


async def test_cursor_of_own_leave_starts_at_the_rejoin(
    hub: Hub, comparing: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(bob.id) as feed:
        await hub.room_users.remove(room.id, bob.id)
        (left,) = entries(await take(feed))
    await hub.messages.send(room.id, ada.id, "not for bob")
    await hub.room_users.add(room.id, bob.id)
    back = await hub.messages.send(room.id, ada.id, "welcome back")
    for one in (hub, comparing):
        async with one.follow(bob.id, after={room.id: left.cursor}) as feed:
            joined, sent = await take(feed, 2)
            assert isinstance(joined, MemberJoined)
            assert (joined.user_id, joined.seq) == (bob.id, back.seq - 1)
            assert isinstance(sent, MessageSent)
            assert sent.message == back


async def test_reading_from_before_the_first_join_can_be_interrupted(
    hub: Hub, room: Room, ada: User, bob: User
) -> None:
    for number in range(5):
        await hub.messages.send(room.id, ada.id, str(number))
    await hub.room_users.add(room.id, bob.id)
    received: list[int] = []
    cursor: str | None = None
    for _ in range(7):
        async with hub.follow(bob.id, after={room.id: cursor}) as feed:
            (event,) = entries(await take(feed))
            received.append(event.seq)
            cursor = event.cursor
    assert received == [1, 2, 3, 4, 5, 6, 7]


async def test_short_unannounced_visit_is_delivered_after_the_next_join(
    hub: Hub, without_redis: Hub, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with hub.follow(bob.id) as feed:
        await hub.room_users.remove(room.id, bob.id)
        await take(feed)
        await without_redis.room_users.add(room.id, bob.id)  # without an announcement
        await without_redis.messages.send(room.id, bob.id, "just passing by")
        await without_redis.room_users.remove(room.id, bob.id)
        await without_redis.messages.send(room.id, ada.id, "not for bob")
        await hub.room_users.add(room.id, bob.id)
        visit = await take(feed, 4)
        kinds = [MemberJoined, MessageSent, MemberLeft, MemberJoined]
        assert [type(event) for event in visit] == kinds


async def test_position_that_ended_while_the_follower_entered_is_opened_again(
    hub: Hub, comparing: Hub, without_redis: Hub, room: Room, ada: User, bob: User
) -> None:
    """The process has not received the join yet, so for it the log ends with the leave."""
    await comparing.room_users.add(room.id, bob.id)
    async with comparing.follow(ada.id) as ahead, comparing.follow(bob.id) as feed:
        await comparing.room_users.remove(room.id, bob.id)
        (left,) = entries(await take(feed))
        await take(ahead)
        await without_redis.room_users.add(room.id, bob.id)
        async with comparing.follow(bob.id, after={room.id: left.cursor}) as again:
            (joined,) = entries(await take(again))
            assert joined.seq == left.seq + 1

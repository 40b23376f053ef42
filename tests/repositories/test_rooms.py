from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from hubbub import Conflict, Hub, Invalid, NotFound, Role, Room, User
from hubbub.postgres import Pool
from log import log_of


async def test_who_makes_a_room_is_its_first_member_and_admin(hub: Hub, pool: Pool, ada: User) -> None:
    room = await hub.rooms.create("engine-room", created_by=ada.id, description="steam", is_private=True)

    assert (room.name, room.description, room.is_private) == ("engine-room", "steam", True)
    assert (room.created_by, room.last_seq, room.is_direct) == (ada.id, 1, False)
    assert await hub.rooms.get(room.id) == room
    assert (await hub.room_users.get(room.id, ada.id)).role is Role.ADMIN
    assert await log_of(pool, room.id) == ["joined"]


async def test_a_room_of_an_unknown_user_is_not_made(hub: Hub) -> None:
    nobody = uuid4()
    with pytest.raises(NotFound) as missing:
        await hub.rooms.create("engine-room", created_by=nobody)
    assert (missing.value.kind, missing.value.key) == ("user", str(nobody))
    assert (await hub.rooms.public()).items == []


async def test_an_id_makes_one_room(hub: Hub, ada: User) -> None:
    id = uuid4()
    await hub.rooms.create("first", created_by=ada.id, id=id)
    with pytest.raises(Conflict) as refused:
        await hub.rooms.create("second", created_by=ada.id, id=id)
    assert refused.value.what == "room id"


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "a\0b", "\udfff"])
async def test_a_room_needs_a_proper_name(hub: Hub, ada: User, room: Room, name: str) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.rooms.create(name, created_by=ada.id)
    assert refused.value.field == "name"
    with pytest.raises(Invalid):
        await hub.rooms.update(room.id, name=name)
    assert await hub.rooms.get(room.id) == room


async def test_a_room_changes_where_something_is_given_and_logs_it(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    renamed = await hub.rooms.update(room.id, name="boiler room", description="hot", by=ada.id)
    assert (renamed.name, renamed.description, renamed.last_seq) == ("boiler room", "hot", 2)
    cleared = await hub.rooms.update(room.id, description="")
    assert (cleared.name, cleared.description) == ("boiler room", None)
    assert await hub.rooms.update(room.id) == cleared
    assert await log_of(pool, room.id) == ["joined", "room_changed", "room_changed"]


async def test_an_unknown_room_is_not_found(hub: Hub) -> None:
    for operation in (hub.rooms.get(uuid4()), hub.rooms.update(uuid4(), name="x"), hub.rooms.delete(uuid4())):
        with pytest.raises(NotFound):
            await operation
    assert await hub.rooms.get_many([uuid4()]) == {}


async def test_a_deleted_room_takes_everything_along(hub: Hub, pool: Pool, ada: User, bob: User) -> None:
    room = await hub.rooms.create("short-lived", created_by=ada.id)
    await hub.room_users.add(room.id, bob.id)
    message = await hub.messages.send(room.id, ada.id, "hello")
    await hub.receipts.mark_read(room.id, bob.id, up_to=message.seq)

    await hub.rooms.delete(room.id)

    with pytest.raises(NotFound):
        await hub.messages.get(message.id)
    assert (await hub.room_users.rooms_of(bob.id)).items == []
    assert await log_of(pool, room.id) == []


async def test_two_people_have_one_direct_room_also_under_a_race(
    hub: Hub, pool: Pool, ada: User, bob: User
) -> None:
    pairs = [(ada.id, bob.id), (bob.id, ada.id)] * 10
    rooms = await asyncio.gather(*(hub.rooms.direct(*pair) for pair in pairs))

    [room] = {room.id: room for room in rooms}.values()
    assert room.is_direct
    assert room.is_private
    members = (await hub.room_users.members(room.id)).items
    assert {member.user_id for member in members} == {ada.id, bob.id}
    assert await log_of(pool, room.id) == ["joined", "joined"]


async def test_a_direct_room_is_found_in_a_transaction_that_raced_for_it(hub: Hub, ada: User, bob: User) -> None:
    async def in_a_transaction() -> Room:
        async with hub.transaction() as tx:
            room = await tx.rooms.direct(ada.id, bob.id)
            await tx.messages.send(room.id, ada.id, "hello")
        return room

    rooms = await asyncio.gather(*(in_a_transaction() for _ in range(5)))
    assert len({room.id for room in rooms}) == 1
    assert len((await hub.messages.page(rooms[0].id)).items) == 5


async def test_a_direct_room_needs_two_known_people(hub: Hub, ada: User) -> None:
    with pytest.raises(Invalid):
        await hub.rooms.direct(ada.id, ada.id)
    with pytest.raises(NotFound):
        await hub.rooms.direct(ada.id, uuid4())


async def test_a_direct_room_stays_private(hub: Hub, ada: User, bob: User) -> None:
    room = await hub.rooms.direct(ada.id, bob.id)
    with pytest.raises(Invalid):
        await hub.rooms.update(room.id, is_private=False)
    assert await hub.rooms.get(room.id) == room


async def test_public_rooms_come_by_name_in_pages_without_the_private(hub: Hub, ada: User, bob: User) -> None:
    for name in ("delta", "alpha", "charlie", "bravo", "alpha"):
        await hub.rooms.create(name, created_by=ada.id)
    await hub.rooms.create("hidden", created_by=ada.id, is_private=True)
    await hub.rooms.direct(ada.id, bob.id)

    names, after = [], None
    while True:
        page = await hub.rooms.public(limit=2, after=after)
        names += [room.name for room in page.items]
        if not page.has_more:
            break
        after = page.next
    assert names == ["alpha", "alpha", "bravo", "charlie", "delta"]


async def test_the_list_of_a_user_shows_the_active_room_first(hub: Hub, ada: User, bob: User) -> None:
    quiet = await hub.rooms.create("quiet", created_by=ada.id)
    busy = await hub.rooms.create("busy", created_by=ada.id)
    for room in (quiet, busy):
        await hub.room_users.add(room.id, bob.id)
    direct = await hub.rooms.direct(ada.id, bob.id)
    await hub.messages.send(quiet.id, ada.id, "anybody?")
    await hub.messages.send(busy.id, ada.id, "one")
    own = await hub.messages.send(busy.id, bob.id, "mine")
    last = await hub.messages.send(busy.id, ada.id, "two")

    page = await hub.rooms.list_for(bob.id)

    assert [summary.room.id for summary in page.items] == [busy.id, quiet.id, direct.id]
    first, second, third = page.items
    assert first.last_message == last
    assert first.unread == 2  # bob's own does not count
    assert first.role is Role.MEMBER
    assert first.active_at == last.created_at
    assert second.unread == 1
    assert (third.partner_id, third.last_message, third.unread) == (ada.id, None, 0)
    assert own.seq < last.seq


async def test_the_list_of_a_user_pages_without_loss_or_repetition(hub: Hub, ada: User) -> None:
    rooms = [await hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(7)]
    for room in rooms[::2]:
        await hub.messages.send(room.id, ada.id, "ping")
    whole = [summary.room.id for summary in (await hub.rooms.list_for(ada.id)).items]

    seen, after = [], None
    while True:
        page = await hub.rooms.list_for(ada.id, limit=3, after=after)
        seen += [summary.room.id for summary in page.items]
        if page.next is None:
            break
        after = page.next
    assert seen == whole
    assert set(seen) == {room.id for room in rooms}


async def test_unread_in_the_list_stops_at_the_cap(hub: Hub, ada: User, bob: User, room: Room) -> None:
    await hub.room_users.add(room.id, bob.id)
    for n in range(5):
        await hub.messages.send(room.id, ada.id, f"message {n}")
    [summary] = (await hub.rooms.list_for(bob.id, unread_cap=3)).items
    assert summary.unread == 3


async def test_a_deleted_last_message_is_shown_as_its_tombstone(hub: Hub, ada: User, room: Room) -> None:
    message = await hub.messages.send(room.id, ada.id, "oops")
    await hub.messages.delete(message.id, by=ada.id)
    [summary] = (await hub.rooms.list_for(ada.id)).items
    assert summary.last_message is not None
    assert summary.last_message.deleted_at is not None
    assert summary.last_message.content == ""


@pytest.mark.parametrize("limit", [0, -1, 201, True, 1.5, "10"])
async def test_a_limit_out_of_range_is_refused(hub: Hub, ada: User, room: Room, limit: int) -> None:
    for operation in (
        hub.rooms.public(limit=limit),
        hub.rooms.list_for(ada.id, limit=limit),
        hub.room_users.members(room.id, limit=limit),
        hub.room_users.rooms_of(ada.id, limit=limit),
        hub.messages.page(room.id, limit=limit),
        hub.messages.by_author(ada.id, limit=limit),
        hub.receipts.who_read(uuid4(), limit=limit),
    ):
        with pytest.raises(Invalid) as refused:
            await operation
        assert refused.value.field == "limit"


async def test_the_cursor_of_another_list_is_refused(hub: Hub, ada: User, bob: User) -> None:
    rooms = [await hub.rooms.create(f"room {n}", created_by=ada.id) for n in range(2)]
    for room in rooms:
        await hub.room_users.add(room.id, bob.id)
    members = (await hub.room_users.members(rooms[0].id, limit=1)).next
    listed = (await hub.rooms.list_for(ada.id, limit=1)).next
    assert members is not None
    assert listed is not None
    for operation in (
        hub.room_users.members(rooms[1].id, after=members),
        hub.room_users.rooms_of(ada.id, after=members),
        hub.rooms.list_for(bob.id, after=listed),
        hub.rooms.public(after=listed),
        hub.rooms.public(after="made up"),
        hub.rooms.public(after=""),
        hub.rooms.public(after="\ud800"),
        hub.rooms.public(after="x" * 10_000),
    ):
        with pytest.raises(Invalid) as refused:
            await operation
        assert refused.value.field == "after"


async def test_a_page_does_not_shift_while_rooms_are_made(hub: Hub, ada: User) -> None:
    for name in ("b", "d", "f"):
        await hub.rooms.create(name, created_by=ada.id)
    page = await hub.rooms.public(limit=2)
    for name in ("a", "c", "e"):
        await hub.rooms.create(name, created_by=ada.id)
    rest = await hub.rooms.public(limit=10, after=page.next)
    assert [room.name for room in page.items + rest.items] == ["b", "d", "e", "f"]


async def test_renaming_does_not_touch_when_a_room_was_made(hub: Hub, room: Room) -> None:
    renamed = await hub.rooms.update(room.id, name="other")
    assert renamed.created_at == room.created_at
    assert renamed.updated_at - room.updated_at > timedelta(0)

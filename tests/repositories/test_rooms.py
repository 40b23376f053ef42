from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import RFC_4122, UUID, uuid4

import pytest

from hubbub import (
    Conflict,
    Forbidden,
    Hub,
    Invalid,
    NewMessage,
    NotAMember,
    NotFound,
    PostgresSettings,
    Role,
    Room,
    RoomChanged,
    User,
)
from hubbub.postgres import Pool, Statement, connect
from hubbub.repositories import Rooms
from hubbub.repositories.rooms import PREVIEW_AMONG, direct_id, direct_key
from log import log_of
from plans import pages_touched

if TYPE_CHECKING:
    from hubbub.postgres.connection import Connection

PAYLOADS = Statement(
    "test.payloads", json.loads, "SELECT payload FROM room_events WHERE room_id = $1 ORDER BY seq"
)


async def test_creator_of_a_room_is_its_first_member_and_admin(hub: Hub, pool: Pool, ada: User) -> None:
    room = await hub.rooms.create("engine-room", created_by=ada.id, description="steam", is_private=True)

    assert (room.name, room.description, room.is_private) == ("engine-room", "steam", True)
    assert (room.created_by, room.last_seq, room.is_direct) == (ada.id, 1, False)
    assert await hub.rooms.get(room.id) == room
    assert (await hub.room_users.get(room.id, ada.id)).role is Role.ADMIN
    assert await log_of(pool, room.id) == ["joined"]


async def test_room_of_an_unknown_user_is_not_created(hub: Hub) -> None:
    unknown = uuid4()
    with pytest.raises(NotFound) as missing:
        await hub.rooms.create("engine-room", created_by=unknown)
    assert (missing.value.kind, missing.value.key) == ("user", str(unknown))
    assert (await hub.rooms.public()).items == []


async def test_room_id_can_be_used_once(hub: Hub, ada: User) -> None:
    id = uuid4()
    await hub.rooms.create("first", created_by=ada.id, id=id)
    with pytest.raises(Conflict) as refused:
        await hub.rooms.create("second", created_by=ada.id, id=id)
    assert refused.value.what == "room id"


@pytest.mark.parametrize("name", ["", " ", "\u200b", "\u3164 \u2800", "x" * 101, "a\0b", "\udfff"])
async def test_unusable_room_name_is_refused(hub: Hub, ada: User, room: Room, name: str) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.rooms.create(name, created_by=ada.id)
    assert refused.value.field == "name"
    with pytest.raises(Invalid):
        await hub.rooms.update(room.id, name=name)
    assert await hub.rooms.get(room.id) == room


async def test_update_changes_only_given_properties_and_is_logged(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    renamed = await hub.rooms.update(room.id, name="boiler room", description="hot", by=ada.id)
    assert (renamed.name, renamed.description, renamed.last_seq) == ("boiler room", "hot", 2)
    cleared = await hub.rooms.update(room.id, description="")
    assert (cleared.name, cleared.description) == ("boiler room", None)
    assert await hub.rooms.update(room.id) == cleared
    assert await log_of(pool, room.id) == ["joined", "room_changed", "room_changed"]


async def test_update_is_logged_for_members_alone(hub: Hub, pool: Pool, ada: User, bob: User, room: Room) -> None:
    for as_user in (None, ada.id):
        with pytest.raises(NotAMember):
            await hub.rooms.update(room.id, name="forged", by=bob.id, as_user=as_user)
    with pytest.raises(NotAMember) as refused:
        await hub.rooms.update(room.id, name="forged", by=ada.id, as_user=bob.id)
    assert refused.value.user_id == bob.id  # bob does not learn that ada is a member
    with pytest.raises(NotFound):
        await hub.rooms.update(uuid4(), name="nowhere", by=bob.id)
    assert await hub.rooms.get(room.id) == room
    assert await log_of(pool, room.id) == ["joined"]
    await hub.room_users.add(room.id, bob.id)
    assert (await hub.rooms.update(room.id, name="ours", by=bob.id)).name == "ours"


@pytest.mark.parametrize("keeps_receipts", [None, True, False])
async def test_receipts_setting_is_returned_by_every_call(
    hub: Hub, pool: Pool, ada: User, keeps_receipts: bool | None
) -> None:
    room = await hub.rooms.create("engine-room", created_by=ada.id, keeps_receipts=keeps_receipts)
    assert room.keeps_receipts is keeps_receipts
    assert await hub.rooms.get(room.id) == room
    assert await hub.rooms.get_many([room.id]) == {room.id: room}
    assert (await hub.rooms.public()).items == [room]
    assert [summary.room for summary in (await hub.rooms.list_for(ada.id)).items] == [room]
    renamed = await hub.rooms.update(room.id, name="boiler room")
    assert renamed.keeps_receipts is keeps_receipts

    for other in (False, None, True):
        assert (await hub.rooms.update(room.id, keeps_receipts=other)).keeps_receipts is other
    _, *changes = await pool.fetch_all(PAYLOADS, room.id)
    assert [change["keeps_receipts"] for change in changes] == [keeps_receipts, False, None, True]
    for nonsense in ("yes", 1, 0):
        with pytest.raises(Invalid) as refused:
            await hub.rooms.update(room.id, keeps_receipts=nonsense)  # type: ignore[arg-type]
        assert refused.value.field == "keeps_receipts"


async def test_log_has_the_roles_of_the_first_members(hub: Hub, pool: Pool, ada: User, bob: User) -> None:
    room = await hub.rooms.create("engine-room", created_by=ada.id)
    assert await pool.fetch_all(PAYLOADS, room.id) == [{"role": "admin"}]
    direct = await hub.rooms.direct(ada.id, bob.id)
    assert await pool.fetch_all(PAYLOADS, direct.id) == [{"role": "member"}] * 2


async def test_unknown_room_is_not_found(hub: Hub) -> None:
    for operation in (hub.rooms.get(uuid4()), hub.rooms.update(uuid4(), name="x"), hub.rooms.delete(uuid4())):
        with pytest.raises(NotFound):
            await operation
    assert await hub.rooms.get_many([uuid4()]) == {}


async def test_deleting_a_room_deletes_all_its_rows(hub: Hub, pool: Pool, ada: User, bob: User) -> None:
    room = await hub.rooms.create("short-lived", created_by=ada.id)
    await hub.room_users.add(room.id, bob.id)
    message = await hub.messages.send(room.id, ada.id, "hello")
    await hub.receipts.mark_read(room.id, bob.id, up_to=message.seq)

    await hub.rooms.delete(room.id)

    with pytest.raises(NotFound):
        await hub.messages.get(message.id)
    assert (await hub.room_users.rooms_of(bob.id)).items == []
    assert await log_of(pool, room.id) == []


async def test_two_users_have_one_direct_room_also_under_a_race(
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


async def test_direct_room_has_an_id_that_is_made_from_the_pair(hub: Hub, ada: User, bob: User) -> None:
    room = await hub.rooms.direct(bob.id, ada.id)
    assert room.id == direct_id(direct_key(ada.id, bob.id))
    assert (room.id.version, room.id.variant) == (8, RFC_4122)

    await hub.rooms.delete(room.id)
    assert (await hub.rooms.direct(ada.id, bob.id)).id == room.id


async def test_direct_room_with_another_id_is_found(hub: Hub, pool: Pool, ada: User, bob: User) -> None:
    room = await hub.rooms.create("of an earlier version", created_by=ada.id, is_private=True)
    key = direct_key(ada.id, bob.id)
    await pool.execute(Statement("test.key", int, "UPDATE rooms SET direct_key = $2 WHERE id = $1"), room.id, key)
    assert (await hub.rooms.direct(bob.id, ada.id)).id == room.id


@pytest.mark.one_server("only the id keeps a direct room unique there")
async def test_direct_room_whose_id_is_taken_has_another(hub: Hub, pool: Pool, ada: User, bob: User) -> None:
    taken = direct_id(direct_key(ada.id, bob.id))
    with pytest.raises(Invalid):
        await hub.rooms.create("of a stranger", created_by=ada.id, id=taken)
    insert = Statement("test.room", int, "INSERT INTO rooms (id, name, created_by) VALUES ($1, 'other', $2)")
    await pool.execute(insert, taken, ada.id)
    rooms = await asyncio.gather(*(hub.rooms.direct(ada.id, bob.id) for _ in range(4)))
    assert rooms.count(rooms[0]) == 4
    assert rooms[0].is_direct
    assert rooms[0].id != taken


async def test_direct_room_is_found_in_a_transaction_that_raced_for_it(hub: Hub, ada: User, bob: User) -> None:
    async def in_a_transaction() -> Room:
        async with hub.transaction() as tx:
            room = await tx.rooms.direct(ada.id, bob.id)
            await tx.messages.send(room.id, ada.id, "hello")
        return room

    rooms = await asyncio.gather(*(in_a_transaction() for _ in range(5)))
    assert len({room.id for room in rooms}) == 1
    assert len((await hub.messages.page(rooms[0].id)).items) == 5


async def test_direct_room_needs_two_known_users(hub: Hub, ada: User) -> None:
    with pytest.raises(Invalid):
        await hub.rooms.direct(ada.id, ada.id)
    with pytest.raises(NotFound):
        await hub.rooms.direct(ada.id, uuid4())


async def test_direct_room_of_two_others_is_neither_opened_nor_shown(hub: Hub, ada: User, bob: User) -> None:
    carol = await hub.users.create("carol@example.org", "carol", "not a hash")
    for _ in range(2):
        with pytest.raises(Forbidden, match="it is one of two other users"):
            await hub.rooms.direct(ada.id, bob.id, as_user=carol.id)
        await hub.rooms.direct(ada.id, bob.id, as_user=bob.id)
    assert len((await hub.rooms.list_for(ada.id)).items) == 1
    assert not (await hub.rooms.list_for(carol.id)).items


async def test_direct_room_stays_private(hub: Hub, ada: User, bob: User) -> None:
    room = await hub.rooms.direct(ada.id, bob.id)
    with pytest.raises(Invalid, match="is_private: must be True in a direct room"):
        await hub.rooms.update(room.id, is_private=False)
    assert await hub.rooms.get(room.id) == room


async def test_public_rooms_are_paged_by_name_without_private_ones(hub: Hub, ada: User, bob: User) -> None:
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


async def test_public_rooms_are_in_the_order_of_their_letters_whatever_their_case(hub: Hub, ada: User) -> None:
    expected = [
        "apple",
        "Apple pie",
        "banana",
        "Zebra",
        "zebra 2",
        "Äpfel",
        "äpfel 2",
        "арбуз",
        "Яблоко",
        "яблоко 2",
    ]
    for name in sorted(expected):
        await hub.rooms.create(name, created_by=ada.id)
    found: list[str] = []
    after = None
    while True:
        page = await hub.rooms.public(limit=3, after=after)
        found += [room.name for room in page.items]
        if page.next is None:
            break
        after = page.next
    assert found == expected


async def test_public_rooms_are_found_by_the_start_of_their_name(hub: Hub, ada: User, bob: User) -> None:
    for name in ("News", "news of today", "NEW", "old news", "ĀB", "ābc", "50%", "5_"):
        await hub.rooms.create(name, created_by=ada.id)
    await hub.rooms.create("newsroom", created_by=ada.id, is_private=True)

    async def names(prefix: str, **options: Any) -> list[str]:  # noqa: ANN401
        return [room.name for room in (await hub.rooms.search(prefix, **options)).items]

    assert await names("new") == ["NEW", "News", "news of today"]
    assert await names("NEWS ") == ["news of today"]
    assert await names("āB") == ["ĀB", "ābc"]
    assert await names("%") == await names("_") == await names("ews") == []
    assert await names("5_") == ["5_"]
    first = await hub.rooms.search("new", limit=2)
    assert await names("new", limit=2, after=first.next) == ["news of today"]
    assert await names("new", as_user=ada.id) == ["NEW", "News", "news of today"]
    await hub.users.delete(bob.id)
    assert await names("new", as_user=bob.id) == []


@pytest.mark.parametrize("prefix", ["", " ", "x" * 101, "\0", None, 7])
async def test_unusable_prefix_of_rooms_is_refused(hub: Hub, prefix: str) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.rooms.search(prefix)
    assert refused.value.field == "prefix"


async def test_summary_of_a_room_is_that_of_the_list(hub: Hub, ada: User, bob: User, room: Room) -> None:
    await hub.room_users.add(room.id, bob.id)
    await hub.rooms.update(room.id, metadata={"topic": "steam"})
    sent = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(5)]
    await hub.receipts.mark_read(room.id, bob.id, up_to=sent[1].seq)
    direct = await hub.rooms.direct(bob.id, ada.id)
    listed = {one.room.id: one for one in (await hub.rooms.list_for(bob.id)).items}
    assert await hub.rooms.summary(room.id, bob.id) == listed[room.id]
    assert await hub.rooms.summary(direct.id, bob.id) == listed[direct.id]
    assert (listed[room.id].unread, listed[room.id].room.metadata) == (3, {"topic": "steam"})
    assert (await hub.rooms.summary(room.id, bob.id, unread_cap=2)).unread == 2


async def test_summary_is_for_members(hub: Hub, bob: User, room: Room) -> None:
    for room_id in (room.id, uuid4()):
        with pytest.raises(NotAMember):
            await hub.rooms.summary(room_id, bob.id)


async def test_metadata_of_a_room_is_in_lists_and_in_the_event_of_its_change(
    hub: Hub, ada: User, room: Room
) -> None:
    assert (await hub.rooms.create("tagged", created_by=ada.id, metadata={"a": [1]})).metadata == {"a": [1]}
    changed = await hub.rooms.update(room.id, metadata={"topic": "steam"}, by=ada.id)
    assert changed.metadata == {"topic": "steam"}
    renamed = await hub.rooms.update(room.id, name="boiler-room")
    assert renamed.metadata == {"topic": "steam"}
    assert renamed in (await hub.rooms.public()).items
    await hub.rooms.update(room.id, metadata=None)
    assert (await hub.rooms.get(room.id)).metadata is None
    events = (await hub.messages.since(room.id, None)).items
    assert [event.metadata for event in events if isinstance(event, RoomChanged)] == [
        {"topic": "steam"},
        {"topic": "steam"},
        None,
    ]
    with pytest.raises(Invalid, match="metadata"):
        await hub.rooms.update(room.id, metadata={"a": "x" * 8_192})


@pytest.mark.usefixtures("marks_are_awaited")
async def test_room_list_has_the_most_recently_active_room_first(hub: Hub, ada: User, bob: User) -> None:
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
    assert (first.cursor, third.cursor) == (last.cursor, None)
    assert first.unread == 1  # what is before bob's own counts as read
    assert first.role is Role.MEMBER
    assert first.active_at == last.created_at
    assert second.unread == 1
    assert (third.partner_id, third.last_message, third.unread) == (ada.id, None, 0)
    assert own.seq < last.seq


async def test_preview_is_the_newest_message_that_is_not_deleted(hub: Hub, ada: User, bob: User) -> None:
    room, other = [await hub.rooms.create(name, created_by=ada.id) for name in ("room", "other")]
    for one in (room, other):
        await hub.room_users.add(one.id, bob.id)
    kept = await hub.messages.send(room.id, ada.id, "kept")
    [gone] = await hub.messages.send_many(other.id, ada.id, [NewMessage("alone")])
    later = await hub.messages.send_many(room.id, ada.id, [NewMessage("wrong"), NewMessage("wrong again")])
    for message in (gone, *later):
        await hub.messages.delete(message.id, by=ada.id)
    first, second = (await hub.rooms.list_for(bob.id)).items
    assert (first.room.id, first.last_message, first.active_at) == (room.id, kept, later[-1].created_at)
    assert (second.room.id, second.last_message, second.active_at) == (other.id, None, gone.created_at)


async def test_search_for_a_preview_is_bounded(hub: Hub, ada: User) -> None:
    room = await hub.rooms.create("room", created_by=ada.id)
    kept = await hub.messages.send(room.id, ada.id, "kept")
    sent = await hub.messages.send_many(room.id, ada.id, [NewMessage("gone")] * PREVIEW_AMONG)
    for number, message in enumerate(sent):
        await hub.messages.delete(message.id, by=ada.id)
        if number == PREVIEW_AMONG - 2:
            [summary] = (await hub.rooms.list_for(ada.id)).items
            assert summary.last_message == sent[-1]
    [summary] = (await hub.rooms.list_for(ada.id)).items
    assert summary.last_message is None
    await hub.messages.send(room.id, ada.id, "back")
    [summary] = (await hub.rooms.list_for(ada.id)).items
    assert summary.last_message is not None
    assert summary.last_message.content == "back" != kept.content


@pytest.mark.parametrize("letter", ["\x01", "\U0001f4f1", "\u6f22", "\\"])
async def test_cursor_of_the_longest_name_is_accepted(hub: Hub, ada: User, letter: str) -> None:
    names = [letter * 99 + end for end in "abc"]
    for name in names:
        await hub.rooms.create(name, created_by=ada.id)
    found: list[str] = []
    cursor: str | None = None
    for _ in names:
        page = await hub.rooms.public(after=cursor, limit=1)
        found += [room.name for room in page.items]
        cursor = page.next
    assert (found, cursor) == (names, None)


async def test_room_list_is_paged_without_gap_or_double(hub: Hub, ada: User) -> None:
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


async def test_unread_count_in_the_room_list_stops_at_the_cap(hub: Hub, ada: User, bob: User, room: Room) -> None:
    await hub.room_users.add(room.id, bob.id)
    for n in range(5):
        await hub.messages.send(room.id, ada.id, f"message {n}")
    [summary] = (await hub.rooms.list_for(bob.id, unread_cap=3)).items
    assert summary.unread == 3


A_THOUSAND_ROOMS = """
    INSERT INTO rooms (name, created_by, last_seq)
    SELECT 'room ' || n, $1, 60
    FROM generate_series(1, 1000) AS n;
"""
A_BUSY_YEAR = """
    WITH placed AS (
        SELECT id, row_number() OVER (ORDER BY id) AS number
        FROM rooms
    ), members AS (
        INSERT INTO room_users (room_id, user_id, last_read_seq)
        SELECT placed.id, users.id, CASE WHEN users.id = $1 THEN number % 4 * 20 ELSE 0 END
        FROM placed
        CROSS JOIN (VALUES ($1::uuid), ($2)) AS users (id)
    )
    INSERT INTO messages (room_id, seq, user_id, content, created_at)
    SELECT placed.id, n, $2, 'message ' || n, CURRENT_TIMESTAMP - (60 - n) * interval '1 day'
    FROM generate_series(1, 60) AS n
    CROSS JOIN placed
    ORDER BY n
"""

# VACUUM skips rows that some transaction may not see yet, such as a transaction that gathers statistics.
ALL_VISIBLE = "SELECT relallvisible >= relpages FROM pg_class WHERE oid = 'messages'::regclass"


@pytest.fixture
async def connection(postgres_settings: PostgresSettings) -> AsyncIterator[Connection]:
    connection = await connect(postgres_settings, server_settings={"statement_timeout": "0"})
    yield connection
    await connection.close()


@pytest.mark.one_server("counts what one server reads")
@pytest.mark.counts_pages
async def test_room_list_of_a_thousand_rooms_touches_few_pages(
    hub: Hub, connection: Connection, ada: User, bob: User
) -> None:
    """It reads an index entry per room. Per room of the page it reads its columns, and messages up to the cap.

    Messages are stored in the order of time, so no two of one room are on one page of the table. After VACUUM only
    the index is read to count them.
    """
    await connection.execute(A_THOUSAND_ROOMS.replace("$1", f"'{ada.id}'"))
    await connection.execute(A_BUSY_YEAR.replace("$1", f"'{ada.id}'").replace("$2", f"'{bob.id}'"))
    await connection.execute("ANALYZE")
    newest = ("infinity", UUID(int=2**128 - 1))
    to_show_a_room, cap = 20, 50
    touched = await pages_touched(connection, Rooms._LIST_FOR, ada.id, *newest, 51, cap)
    assert touched < 1_000 * 4 + 51 * (to_show_a_room + cap)
    while not await connection.fetchval(ALL_VISIBLE):
        await connection.execute("VACUUM messages")
    touched = await pages_touched(connection, Rooms._LIST_FOR, ada.id, *newest, 51, cap)
    assert touched < 1_000 * 3 + 51 * to_show_a_room
    page = await hub.rooms.list_for(ada.id, limit=1_000, unread_cap=50)
    assert Counter(summary.unread for summary in page.items) == {50: 250, 40: 250, 20: 250, 0: 250}
    assert not page.has_more


@pytest.mark.one_server("counts what one server reads")
@pytest.mark.counts_pages
async def test_summary_touches_as_few_pages_as_one_room_of_the_list(
    hub: Hub, connection: Connection, ada: User, bob: User
) -> None:
    await connection.execute(A_THOUSAND_ROOMS.replace("$1", f"'{ada.id}'"))
    await connection.execute(A_BUSY_YEAR.replace("$1", f"'{ada.id}'").replace("$2", f"'{bob.id}'"))
    await connection.execute("ANALYZE")
    room_id = await connection.fetchval("SELECT room_id FROM room_users LIMIT 1")
    to_show_a_room, cap = 20, 50
    assert await pages_touched(connection, Rooms._SUMMARY, ada.id, room_id, cap) < 4 + to_show_a_room + cap
    assert await pages_touched(connection, Rooms._SEARCH, "room", UUID(int=0), 21, ada.id, "rooms") < 60


@pytest.mark.parametrize("limit", [0, -1, 201, True, 1.5, "10"])
async def test_limit_out_of_range_is_refused(hub: Hub, ada: User, room: Room, limit: int) -> None:
    for operation in (
        hub.rooms.public(limit=limit),
        hub.room_users.members(room.id, limit=limit),
        hub.room_users.rooms_of(ada.id, limit=limit),
        hub.messages.page(room.id, limit=limit),
        hub.messages.by_author(ada.id, limit=limit),
        hub.receipts.readers(uuid4(), limit=limit),
    ):
        with pytest.raises(Invalid) as refused:
            await operation
        assert refused.value.field == "limit"


@pytest.mark.parametrize("limit", [0, 1_001, True])
async def test_room_list_page_has_up_to_a_thousand_rooms(hub: Hub, ada: User, limit: int) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.rooms.list_for(ada.id, limit=limit)
    assert refused.value.field == "limit"


async def test_cursor_of_another_list_is_refused(hub: Hub, ada: User, bob: User) -> None:
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


async def test_page_does_not_shift_while_rooms_are_created(hub: Hub, ada: User) -> None:
    for name in ("b", "d", "f"):
        await hub.rooms.create(name, created_by=ada.id)
    page = await hub.rooms.public(limit=2)
    for name in ("a", "c", "e"):
        await hub.rooms.create(name, created_by=ada.id)
    rest = await hub.rooms.public(limit=10, after=page.next)
    assert [room.name for room in page.items + rest.items] == ["b", "d", "e", "f"]


async def test_update_keeps_the_creation_time_of_a_room(hub: Hub, room: Room) -> None:
    renamed = await hub.rooms.update(room.id, name="other")
    assert renamed.created_at == room.created_at
    assert renamed.updated_at - room.updated_at > timedelta(0)

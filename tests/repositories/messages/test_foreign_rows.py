"""Rows of other programs: times outside Python's range, and payloads that hubbub does not write."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import msgspec
import pytest

import hubbub
from hubbub import Hub, Message, MessagePage, MessageSent, PostgresSettings, Room, Settings, User
from hubbub.postgres import connect
from services.feed.reading import is_at, log_of, take_until

FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)

TIMES = {
    "-infinity": FIRST,
    "infinity": LAST,
    "4713-01-01 00:00:00+00 BC": FIRST,
    "0001-12-31 23:59:59+00 BC": FIRST,
    "0001-01-01 00:00:00+00": FIRST,
    "0001-01-01 00:00:00.000001+00": FIRST.replace(microsecond=1),
    "9999-12-31 23:59:59.999999+00": LAST,
    "10000-01-01 00:00:00+00": LAST,
    "294276-01-01 00:00:00+00": LAST,
}

# Beyond these times a float cannot hold the microseconds since 1970.
BOUNDS = ("1699-12-31 23:59:59", "1700-01-01 00:00:00", "2199-12-31 23:59:59", "2200-01-01 00:00:00")


@pytest.fixture
async def write(postgres_settings: PostgresSettings) -> Callable[..., Awaitable[None]]:
    """Runs SQL as the owner of the tables."""

    async def execute(*statements: str) -> None:
        connection = await connect(postgres_settings)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    return execute


@pytest.mark.parametrize(("stored", "read"), TIMES.items())
async def test_times_that_python_cannot_hold_are_read_as_the_nearest(
    hub: Hub, room: Room, ada: User, write: Callable[..., Awaitable[None]], stored: str, read: datetime
) -> None:
    sent = await hub.messages.send(room.id, ada.id, "hello")
    await write(
        f"UPDATE messages SET created_at = '{stored}', updated_at = '{stored}'",
        f"UPDATE room_events SET created_at = '{stored}'",
        f"UPDATE rooms SET created_at = '{stored}', updated_at = '{stored}'",
        f"UPDATE room_users SET joined_at = '{stored}'",
        f"UPDATE users SET created_at = '{stored}', updated_at = '{stored}', last_seen = '{stored}'",
        # Where rooms are distributed, this is read in place of last_seen of users.
        f"INSERT INTO hubbub_presence (user_id, is_online, last_seen) SELECT id, false, '{stored}' FROM users",
    )
    page = await hub.messages.page(room.id)
    assert [(message.created_at, message.updated_at) for message in page.items] == [(read, read)]
    assert msgspec.json.decode(await hub.messages.page_json(room.id), type=MessagePage) == page
    assert await hub.messages.get(sent.id) == page.items[0]
    assert (await hub.messages.by_author(ada.id)).items == page.items
    assert [event.at for event in await log_of(hub, room.id)] == [read, read]  # type: ignore[union-attr]
    assert (await hub.messages.since(room.id, page.items[0].cursor)).items == []
    assert (await hub.rooms.get(room.id)).created_at == read
    assert (await hub.rooms.list_for(ada.id)).items[0].active_at == read
    assert (await hub.room_users.get(room.id, ada.id)).joined_at == read
    assert (await hub.users.get(ada.id)).last_seen == read
    assert b"".join([piece async for piece in hub.history.lines(room.id)])


@pytest.mark.parametrize("stored", TIMES)
async def test_feed_of_other_rooms_works_beside_a_time_that_python_cannot_hold(
    hub: Hub, room: Room, ada: User, write: Callable[..., Awaitable[None]], stored: str
) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    first = await hub.messages.send(room.id, ada.id, "before")
    await hub.messages.send(room.id, ada.id, "odd")
    await write(f"UPDATE messages SET created_at = '{stored}' WHERE content = 'odd'")
    async with hub.follow(ada.id, after={room.id: first.cursor}) as feed:
        sent = await hub.messages.send(other.id, ada.id, "elsewhere")
        events = await take_until(feed, is_at(sent.seq, other.id))
        last = await hub.messages.send(room.id, ada.id, "after")
        events += await take_until(feed, is_at(last.seq, room.id))
    said = {event.message.content for event in events if isinstance(event, MessageSent)}
    assert said == {"odd", "elsewhere", "after"}


@pytest.mark.parametrize("payload", ['{"role": 5}', "[]", "null", "5", '"role"', '"name"', '{"name": {}}'])
async def test_entry_with_a_damaged_payload_is_passed_over(
    hub: Hub, room: Room, ada: User, bob: User, write: Callable[..., Awaitable[None]], payload: str
) -> None:
    await hub.room_users.add(room.id, bob.id)
    await hub.rooms.update(room.id, name="renamed")
    sent: Message = await hub.messages.send(room.id, ada.id, "after it")
    await write(f"UPDATE room_events SET payload = '{payload}'")
    log = await log_of(hub, room.id)
    assert log[-1] == (await hub.messages.since(room.id, None)).items[-1]
    assert isinstance(log[-1], MessageSent)
    assert log[-1].message == sent
    assert b"after it" in b"".join([piece async for piece in hub.history.lines(room.id)])


@pytest.mark.one_server("Citus refuses its UPDATE, for a cast that is not immutable")
@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Amsterdam", "Asia/Kolkata"])
@pytest.mark.parametrize("style", ["ISO, DMY", "SQL, DMY", "German", "Postgres, MDY"])
async def test_page_json_is_rfc_3339_in_every_time_zone_and_date_style(
    hub: Hub,
    room: Room,
    ada: User,
    settings: Settings,
    postgres_settings: PostgresSettings,
    write: Callable[..., Awaitable[None]],
    zone: str,
    style: str,
) -> None:
    for stored in [*TIMES, "1883-11-18 12:00:00+00", "1937-07-01 00:00:00+00"]:
        await hub.messages.send(room.id, ada.id, stored)
    await write(
        "UPDATE messages SET created_at = content::timestamptz, updated_at = content::timestamptz",
        f"ALTER DATABASE {postgres_settings.database} SET timezone = '{zone}'",
        f"ALTER DATABASE {postgres_settings.database} SET datestyle = '{style}'",
    )
    async with hubbub.open(settings) as other:
        page = await other.messages.page(room.id)
        as_json = await other.messages.page_json(room.id)
    await write(f"ALTER DATABASE {postgres_settings.database} RESET ALL")
    assert msgspec.json.decode(as_json, type=MessagePage) == page
    assert len(page.items) == len(TIMES) + 2


@pytest.mark.one_server("Citus refuses its UPDATE, for a cast that is not immutable")
async def test_times_of_many_rows_are_those_of_one_to_the_microsecond(
    hub: Hub, room: Room, ada: User, bob: User, write: Callable[..., Awaitable[None]]
) -> None:
    times = [*TIMES, "1969-12-31 23:59:59.999999+00", "2026-11-29 09:00:00.123457+00"]
    times += [f"{year}.{fraction}+00" for year in BOUNDS for fraction in ("000000", "000001", "999999")]
    for stored in times:
        await hub.messages.send(room.id, ada.id, stored)
    await hub.room_users.add(room.id, bob.id)
    await write(
        "UPDATE messages SET created_at = content::timestamptz, updated_at = content::timestamptz",
        "UPDATE messages SET deleted_at = created_at, content = '' WHERE seq % 2 = 0",
        f"UPDATE users SET created_at = '{times[-1]}', last_seen = '{times[0]}' WHERE id = '{ada.id}'",
        f"UPDATE room_users SET joined_at = '{times[-1]}' WHERE user_id = '{ada.id}'",
    )
    page = await hub.messages.page(room.id)
    assert page.items == [await hub.messages.get(message.id) for message in page.items]
    by_id = {message.id: message for message in page.items}
    assert await hub.messages.get_many(by_id) == by_id
    assert len({message.cursor for message in page.items}) == len(times)
    await hub.receipts.unread_count(room.id, ada.id)  # waits for the read mark of the author
    one, member = await hub.users.get(ada.id), await hub.room_users.get(room.id, ada.id)
    assert await asyncio.gather(*[hub.users.get(user.id) for user in (bob, ada, bob, ada)]) == [bob, one, bob, one]
    found = await asyncio.gather(*[hub.room_users.get(room.id, user.id) for user in (bob, ada, bob, ada)])
    assert found[1::2] == [member, member]


# Python 3.14 decodes it: its limit is the size of the stack. The limit of earlier versions is 1,000 levels.
DEEP = {"n": reduce(lambda inner, _: [inner], range(2_999), list[Any]())}

# In jsonb a number may have any size, and an object any depth.
METADATA = {
    "4,301 digits": ('{"n": 1%s, "m": 1}' % ("0" * 4_300), {"n": None, "m": 1}),
    "4,300 digits": ('{"n": 1%s, "m": 1}' % ("0" * 4_299), {"n": 10**4_299, "m": 1}),
    "beyond a float": ('{"n": -%s.5, "m": 1}' % ("1" * 400), {"n": None, "m": 1}),
    "deep": ('{"n": ' + "[" * 3_000 + "]" * 3_000 + "}", DEEP if sys.version_info >= (3, 14) else None),
}


@pytest.mark.parametrize("stored", METADATA)
async def test_metadata_that_python_cannot_hold_fail_no_call(
    hub: Hub, room: Room, ada: User, bob: User, write: Callable[..., Awaitable[None]], stored: str
) -> None:
    await hub.room_users.add(room.id, bob.id)
    sent = await hub.messages.send(room.id, ada.id, "hello")
    written, read = METADATA[stored]
    for table in ("messages", "users", "rooms", "room_users"):
        await write(f"UPDATE {table} SET metadata = '{written}'")
    page = await hub.messages.page(room.id)
    as_json = await hub.messages.page_json(room.id)
    assert as_json.endswith(b'"cursor":"%b"}' % str(page.cursor).encode())
    log = await log_of(hub, room.id)
    assert isinstance(log[-1], MessageSent)
    found: list[Any] = [
        *(page.items[0], await hub.messages.get(sent.id), *(await hub.messages.get_many([sent.id])).values()),
        *((await hub.messages.by_author(ada.id)).items[0], log[-1].message),
        *(await hub.users.get(ada.id), *(await hub.users.get_many([ada.id, bob.id])).values()),
        *((await hub.users.search("ada")).items[0], await hub.cache.user(ada.id), await hub.cache.user(ada.id)),
        *(await hub.rooms.get(room.id), (await hub.rooms.list_for(ada.id)).items[0].room),
        *((await hub.room_users.members(room.id)).items[0], await hub.room_users.get(room.id, bob.id)),
        await hub.messages.edit(sent.id, "changed", by=ada.id),
    ]
    assert [one.metadata for one in found] == [read] * len(found)
    assert b"".join([piece async for piece in hub.history.lines(room.id)])

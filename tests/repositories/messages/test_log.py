"""The log of a room, read in pages by `messages.since`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubbub import Hub, Invalid, LogPage, NewMessage, NotFound, PostgresSettings, Resync, Role, Room, User
from hubbub.events import LogEvent
from hubbub.positions import START, Position
from hubbub.postgres import Pool, Statement, connect
from hubbub.repositories.messages import Logs


async def fill(hub: Hub, room: Room, ada: User) -> int:
    """Append 20 entries, messages and edits in turn. Returns the head."""
    for number in range(10):
        sent = await hub.messages.send(room.id, ada.id, str(number))
        await hub.messages.edit(sent.id, f"{number}!", by=ada.id)
    return 21


def found(page: LogPage) -> list[LogEvent]:
    assert not any(isinstance(item, Resync) for item in page.items)
    return [item for item in page.items if not isinstance(item, Resync)]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20, 21, 22, 1_000])
async def test_pages_of_any_size_give_the_whole_log_in_order(hub: Hub, room: Room, ada: User, limit: int) -> None:
    head = await fill(hub, room, ada)
    entries: list[LogEvent] = []
    cursor, has_more = None, True
    while has_more:
        page = await hub.messages.since(room.id, cursor, limit=limit)
        assert 0 < len(page.items) <= limit
        entries += found(page)
        assert page.cursor == entries[-1].cursor
        assert page.has_more == (entries[-1].seq < head)
        cursor, has_more = page.cursor, page.has_more
    assert [entry.seq for entry in entries] == list(range(1, head + 1))
    assert await hub.messages.since(room.id, cursor) == LogPage(room.id, [], cursor, has_more=False)


async def test_log_can_be_read_on_from_every_entry_and_message(hub: Hub, room: Room, ada: User) -> None:
    head = await fill(hub, room, ada)
    whole = found(await hub.messages.since(room.id, None))
    for entry, after in pairwise(whole):
        page = await hub.messages.since(room.id, entry.cursor, limit=1)
        assert (page.items, page.cursor, page.has_more) == ([after], after.cursor, after.seq < head)
    for message in (await hub.messages.page(room.id)).items:
        assert found(await hub.messages.since(room.id, message.cursor)) == whole[message.seq :]


async def test_transaction_reads_its_own_state_of_the_log(hub: Hub, room: Room, ada: User) -> None:
    async with hub.transaction() as tx:
        await tx.messages.send(room.id, ada.id, "not yet for others")
        assert len((await tx.messages.since(room.id, None)).items) == 2
        assert len((await hub.messages.since(room.id, None)).items) == 1


async def test_entry_of_an_unknown_kind_is_passed_over(
    hub: Hub, postgres_settings: PostgresSettings, room: Room, ada: User
) -> None:
    """During a rolling update, a process of the old version reads entries of the new version."""
    owner = await connect(postgres_settings)
    await owner.execute("ALTER TABLE room_events DROP CONSTRAINT room_events_kind_check")
    await owner.execute(
        "WITH head AS (UPDATE rooms SET last_seq = last_seq + 1 WHERE id = $1 RETURNING last_seq)"
        " INSERT INTO room_events (room_id, seq, kind) SELECT $1, last_seq, 'new' FROM head",
        room.id,
    )
    await owner.close()
    await hub.messages.send(room.id, ada.id, "after")
    assert [entry.seq for entry in found(await hub.messages.since(room.id, None))] == [1, 3]


async def test_log_has_the_present_state_of_messages_at_their_seqs(hub: Hub, room: Room, ada: User) -> None:
    sent = await hub.messages.send(room.id, ada.id, "first")
    before = found(await hub.messages.since(room.id, None))
    await hub.messages.edit(sent.id, "second", by=ada.id)
    await hub.messages.delete(sent.id, by=ada.id)
    after = found(await hub.messages.since(room.id, None))
    assert [entry.cursor for entry in before] == [entry.cursor for entry in after[:2]]
    assert all(entry.message.content == "" for entry in after[1:] if hasattr(entry, "message"))


async def test_log_stays_when_its_authors_are_deleted(hub: Hub, room: Room, ada: User, bob: User) -> None:
    await hub.room_users.add(room.id, bob.id, Role.MODERATOR)
    sent = await hub.messages.send(room.id, bob.id, "farewell")
    whole = found(await hub.messages.since(room.id, None))
    await hub.users.delete(bob.id)
    page = await hub.messages.since(room.id, sent.cursor)
    assert [type(entry).__name__ for entry in found(page)] == ["MemberLeft"]
    assert [entry.cursor for entry in found(await hub.messages.since(room.id, None))[:3]] == [
        entry.cursor for entry in whole
    ]


async def test_unusable_cursor_room_or_limit_is_refused(hub: Hub, room: Room, ada: User) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    foreign = await hub.messages.send(other.id, ada.id, "elsewhere")
    for cursor in ("", "x", "A" * 28, "!" * 28, foreign.cursor, foreign.cursor[:-1], foreign.cursor + "A"):
        with pytest.raises(Invalid, match="cursor"):
            await hub.messages.since(room.id, cursor)
    for limit in (0, -1, 1_001):
        with pytest.raises(Invalid, match="limit"):
            await hub.messages.since(room.id, None, limit=limit)
    with pytest.raises(NotFound):
        await hub.messages.since(uuid4(), None)


async def test_made_up_cursor_shows_nothing_of_the_log(hub: Hub, room: Room, ada: User) -> None:
    """A cursor with the right form and room also needs the hash of its entry."""
    await hub.messages.send_many(room.id, ada.id, [NewMessage(str(number)) for number in range(10)])
    for seq in (1, 2, 11, 12, 2**31, 2**63 - 1):
        for made_up in (bytes(8), b"made-up!"):
            page = await hub.messages.since(room.id, Position(seq, made_up).encode(room.id))
            assert [type(item) for item in page.items] == [Resync]
            assert page.has_more is False
            assert (await hub.messages.since(room.id, page.cursor)).items == []


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=50,
)
@given(seq=st.integers(0, 2**64 - 1), seen=st.binary(min_size=8, max_size=8), spoilt=st.integers(0, 27))
async def test_any_cursor_is_read_or_refused(hub: Hub, seq: int, seen: bytes, spoilt: int) -> None:
    room_id = uuid4()
    cursor = Position(seq, seen).encode(room_id)
    for one in (cursor, cursor[:spoilt] + "!" + cursor[spoilt + 1 :], cursor[:spoilt]):
        with pytest.raises((Invalid, NotFound)):
            await hub.messages.since(room_id, one)


async def test_heads_of_one_and_of_many_rooms(hub: Hub, pool: Pool, room: Room, ada: User) -> None:
    logs = Logs(pool)
    sent = await hub.messages.send(room.id, ada.id, "hello")
    place = Position.decode(room.id, sent.cursor)
    assert await logs.head(room.id) == place
    heads = {head.room_id: head for head in await logs.check({room.id: 2, uuid4(): 1})}
    assert list(heads) == [room.id]
    assert heads[room.id].position == place
    (nothing,) = await logs.check({room.id: 3})
    assert (nothing.last_seq, nothing.position) == (2, None)
    (start,) = await logs.check({room.id: 0})
    assert start.position == START
    with pytest.raises(NotFound):
        await logs.head(uuid4())
    with pytest.raises(NotFound):
        await logs.read(uuid4(), START, 10)


PURGE = Statement("test.purge", int, "DELETE FROM messages WHERE room_id = $1")


@pytest.fixture
async def owner(postgres_settings: PostgresSettings) -> AsyncIterator[Pool]:
    """A connection that may delete messages, unlike the role of hubbub."""
    pool = Pool(postgres_settings)
    await pool.open()
    yield pool
    await pool.close()


async def test_log_with_purged_messages_can_be_read(hub: Hub, owner: Pool, room: Room, ada: User) -> None:
    """An application may purge messages by its own SQL. The log then skips their events as well."""
    head = await fill(hub, room, ada)
    await owner.execute(PURGE, room.id)
    assert [entry.seq for entry in found(await hub.messages.since(room.id, None))] == [1]
    await hub.messages.send(room.id, ada.id, "new")
    entries = found(await hub.messages.since(room.id, None))
    assert [entry.seq for entry in entries] == [1, head + 1]
    assert found(await hub.messages.since(room.id, entries[0].cursor)) == entries[1:]

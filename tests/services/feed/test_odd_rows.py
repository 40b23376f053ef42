"""Rows of other programs. No value in them breaks the feed of any room."""

from __future__ import annotations

import pytest

from hubbub import Hub, MessageSent, NewMessage, Role, Room, User
from hubbub.postgres import Pool, Statement
from services.feed.reading import entries, is_at, log_of, take_until

ODD_TIME = Statement(
    "test.odd_time",
    int,
    """
    UPDATE messages
    SET created_at = $2::text::timestamptz, updated_at = $2::text::timestamptz
    WHERE id = $1
    """,
)
ODD_EVENT_TIME = Statement(
    "test.odd_event_time",
    int,
    "UPDATE room_events SET created_at = $2::text::timestamptz WHERE room_id = $1 AND kind = 'role_changed'",
)
ODD_PAYLOAD = Statement(
    "test.odd_payload",
    int,
    "UPDATE room_events SET payload = $2::text::jsonb WHERE room_id = $1 AND kind = 'role_changed'",
)
ODD_METADATA = Statement("test.odd_metadata", int, "UPDATE messages SET metadata = $2::text::jsonb WHERE id = $1")
TIMES = ["-infinity", "infinity", "4713-01-01 BC", "0001-01-01 00:00:00+00", "294000-01-01", "10000-01-01"]


@pytest.mark.parametrize("time", TIMES)
async def test_odd_time_is_delivered_and_disturbs_no_room(
    comparing: Hub, without_redis: Hub, pool: Pool, room: Room, ada: User, bob: User, time: str
) -> None:
    """At the head of a log, within it and at a cursor, without announcements."""
    healthy = await comparing.rooms.create("healthy", created_by=ada.id)
    await comparing.room_users.add(room.id, bob.id)
    await comparing.room_users.set_role(room.id, bob.id, Role.MODERATOR)
    odd = (await comparing.messages.send_many(room.id, ada.id, [NewMessage("first"), NewMessage("odd")]))[1]
    await pool.execute(ODD_TIME, odd.id, time)
    await pool.execute(ODD_EVENT_TIME, room.id, time)
    async with comparing.follow(ada.id) as live, comparing.follow(ada.id, after={room.id: None}) as late:
        for one in (healthy, room, healthy):
            sent = await without_redis.messages.send(one.id, ada.id, "unannounced")
            received = await take_until(live, is_at(sent.seq, one.id))
            assert [event.cursor for event in entries(received)] == [sent.cursor]
        last = await without_redis.messages.send(room.id, ada.id, "last")
        received = await take_until(late, is_at(last.seq, room.id))
        log = [event for event in entries(received) if event.room_id == room.id]
        assert [event.seq for event in log] == list(range(1, last.seq + 1))
        assert all(event.at.tzinfo is not None for event in log)
    assert log == await log_of(comparing, room.id)
    for event in log:
        async with comparing.follow(ada.id, after={room.id: event.cursor}, rooms=[room.id]) as again:
            rest = await take_until(again, is_at(last.seq, room.id)) if event.seq < last.seq else []
            assert rest == log[event.seq :]


@pytest.mark.parametrize("buffer", [1, 1_000])
@pytest.mark.parametrize("payload", ["[]", '{"role": "emperor"}', '{"role": 7}', "null"])
async def test_entry_that_cannot_be_read_is_passed_over(
    comparing: Hub, pool: Pool, room: Room, ada: User, bob: User, payload: str, buffer: int
) -> None:
    """Even if it is alone on its page."""
    await comparing.room_users.add(room.id, bob.id)
    await comparing.room_users.set_role(room.id, bob.id, Role.MODERATOR)
    sent = await comparing.messages.send(room.id, ada.id, "odd")
    deep = await comparing.messages.send(room.id, ada.id, "deep")
    last = await comparing.messages.send(room.id, ada.id, "last")
    await pool.execute(ODD_PAYLOAD, room.id, payload)
    await pool.execute(ODD_METADATA, deep.id, '{"a":' + "[" * 3_000 + "]" * 3_000 + "}")
    async with comparing.follow(ada.id, after={room.id: None}, buffer=buffer) as feed:
        received = entries(await take_until(feed, is_at(last.seq)))
    assert [event.seq for event in received] == [1, 2, sent.seq, deep.seq, last.seq]
    assert [event.message.metadata for event in received if isinstance(event, MessageSent)] == [None] * 3
    assert received == await log_of(comparing, room.id, limit=1)

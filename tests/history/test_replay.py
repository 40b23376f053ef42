"""The later entries that supersede a line. Events that do not exist yet need no change of the import."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast
from uuid import UUID, uuid4

import pytest

from hubbub import Hub, Message, PostgresSettings, Room, User
from hubbub.events import LoggedEvent
from hubbub.history.existing import LATEST, LATEST_OF_USERS, Existing, Latest
from hubbub.history.lines import ChangeLine, EditLine, EventLine, JoinLine, Line, MemberChangeLine, MessageLine
from hubbub.history.replay import Replay
from hubbub.history.rooms import LockedRoom, MemberSnapshot, RoomLog
from hubbub.history.users import LineUsers
from hubbub.postgres import Pool, connect

ROOM, ADA = uuid4(), uuid4()
AT = datetime(2004, 12, 25, 9, 0, tzinfo=UTC)


class MessagePinned(LoggedEvent, frozen=True, tag="message_pinned"):
    kind = "pinned"
    by: UUID | None
    message: Message


class RoomArchived(LoggedEvent, frozen=True, tag="room_archived"):
    kind = "archived"
    by: UUID | None


class PinLine(Line, frozen=True, kw_only=True, gc=False, tag="pin"):
    event = MessagePinned
    message_id: UUID


class ArchiveLine(Line, frozen=True, kw_only=True, gc=False, tag="archive"):
    event = RoomArchived


def of(line: type[Line], **fields: object) -> Line:
    return line(at=AT, room_id=ROOM, user_id=ADA, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "subject"),
    [
        *((of(MessageLine, content="x"), "member"), (of(JoinLine), "member")),
        *((of(MemberChangeLine, metadata=None), "member"), (of(EditLine, message_id=uuid4()), None)),
        (of(ChangeLine, name="x", description=None, is_private=False), "room"),
        *((of(PinLine, message_id=uuid4()), None), (of(ArchiveLine), "room")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Line) else None,
)
def test_line_is_superseded_by_a_later_entry_about_the_same_subject_alone(line: Line, subject: str | None) -> None:
    room = RoomLog(LockedRoom(ROOM, 9, is_direct=False), MemberSnapshot(9), {})
    users = LineUsers()
    users._ids[ADA] = ADA
    for of_latest, user_id in (("member", ADA), ("room", None)):
        existing = Existing({}, {}, latest={(ROOM, user_id): Latest(9, AT)})
        replay = Replay([room], users, existing)
        assert replay._is_superseded(1, cast("EventLine", line), room) == (subject == of_latest)


async def test_latest_entries_are_about_members_and_the_room_and_not_about_messages(
    hub: Hub, pool: Pool, postgres_settings: PostgresSettings, room: Room, ada: User, bob: User
) -> None:
    await hub.room_users.add(room.id, bob.id)
    sent = await hub.messages.send(room.id, bob.id, "hello")
    await hub.rooms.update(room.id, name="renamed")
    connection = await connect(postgres_settings)
    try:
        await connection.execute("ALTER TABLE room_events DROP CONSTRAINT room_events_kind_check")
        await connection.execute(
            "INSERT INTO room_events (room_id, seq, kind, message_id, user_id) "
            "VALUES ($1, 100, 'archived', NULL, $2), ($1, 101, 'pinned', $3, $2), ($1, 102, 'left', NULL, NULL)",
            *(room.id, bob.id, sent.id),
        )
    finally:
        await connection.close()
    span = ([room.id], [1], [200])
    found = await pool.fetch_all(LATEST, *span, 100)
    assert {subject: latest.seq for _, subject, latest in found} == {ada.id: 1, bob.id: 2, None: 100}
    of_bob = await pool.fetch_all(LATEST_OF_USERS, *span, [bob.id])
    assert {subject: latest.seq for _, subject, latest in of_bob} == {bob.id: 2, None: 100}

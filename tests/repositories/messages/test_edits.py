from __future__ import annotations

import asyncio
from functools import partial
from uuid import uuid4

import pytest

from hubbub import Forbidden, Hub, Invalid, NotAMember, NotFound, Role, Room, User
from hubbub.models import Message, NewMessage
from hubbub.postgres import Pool
from log import log_of


async def test_edit_keeps_the_seq_and_is_logged_once(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    message = await hub.messages.send(room.id, ada.id, "helo")
    edited = await hub.messages.edit(message.id, "hello", by=ada.id)
    assert (edited.content, edited.is_edited, edited.seq) == ("hello", True, message.seq)
    assert edited.created_at == message.created_at
    assert await hub.messages.edit(message.id, "hello", by=ada.id) == edited
    assert await log_of(pool, room.id) == ["joined", "sent", "edited"]


async def test_deleted_message_stays_as_a_tombstone(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    message = await hub.messages.send(room.id, ada.id, "regret")
    deleted = await hub.messages.delete(message.id, by=ada.id)
    assert (deleted.content, deleted.seq) == ("", message.seq)
    assert deleted.deleted_at is not None
    assert await hub.messages.delete(message.id, by=ada.id) == deleted
    with pytest.raises(Invalid) as refused:
        await hub.messages.edit(message.id, "again", by=ada.id)
    assert refused.value.field == "message_id"
    assert (await hub.messages.page(room.id)).items == [deleted]
    assert await log_of(pool, room.id) == ["joined", "sent", "deleted"]


async def test_moderator_changes_messages_of_others_and_a_member_does_not(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    message = await hub.messages.send(room.id, ada.id, "hello")
    for change in (hub.messages.edit(message.id, "x", by=bob.id), hub.messages.delete(message.id, by=bob.id)):
        with pytest.raises(Forbidden, match="only its author, moderators and admins"):
            await change
    await hub.room_users.set_role(room.id, bob.id, Role.MODERATOR)
    assert (await hub.messages.edit(message.id, "moderated", by=bob.id)).content == "moderated"
    assert (await hub.messages.delete(message.id, by=bob.id)).deleted_at is not None
    assert await log_of(pool, room.id) == ["joined", "joined", "sent", "role_changed", "edited", "deleted"]


async def test_former_member_cannot_change_messages(hub: Hub, bob: User, room: Room) -> None:
    await hub.room_users.add(room.id, bob.id)
    message = await hub.messages.send(room.id, bob.id, "hello")
    await hub.room_users.remove(room.id, bob.id)
    with pytest.raises(NotAMember):
        await hub.messages.edit(message.id, "x", by=bob.id)
    with pytest.raises(NotAMember):
        await hub.messages.delete(message.id, by=bob.id)
    assert await hub.messages.get(message.id) == message


async def test_change_of_an_unknown_message_is_not_found(hub: Hub, ada: User) -> None:
    for operation in (
        hub.messages.edit(uuid4(), "x", by=ada.id),
        hub.messages.delete(uuid4(), by=ada.id),
    ):
        with pytest.raises(NotFound) as missing:
            await operation
        assert missing.value.kind == "message"


async def test_concurrent_edits_and_deletes_leave_no_gap_in_the_log(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    message = await hub.messages.send(room.id, ada.id, "hello")

    async def edit(n: int) -> None:
        try:
            await hub.messages.edit(message.id, f"edit {n}", by=ada.id)
        except Invalid:
            assert (await hub.messages.get(message.id)).deleted_at is not None

    deletes = [hub.messages.delete(message.id, by=ada.id) for _ in range(5)]
    await asyncio.gather(*(edit(n) for n in range(10)), *deletes)

    kinds = await log_of(pool, room.id)
    assert kinds.count("deleted") == 1
    assert kinds[-1] == "deleted"


async def test_message_is_found_in_the_room_that_the_caller_names(hub: Hub, ada: User, room: Room) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    sent = await hub.messages.send(room.id, ada.id, "hello")
    assert await hub.messages.get(sent.id, room_id=room.id) == sent
    assert await hub.messages.get(sent.id, room_id=room.id, as_user=ada.id) == sent
    assert await hub.messages.get_many([sent.id, uuid4()], room_id=room.id) == {sent.id: sent}
    assert (await hub.messages.edit(sent.id, "changed", by=ada.id, room_id=room.id)).content == "changed"
    assert (await hub.messages.edit(sent.id, "changed", by=ada.id, room_id=room.id)).content == "changed"

    assert await hub.messages.get_many([sent.id], room_id=other.id) == {}
    for call in (
        hub.messages.get,
        partial(hub.messages.get, as_user=ada.id),
        partial(hub.messages.edit, content="in another room", by=ada.id),
        partial(hub.messages.delete, by=ada.id),
    ):
        with pytest.raises(NotFound) as missing:
            await call(sent.id, room_id=other.id)
        assert (missing.value.kind, missing.value.key) == ("message", sent.id)
    with pytest.raises(Invalid, match="room_id"):
        await hub.messages.delete(sent.id, by=ada.id, room_id="room")  # type: ignore[arg-type]
    assert (await hub.messages.get(sent.id)).content == "changed"
    assert (await hub.messages.delete(sent.id, by=ada.id, room_id=room.id)).deleted_at is not None


async def test_changes_that_share_a_statement_keep_to_the_rooms_that_their_callers_name(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    sent = await hub.messages.send_many(room.id, ada.id, [NewMessage(f"message {n}") for n in range(40)])
    rooms = [(room.id, None, other.id)[n % 3] for n in range(40)]
    for change in (
        lambda message, room_id: hub.messages.edit(message.id, "changed", by=ada.id, room_id=room_id),
        lambda message, room_id: hub.messages.delete(message.id, by=ada.id, room_id=room_id),
    ):
        outcomes = await asyncio.gather(*map(change, sent, rooms), return_exceptions=True)
        assert [isinstance(outcome, NotFound) for outcome in outcomes] == [id == other.id for id in rooms]
        assert [isinstance(outcome, Message) for outcome in outcomes] == [id != other.id for id in rooms]
    changed = sum(id != other.id for id in rooms)
    assert (await log_of(pool, room.id)).count("edited") == changed
    assert (await log_of(pool, room.id)).count("deleted") == changed
    assert await log_of(pool, other.id) == ["joined"]

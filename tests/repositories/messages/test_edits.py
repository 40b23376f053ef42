from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from hubbub import Forbidden, Hub, Invalid, NotAMember, NotFound, Role, Room, User
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


async def test_moderator_but_no_member_changes_messages_of_others(
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

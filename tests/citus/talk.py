"""The operations of a chat, for databases whose rooms are distributed."""

from __future__ import annotations

import io
from uuid import uuid4

import pytest

from hubbub import Conflict, Hub, Invalid, NewMessage, NotAMember, Unavailable


async def talk(hub: Hub) -> None:
    """Run each operation of a chat once."""
    ada = await hub.users.create("ada@example.org", "ada", "not a hash")
    bob = await hub.users.create("bob@example.org", "bob", "not a hash")
    eve = await hub.users.create("eve@example.org", "eve", "not a hash")
    room = await hub.rooms.create("engine-room", created_by=ada.id, metadata={"topic": "steam"})
    with pytest.raises(Conflict, match="room id"):
        await hub.rooms.create("engine-room", created_by=ada.id, id=room.id)
    async with hub.follow(ada.id) as feed:
        assert (await hub.room_users.add(room.id, bob.id)).last_read_seq == 2
        sent = await hub.messages.send(room.id, ada.id, "hello", metadata={"a": 1})
        assert (sent.seq, sent.metadata) == (3, {"a": 1})
        assert await hub.messages.send(room.id, ada.id, "hello", id=sent.id) == sent
        with pytest.raises(NotAMember):
            await hub.messages.send(room.id, eve.id, "let me in")
        with pytest.raises(Invalid, match="reply_to"):
            await hub.messages.send(room.id, bob.id, "to what?", reply_to=uuid4())
        many = await hub.messages.send_many(
            room.id, bob.id, [NewMessage("one"), NewMessage("two", reply_to=sent.id), NewMessage("three")]
        )
        assert [message.seq for message in many] == [4, 5, 6]
        edited = await hub.messages.edit(sent.id, "hello!", by=ada.id)
        assert (edited.content, edited.is_edited, edited.seq) == ("hello!", True, 3)
        assert (await hub.messages.edit(sent.id, "hello!", by=ada.id, room_id=room.id)).is_edited
        assert (await hub.messages.delete(many[0].id, by=bob.id)).deleted_at is not None
        assert await hub.receipts.mark_read(room.id, ada.id, up_to=6) == 6
        assert [one.user_id for one in (await hub.receipts.readers(many[2].id)).items] == [ada.id]
        assert await hub.receipts.mark_unread(room.id, ada.id, from_seq=5) == 4
        assert await hub.receipts.unread_counts(ada.id) == {room.id: 2}
        kinds = [type(await anext(feed)).__name__ for _ in range(7)]
    assert kinds == ["MemberJoined", *["MessageSent"] * 4, "MessageEdited", "MessageDeleted"]
    page = await hub.messages.page(room.id)
    assert [message.seq for message in page.items] == [3, 4, 5, 6]
    log = await hub.messages.since(room.id, None)
    assert len(log.items) == 8
    [summary] = (await hub.rooms.list_for(ada.id)).items
    assert (summary.room.id, summary.unread, summary.last_message) == (room.id, 2, many[2])
    assert await hub.room_users.member_counts([room.id]) == {room.id: 2}
    joined = await hub.room_users.add_many(room.id, [eve.id, bob.id])
    assert [member.user_id for member in joined] == [eve.id]
    assert await hub.room_users.add_many(room.id, []) == []
    assert (await hub.room_users.set_role(room.id, eve.id, "moderator")).role == "moderator"
    assert await hub.room_users.remove(room.id, eve.id)
    direct = await hub.rooms.direct(ada.id, bob.id)
    assert (await hub.rooms.direct(bob.id, ada.id)).id == direct.id
    assert (await hub.rooms.update(room.id, name="boiler-room")).name == "boiler-room"
    with pytest.raises(Invalid):
        await hub.rooms.update(room.id, metadata={"a": "x" * 9000})
    await hub.users.set_online_many({ada.id: True, bob.id: False})
    await hub.users.delete(bob.id)
    assert [one.user_id for one in (await hub.room_users.members(room.id)).items] == [ada.id]
    await hub.rooms.delete(room.id)
    assert (await hub.rooms.list_for(ada.id)).items[0].room.id == direct.id
    for refused in (hub.changes.end(), hub.history.load(io.BytesIO())):
        with pytest.raises(Unavailable, match="distributed") as error:
            await refused
        assert not error.value.retryable

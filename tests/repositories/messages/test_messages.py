from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest

from hubbub import Conflict, Hub, Invalid, MessageType, NotAMember, NotFound, Room, User
from hubbub.models import Message, NewMessage
from hubbub.postgres import Executor, Pool, Statement
from hubbub.repositories.messages import send
from log import log_of


async def talk(hub: Hub, room: Room, user: User, count: int) -> list[Message]:
    return [await hub.messages.send(room.id, user.id, f"message {n}") for n in range(count)]


async def test_message_takes_the_next_seq_of_its_room(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    first, second = await talk(hub, room, ada, 2)
    assert (first.seq, second.seq) == (2, 3)
    assert (first.user_id, first.room_id, first.content) == (ada.id, room.id, "message 0")
    assert first.message_type is MessageType.TEXT
    assert not first.is_edited
    assert await hub.messages.get(first.id) == first
    assert (await hub.rooms.get(room.id)).last_seq == 3
    assert await log_of(pool, room.id) == ["joined", "sent", "sent"]


@pytest.mark.parametrize(
    "content",
    [
        "'; DROP TABLE messages; --",
        "$1 %s {} \\ \\x00 \"quoted\" 'single'",
        "ünïcödé 🦊 \u202eright to left\u202c \u200bzero width",
        "line\r\nline\ttab",
        '{"a": [[[[[[[[]]]]]]]]}',
        "%_LIKE*?[a-z]",
        "x" * 20_000,
        "🦊" * 20_000,
    ],
)
async def test_content_comes_back_as_it_was_sent(hub: Hub, ada: User, room: Room, content: str) -> None:
    sent = await hub.messages.send(room.id, ada.id, content)
    assert sent.content == content
    [read] = (await hub.messages.page(room.id)).items
    assert read == sent


@pytest.mark.parametrize("content", ["", " \n\t", "a\0b", "\ud800", "x" * 20_001, b"bytes", None, 5])
async def test_unusable_content_is_refused_and_takes_no_seq(
    hub: Hub, pool: Pool, ada: User, room: Room, content: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await hub.messages.send(room.id, ada.id, content)
    assert refused.value.field == "content"
    assert await log_of(pool, room.id) == ["joined"]


@pytest.mark.parametrize(
    ("message_type", "metadata"), [("text", {"emoji": "1f98a"}), ("image", None), ("file", {})]
)
async def test_message_with_metadata_or_an_attachment_needs_no_text(
    hub: Hub, ada: User, room: Room, message_type: str, metadata: dict[str, object] | None
) -> None:
    send = hub.messages.send
    alone = await send(room.id, ada.id, "", message_type=message_type, metadata=metadata)
    shared = await asyncio.gather(
        *(send(room.id, ada.id, "", message_type=message_type, metadata=metadata) for _ in range(5))
    )
    drafts = [NewMessage("", MessageType(message_type), metadata=metadata), NewMessage("with words")]
    many = await hub.messages.send_many(room.id, ada.id, drafts)
    assert (await hub.messages.page(room.id)).items == [alone, *sorted(shared, key=lambda sent: sent.seq), *many]
    assert {sent.content for sent in (alone, *shared, many[0])} == {""}
    captioned = await hub.messages.edit(alone.id, "a fox", by=ada.id)
    assert (captioned.content, captioned.is_edited, captioned.metadata) == ("a fox", True, metadata)
    assert (await hub.messages.edit(alone.id, "", by=ada.id)).content == ""
    assert (await hub.messages.delete(alone.id, by=ada.id)).deleted_at is not None
    assert await hub.receipts.unread_count(room.id, ada.id) == 0


async def test_edit_that_leaves_a_text_message_empty_is_refused(hub: Hub, ada: User, room: Room) -> None:
    """In a transaction too, which remains usable."""
    sent = await hub.messages.send(room.id, ada.id, "words")
    for blank in ("", "  "):
        with pytest.raises(Invalid, match="content: must not be blank"):
            await hub.messages.edit(sent.id, blank, by=ada.id)
    async with hub.transaction() as tx:
        with pytest.raises(Invalid, match="content: must not be blank"):
            await tx.messages.edit(sent.id, "", by=ada.id)
        assert (await tx.messages.edit(sent.id, "other words", by=ada.id)).is_edited


async def test_unknown_message_type_is_refused(hub: Hub, ada: User, room: Room) -> None:
    assert (await hub.messages.send(room.id, ada.id, "cat.png", message_type="image")).message_type == "image"
    with pytest.raises(Invalid) as refused:
        await hub.messages.send(room.id, ada.id, "x", message_type="video")
    assert refused.value.field == "message_type"


async def test_only_members_send_and_a_refusal_takes_no_seq(hub: Hub, pool: Pool, bob: User, room: Room) -> None:
    for room_id, user_id in ((room.id, bob.id), (room.id, uuid4()), (uuid4(), bob.id)):
        with pytest.raises(NotAMember) as refused:
            await hub.messages.send(room_id, user_id, "let me in")
        assert (refused.value.room_id, refused.value.user_id) == (room_id, user_id)
    assert await log_of(pool, room.id) == ["joined"]


async def test_retry_returns_the_first_message_and_takes_no_seq(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    id = uuid4()
    first = await hub.messages.send(room.id, ada.id, "hello", id=id)
    await hub.messages.send(room.id, ada.id, "in between")
    assert await hub.messages.send(room.id, ada.id, "hello", id=id) == first
    assert await log_of(pool, room.id) == ["joined", "sent", "sent"]


async def test_concurrent_retries_send_one_message(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    id = uuid4()
    sent = await asyncio.gather(*(hub.messages.send(room.id, ada.id, "hello", id=id) for _ in range(20)))
    assert len(set(sent)) == 1
    assert await log_of(pool, room.id) == ["joined", "sent"]


@pytest.mark.parametrize("many", [False, True])
async def test_retry_sends_a_message_again_that_is_lost_between_the_refusal_and_the_search(
    hub: Hub, pool: Pool, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """As by a failover: the primary refuses the id, and the standby, which does not have the message, is asked."""
    id = uuid4()
    await hub.messages.send(room.id, ada.id, "hello", id=id)
    find, lost = send.find_earlier_sends, 0

    async def find_after_the_loss(
        executor: Executor, drafts: Sequence[send.Draft], *, deadline: float
    ) -> send.SendOutcomes:
        nonlocal lost
        lost += await pool.execute(Statement("test.lose", int, "DELETE FROM messages WHERE id = $1"), id)
        return await find(executor, drafts, deadline=deadline)

    monkeypatch.setattr(send, "find_earlier_sends", find_after_the_loss)
    if many:
        [sent] = await hub.messages.send_many(room.id, ada.id, [NewMessage("hello", id=id)])
    else:
        sent = await hub.messages.send(room.id, ada.id, "hello", id=id)
    assert (lost, sent.seq) == (1, 3)
    assert await hub.messages.get(id) == sent


async def test_retry_in_a_transaction_leaves_it_usable(hub: Hub, ada: User, room: Room) -> None:
    id = uuid4()
    first = await hub.messages.send(room.id, ada.id, "hello", id=id)
    async with hub.transaction() as tx:
        assert await tx.messages.send(room.id, ada.id, "hello", id=id) == first
        with pytest.raises(NotAMember):
            await tx.messages.send(room.id, uuid4(), "who?")
        await tx.messages.send(room.id, ada.id, "after the retry")
    assert [message.content for message in (await hub.messages.page(room.id)).items] == [
        "hello",
        "after the retry",
    ]


@pytest.mark.one_server("an id is unique within its room only there")
async def test_id_reused_for_something_else_is_a_conflict(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room
) -> None:
    other_room = await hub.rooms.create("other", created_by=ada.id)
    await hub.room_users.add(room.id, bob.id)
    id = uuid4()
    await hub.messages.send(room.id, ada.id, "hello", id=id)
    for again in (
        hub.messages.send(room.id, ada.id, "other content", id=id),
        hub.messages.send(other_room.id, ada.id, "hello", id=id),
        hub.messages.send(room.id, bob.id, "hello", id=id),
        hub.messages.send(room.id, ada.id, "hello", id=id, message_type="file"),
    ):
        with pytest.raises(Conflict) as refused:
            await again
        assert refused.value.what == "message id"
    assert await log_of(pool, room.id) == ["joined", "joined", "sent"]
    assert await log_of(pool, other_room.id) == ["joined"]


async def test_late_retry_of_an_edited_or_deleted_message_is_recognised(hub: Hub, ada: User, room: Room) -> None:
    id = uuid4()
    await hub.messages.send(room.id, ada.id, "helo", id=id)
    edited = await hub.messages.edit(id, "hello", by=ada.id)
    assert await hub.messages.send(room.id, ada.id, "helo", id=id) == edited
    assert await hub.messages.send(room.id, ada.id, "another", id=id) == edited  # as docs/log.md has it
    deleted = await hub.messages.delete(id, by=ada.id)
    assert await hub.messages.send(room.id, ada.id, "helo", id=id) == deleted
    with pytest.raises(Conflict):
        await hub.messages.send(room.id, ada.id, "helo", id=id, message_type="file")


async def test_two_hubs_on_one_database_share_one_order(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    async with Hub(hub.settings) as other:
        await asyncio.gather(talk(hub, room, ada, 30), talk(other, room, ada, 30))
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * 60


class Regret(Exception):
    pass


async def send_and_regret(hub: Hub, room: Room, user: User) -> None:
    async with hub.transaction() as tx:
        await tx.messages.send(room.id, user.id, "never")
        raise Regret


async def test_rolled_back_send_takes_no_seq(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    with pytest.raises(Regret):
        await send_and_regret(hub, room, ada)
    async with hub.transaction() as tx:
        with suppress(Regret):
            async with tx.savepoint() as part:
                await part.messages.send(room.id, ada.id, "not this")
                raise Regret
        await tx.messages.send(room.id, ada.id, "but this")
    [message] = (await hub.messages.page(room.id)).items
    assert (message.content, message.seq) == ("but this", 2)
    assert await log_of(pool, room.id) == ["joined", "sent"]


async def test_unknown_message_is_not_found(hub: Hub) -> None:
    with pytest.raises(NotFound) as missing:
        await hub.messages.get(uuid4())
    assert missing.value.kind == "message"
    assert await hub.messages.get_many([uuid4()]) == {}


async def test_pages_in_both_directions_have_every_message(hub: Hub, ada: User, bob: User, room: Room) -> None:
    messages = await talk(hub, room, ada, 5)
    await hub.room_users.add(room.id, bob.id)  # a seq without a message
    messages += await talk(hub, room, ada, 6)

    page = await hub.messages.page(room.id, limit=4)
    assert (page.items, page.has_older, page.has_newer) == (messages[-4:], True, False)
    back = page.items
    while page.has_older:
        page = await hub.messages.page(room.id, before=page.items[0], limit=4)
        assert page.has_newer
        back = page.items + back
    assert back == messages

    page = await hub.messages.page(room.id, after=0, limit=4)
    assert not page.has_older
    forth = page.items
    while page.has_newer:
        page = await hub.messages.page(room.id, after=page.items[-1].seq, limit=4)
        assert page.has_older
        forth += page.items
    assert forth == messages


async def test_page_around_a_message_has_it_in_the_middle(hub: Hub, ada: User, room: Room) -> None:
    messages = await talk(hub, room, ada, 11)
    for place in (messages[5], messages[5].seq, messages[5].id):
        page = await hub.messages.page(room.id, around=place, limit=5)
        assert page.items == messages[3:8]
        assert (page.has_older, page.has_newer) == (True, True)
    whole = await hub.messages.page(room.id, around=messages[5], limit=50)
    assert (whole.items, whole.has_older, whole.has_newer) == (messages, False, False)


async def test_page_at_an_end_has_no_more_on_that_side(hub: Hub, ada: User, room: Room) -> None:
    assert (await hub.messages.page(room.id)).items == []
    messages = await talk(hub, room, ada, 3)
    before_all = await hub.messages.page(room.id, before=messages[0])
    assert (before_all.items, before_all.has_older, before_all.has_newer) == ([], False, True)
    after_all = await hub.messages.page(room.id, after=messages[-1])
    assert (after_all.items, after_all.has_older, after_all.has_newer) == ([], True, False)
    far = await hub.messages.page(room.id, after=2**63 - 1)
    assert (far.items, far.has_older, far.has_newer) == ([], True, False)


async def test_page_does_not_shift_while_messages_arrive(hub: Hub, ada: User, room: Room) -> None:
    messages = await talk(hub, room, ada, 6)
    page = await hub.messages.page(room.id, limit=3)
    await talk(hub, room, ada, 5)
    older = await hub.messages.page(room.id, before=page.items[0], limit=3)
    assert older.items + page.items == messages


async def test_page_after_the_read_mark_starts_at_the_first_unread(
    hub: Hub, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    messages = await talk(hub, room, ada, 5)
    await hub.receipts.mark_read(room.id, bob.id, up_to=messages[1].seq)
    member = await hub.room_users.get(room.id, bob.id)
    page = await hub.messages.page(room.id, after=member.last_read_seq, limit=2)
    assert page.items == messages[2:4]


@pytest.mark.parametrize(
    ("anchor", "seen"),
    [({}, 0), ({"before": 3}, 3), ({"after": 3}, 3), ({"around": 3}, 3), ({"around": 3, "limit": 1}, 3)],
)
async def test_page_is_read_where_its_anchor_is(
    hub: Hub, room: Room, monkeypatch: pytest.MonkeyPatch, anchor: dict[str, Any], seen: int
) -> None:
    """A replica without the anchor would give another page."""
    asked: list[int] = []
    read_room = hub.messages._read_room

    async def note_seen(room_id: UUID, seq: int, *args: Any) -> Any:  # noqa: ANN401 - passed on
        asked.append(seq)
        return await read_room(room_id, seq, *args)

    monkeypatch.setattr(hub.messages, "_read_room", note_seen)
    await hub.messages.page(room.id, **anchor)
    await hub.messages.page_json(room.id, **anchor)
    assert asked == [seen, seen]


async def test_page_of_an_unknown_room_is_not_found(hub: Hub) -> None:
    with pytest.raises(NotFound) as missing:
        await hub.messages.page(uuid4())
    assert missing.value.kind == "room"


async def test_anchor_in_another_room_is_refused(hub: Hub, ada: User, room: Room) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    [message] = await talk(hub, other, ada, 1)
    for page in (
        hub.messages.page(room.id, before=message),
        hub.messages.page(room.id, after=message),
        hub.messages.page(room.id, around=message),
        hub.messages.page(room.id, around=message.id),
    ):
        with pytest.raises(Invalid):
            await page
    with pytest.raises(NotFound):
        await hub.messages.page(room.id, around=uuid4())


@pytest.mark.parametrize("place", [-1, 2**63, True, 1.5, "7", UUID(int=1)])
async def test_value_that_is_not_an_anchor_is_refused(hub: Hub, room: Room, place: int) -> None:
    for page in (hub.messages.page(room.id, before=place), hub.messages.page(room.id, after=place)):
        with pytest.raises(Invalid):
            await page


async def test_only_one_anchor_can_be_given(hub: Hub, room: Room) -> None:
    with pytest.raises(Invalid):
        await hub.messages.page(room.id, before=5, after=1)


async def test_messages_by_author_are_newest_first_from_all_rooms(
    hub: Hub, ada: User, bob: User, room: Room
) -> None:
    other = await hub.rooms.create("other", created_by=bob.id)
    await hub.room_users.add(room.id, bob.id)
    written = []
    for n in range(6):
        written.append(await hub.messages.send((room, other)[n % 2].id, bob.id, f"message {n}"))
        await hub.messages.send(room.id, ada.id, "not bob's")
    await hub.messages.delete(written[3].id, by=bob.id)

    seen, after = [], None
    while True:
        page = await hub.messages.by_author(bob.id, limit=2, after=after)
        seen += page.items
        if page.next is None:
            break
        after = page.next
    assert seen == [message for message in reversed(written) if message != written[3]]


async def test_get_many_returns_messages_in_one_query(hub: Hub, ada: User, room: Room) -> None:
    messages = await talk(hub, room, ada, 3)
    found = await hub.messages.get_many([messages[0].id, messages[2].id, uuid4()])
    assert found == {messages[0].id: messages[0], messages[2].id: messages[2]}


async def test_each_concurrent_sender_keeps_its_order(hub: Hub, pool: Pool, room: Room) -> None:
    senders = [await hub.users.create(f"p{n}@example.org", f"p{n}", "hash") for n in range(8)]
    await hub.room_users.add_many(room.id, [sender.id for sender in senders])
    sent = await asyncio.gather(*(talk(hub, room, sender, 15) for sender in senders))
    for messages in sent:
        assert [message.seq for message in messages] == sorted(message.seq for message in messages)
    assert (await log_of(pool, room.id)).count("sent") == 120

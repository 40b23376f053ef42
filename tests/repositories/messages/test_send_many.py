"""Calls of `send_many` store all messages or none, keep their order, and are safe to repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import pytest

from hubbub import (
    Conflict,
    Hub,
    Invalid,
    Message,
    NewMessage,
    NotAMember,
    Room,
    Settings,
    Unavailable,
    User,
    scheduling,
)
from hubbub.commits import Change, MessagesSent
from hubbub.inputs import CONTENT_LENGTH
from hubbub.models import MessageType
from hubbub.postgres import Pool
from hubbub.repositories.messages import send, writer
from hubbub.repositories.messages.send import Draft
from instrumentation.recording import Recording
from log import log_of


def some(count: int) -> list[NewMessage]:
    return [NewMessage(f"message {n}", id=uuid4()) for n in range(count)]


def contents(messages: Sequence[Message]) -> list[str]:
    return [message.content for message in messages]


@pytest.mark.parametrize("count", [1, 2, send.MESSAGES_PER_STATEMENT, send.MESSAGES_PER_STATEMENT * 2 + 1])
async def test_send_many_keeps_the_order_of_the_list(
    hub: Hub, pool: Pool, ada: User, room: Room, count: int
) -> None:
    sent = await hub.messages.send_many(room.id, ada.id, some(count))
    assert contents(sent) == [f"message {n}" for n in range(count)]
    assert [message.seq for message in sent] == list(range(2, count + 2))
    assert await hub.messages.get_many([message.id for message in sent]) == {
        message.id: message for message in sent
    }
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * count


async def test_messages_of_send_many_are_contiguous(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    count = send.MESSAGES_PER_STATEMENT + 10
    [first, second, *single] = await asyncio.gather(
        hub.messages.send_many(room.id, ada.id, some(count)),
        hub.messages.send_many(room.id, ada.id, some(count)),
        *(hub.messages.send(room.id, ada.id, f"{n}") for n in range(50)),
    )
    for sent in (first, second):
        assert isinstance(sent, list)
        assert [message.seq for message in sent] == list(range(sent[0].seq, sent[0].seq + count))
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * (2 * count + len(single))


async def test_send_many_of_an_empty_list_sends_nothing(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    assert await hub.messages.send_many(room.id, ada.id, iter([])) == []
    assert await log_of(pool, room.id) == ["joined"]


async def test_draft_may_have_every_field_of_a_message(hub: Hub, ada: User, room: Room) -> None:
    question = uuid4()
    sent = await hub.messages.send_many(
        room.id,
        ada.id,
        (
            NewMessage("tea?", id=question, metadata={"cups": 2}),
            NewMessage("tea.png", message_type="image", reply_to=question),
        ),
    )
    assert [(one.message_type, one.reply_to, one.metadata) for one in sent] == [
        (MessageType.TEXT, None, {"cups": 2}),
        (MessageType.IMAGE, question, None),
    ]
    assert (await hub.messages.page(room.id)).items == sent


@pytest.mark.parametrize("count", [5, send.MESSAGES_PER_STATEMENT * 2 + 5])
async def test_retry_returns_the_first_messages_and_takes_no_seq(
    hub: Hub, pool: Pool, ada: User, room: Room, count: int
) -> None:
    news = some(count)
    first = await hub.messages.send_many(room.id, ada.id, news)
    await hub.messages.send(room.id, ada.id, "in between")
    assert await hub.messages.send_many(room.id, ada.id, news) == first
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * (count + 1)


async def test_drafts_that_were_sent_before_keep_their_seq(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    news = some(5)
    before = await hub.messages.send(room.id, ada.id, news[3].content, id=news[3].id)
    sent = await hub.messages.send_many(room.id, ada.id, news)
    assert [message.seq for message in sent] == [3, 4, 5, 2, 6]
    assert sent[3] == before
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * 5


async def test_concurrent_retries_of_send_many_send_once(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    news = some(20)
    async with Hub(hub.settings) as other:
        results = await asyncio.gather(
            *((hub, other)[n % 2].messages.send_many(room.id, ada.id, news) for n in range(8))
        )
    assert all(result == results[0] for result in results)
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * 20


@pytest.mark.parametrize("count", [5, send.MESSAGES_PER_STATEMENT + 5])
async def test_send_many_with_a_refused_draft_sends_none(
    hub: Hub, pool: Pool, ada: User, bob: User, room: Room, count: int
) -> None:
    taken = uuid4()
    await hub.messages.send(room.id, ada.id, "something else", id=taken)
    with pytest.raises(Invalid) as refused:
        await hub.messages.send_many(room.id, ada.id, [*some(count), NewMessage("to nothing", reply_to=uuid4())])
    assert refused.value.field == f"drafts[{count}].reply_to"
    with pytest.raises(Conflict):
        await hub.messages.send_many(room.id, ada.id, [*some(count), NewMessage("other", id=taken)])
    with pytest.raises(NotAMember):
        await hub.messages.send_many(room.id, bob.id, some(count))
    with pytest.raises(NotAMember):
        await hub.messages.send_many(uuid4(), ada.id, some(count))
    assert await log_of(pool, room.id) == ["joined", "sent"]


async def test_draft_cannot_reply_to_a_later_one(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    late = uuid4()
    with pytest.raises(Invalid) as refused:
        await hub.messages.send_many(
            room.id, ada.id, [NewMessage("too early", reply_to=late), NewMessage("late", id=late)]
        )
    assert refused.value.field == "drafts[0].reply_to"
    assert await log_of(pool, room.id) == ["joined"]


async def test_invalid_draft_is_refused_before_a_statement_is_sent(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    id = uuid4()
    for wrong, field in (
        (NewMessage(""), "drafts[1].content"),
        (NewMessage("x", message_type="video"), "drafts[1].message_type"),
        (NewMessage("x", metadata={"x": "\0"}), "drafts[1].metadata"),
        (NewMessage("x", id=id), "drafts[1].id"),
        (NewMessage("x", id="no id"), "drafts[1].id"),  # type: ignore[arg-type]
        ("x", "drafts[1]"),
    ):
        with pytest.raises(Invalid) as refused:
            await hub.messages.send_many(room.id, ada.id, [NewMessage("fine", id=id), wrong])  # type: ignore[list-item]
        assert refused.value.field == field
    with pytest.raises(Invalid) as refused:
        await hub.messages.send_many(room.id, ada.id, (NewMessage("x") for _ in range(send.MAX_DRAFTS + 1)))
    assert refused.value.field == "drafts"
    assert await log_of(pool, room.id) == ["joined"]


async def test_send_many_is_part_of_its_transaction(hub: Hub, pool: Pool, ada: User, room: Room) -> None:
    news = some(send.MESSAGES_PER_STATEMENT + 1)
    with pytest.raises(ZeroDivisionError):
        await send_and_fail(hub, room, ada, news)
    assert await log_of(pool, room.id) == ["joined"]
    async with hub.transaction() as tx:
        first = await tx.messages.send_many(room.id, ada.id, news)
        assert await tx.messages.send_many(room.id, ada.id, news) == first
        with pytest.raises(Invalid):
            await tx.messages.send_many(room.id, ada.id, [*some(600), NewMessage("x", reply_to=uuid4())])
        await tx.messages.send(room.id, ada.id, "after")
    assert await log_of(pool, room.id) == ["joined"] + ["sent"] * (send.MESSAGES_PER_STATEMENT + 2)


async def send_and_fail(hub: Hub, room: Room, user: User, news: list[NewMessage]) -> None:
    async with hub.transaction() as tx:
        await tx.messages.send_many(room.id, user.id, news)
        raise ZeroDivisionError


def drafts_of(room: Room, user: User, count: int) -> list[Draft]:
    return [Draft(uuid4(), room.id, user.id, f"{n}", MessageType.TEXT) for n in range(count)]


async def test_messages_of_a_cancelled_send_many_are_reported_in_order(
    hub: Hub, pool: Pool, ada: User, room: Room
) -> None:
    reported: list[UUID] = []
    many = drafts_of(room, ada, send.MESSAGES_PER_STATEMENT + 1)

    def note(change: Change) -> None:
        assert isinstance(change, MessagesSent)
        reported.extend(message.id for message in change.messages)

    messages = writer.MessageWriter(pool, note, deadline_seconds=10)
    async with hub.transaction() as tx:
        await tx.rooms.update(room.id, description="locked")
        sending = asyncio.create_task(messages.send_many(many))
        while pool.idle:  # noqa: ASYNC110 - until its statement is in flight
            await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert reported == []
    await messages.drain()
    assert reported == [draft.id for draft in many]
    with pytest.raises(Unavailable, match="it is closed"):
        await messages.send_many(many)


async def test_concurrent_send_many_calls_do_not_take_the_whole_pool(
    settings: Settings, hub: Hub, ada: User, room: Room
) -> None:
    async with Hub(settings) as sending:
        async with hub.transaction() as tx:
            await tx.rooms.update(room.id, description="locked")
            stuck = [asyncio.create_task(sending.messages.send_many(room.id, ada.id, some(3))) for _ in range(30)]
            assert await sending.users.find_by_username("ada") == ada
            assert not any(call.done() for call in stuck)
            for call in stuck[::2]:
                call.cancel()
            await asyncio.wait(stuck[::2])
        assert [len(sent) for sent in await asyncio.gather(*stuck[1::2])] == [3] * 15


LONGEST = "\N{GRINNING FACE}" * CONTENT_LENGTH


async def test_large_messages_are_sent_in_parts_all_or_none(settings: Settings, ada: User, room: Room) -> None:
    recording = Recording()
    async with Hub(settings, instrumentation=recording) as hub:
        news = [NewMessage(LONGEST, metadata={"n": number}) for number in range(120)]
        sent = await hub.messages.send_many(room.id, ada.id, news)
        assert [message.seq for message in sent] == list(range(2, 122))
        assert len(recording.outcomes("messages.send_many")) == 3
        with pytest.raises(Invalid) as refused:
            await hub.messages.send_many(room.id, ada.id, [*news, NewMessage("x", reply_to=uuid4())])
        assert refused.value.field == "drafts[120].reply_to"
        assert (await hub.rooms.get(room.id)).last_seq == 121


async def test_large_messages_of_many_senders_share_statements_of_bounded_size(
    settings: Settings, ada: User, room: Room
) -> None:
    recording = Recording()
    async with Hub(settings, instrumentation=recording) as hub:
        sent = await asyncio.gather(*[hub.messages.send(room.id, ada.id, LONGEST) for _ in range(120)])
        assert sorted(message.seq for message in sent) == list(range(2, 122))
        assert 3 <= len(recording.outcomes("messages.send_many")) <= 8


async def test_other_tasks_have_their_turn_while_many_messages_are_checked(
    hub: Hub, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "SLICE_SECONDS", 0)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(count_turns())
    with pytest.raises(Invalid, match="duplicate"):
        await hub.messages.send_many(room.id, ada.id, [*(new := some(100)), new[0]])
    others.cancel()
    assert turns >= 100

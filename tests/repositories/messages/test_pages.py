"""Pages as JSON, compared with pages as objects."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypedDict
from uuid import uuid4

import msgspec
import pytest

from hubbub import Hub, Invalid, Message, MessagePage, NewMessage, NotFound, Resync, Room, User
from hubbub.postgres import Pool, Replicas
from hubbub.postgres.connection import now
from hubbub.repositories import Messages


class Places(TypedDict, total=False):
    before: int | Message
    after: int | Message
    around: int | Message
    limit: int


SPANS: list[Places] = [
    {},
    {"limit": 1},
    {"limit": 200},
    {"before": 5},
    {"before": 2, "limit": 3},
    {"before": 0},
    {"after": 0, "limit": 4},
    {"after": 7, "limit": 200},
    {"after": 2**63 - 1},
    {"around": 6, "limit": 3},
    {"around": 1, "limit": 1},
    {"around": 10_000, "limit": 4},
]


@pytest.fixture
async def said(hub: Hub, room: Room, ada: User) -> list[Message]:
    """Messages of every kind, with characters that JSON has to escape."""
    contents = ["hello", 'a "quote"', "back\\slash", "line\r\nline\t", "🦊 \u202e \u200b", "</script>", "\x01a"]
    said = await hub.messages.send_many(room.id, ada.id, [NewMessage(content) for content in contents])
    metadata = {"n": 1, "f": 1.5, "t": ["a", None, True, {"x": "ü\n"}], "": {}}
    reply = await hub.messages.send(room.id, ada.id, "reply", reply_to=said[0].id, metadata=metadata)
    await hub.messages.edit(said[1].id, "edited", by=ada.id)
    await hub.messages.delete(said[2].id, by=ada.id)
    return [*said, reply]


@pytest.mark.parametrize("places", SPANS)
async def test_page_json_equals_the_page(hub: Hub, room: Room, said: list[Message], places: Places) -> None:
    page = await hub.messages.page(room.id, **places)
    as_json = await hub.messages.page_json(room.id, **places)
    assert msgspec.json.decode(as_json, type=MessagePage) == page
    keys = msgspec.json.decode(msgspec.json.encode(page))
    assert json.loads(as_json).keys() == keys.keys()
    for one, other in zip(json.loads(as_json)["items"], keys["items"], strict=True):
        assert list(one) == list(other)


@pytest.mark.parametrize("places", SPANS)
async def test_cursor_of_a_page_is_that_of_its_newest_message(
    hub: Hub, room: Room, said: list[Message], places: Places
) -> None:
    page = await hub.messages.page(room.id, **places)
    assert page.cursor == (page.items[-1].cursor if page.items else None)
    assert json.loads(await hub.messages.page_json(room.id, **places))["cursor"] == page.cursor
    since = await hub.messages.since(room.id, page.cursor)
    assert [event.seq for event in since.items if not isinstance(event, Resync)] == list(
        range((page.items[-1].seq if page.items else 0) + 1, said[-1].seq + 3)
    )


async def test_room_without_messages_is_an_empty_page_and_an_unknown_one_is_not_found(
    hub: Hub, room: Room
) -> None:
    assert json.loads(await hub.messages.page_json(room.id)) == {
        "room_id": str(room.id),
        "items": [],
        "has_older": False,
        "has_newer": False,
        "cursor": None,
    }
    with pytest.raises(NotFound):
        await hub.messages.page_json(uuid4())


async def test_page_json_takes_and_refuses_the_anchors_of_a_page(
    hub: Hub, room: Room, said: list[Message], ada: User
) -> None:
    by_id = await hub.messages.page_json(room.id, around=said[3].id, limit=3)
    by_message, by_seq = await asyncio.gather(
        hub.messages.page_json(room.id, around=said[3], limit=3),
        hub.messages.page_json(room.id, around=said[3].seq, limit=3),
    )
    assert by_id == by_message == by_seq
    as_text: Any = str(said[3].id).upper()
    assert by_id == await hub.messages.page_json(room.id, around=as_text, limit=3)
    with pytest.raises(Invalid, match="around: must be a UUID"):
        await hub.messages.page(room.id, around=as_text[1:])
    other = await hub.rooms.create("other", created_by=ada.id)
    with pytest.raises(Invalid):
        await hub.messages.page_json(other.id, before=said[3])
    with pytest.raises(Invalid):
        await hub.messages.page_json(room.id, before=1, after=2)


async def test_page_json_in_a_transaction_has_its_state(hub: Hub, room: Room, ada: User) -> None:
    async with hub.transaction() as tx:
        sent = await tx.messages.send(room.id, ada.id, "not yet")
        assert msgspec.json.decode(await tx.messages.page_json(room.id), type=MessagePage).items == [sent]
    assert b"not yet" in await hub.messages.page_json(room.id)


async def test_shared_page_has_all_messages_from_before_each_call(hub: Hub, room: Room, ada: User) -> None:
    acknowledged = 0

    async def send() -> None:
        nonlocal acknowledged
        for number in range(60):
            acknowledged = (await hub.messages.send(room.id, ada.id, f"message {number}")).seq

    async def read(*, as_json: bool) -> None:
        while not sending.done():
            least = acknowledged
            if as_json:
                page = msgspec.json.decode(await hub.messages.page_json(room.id), type=MessagePage)
            else:
                page = await hub.messages.page(room.id)
            assert [message.seq for message in page.items] == sorted(message.seq for message in page.items)
            assert (page.items[-1].seq if page.items else 0) >= least

    sending = asyncio.create_task(send())
    await asyncio.gather(sending, *(read(as_json=number % 4 == 0) for number in range(20)))


async def test_callers_of_a_shared_page_have_their_own_lists(hub: Hub, room: Room, said: list[Message]) -> None:
    pages = await asyncio.gather(*(hub.messages.page(room.id) for _ in range(5)))
    for page in pages:
        page.items.clear()
    assert len((await hub.messages.page(room.id)).items) == len(said)
    again = await asyncio.gather(*(hub.messages.page(room.id) for _ in range(5)))
    again[1].items.clear()
    assert [len(page.items) for page in again] == [len(said), 0, len(said), len(said), len(said)]


async def test_message_of_the_same_transaction_is_on_the_page(hub: Hub, room: Room, ada: User) -> None:
    async with hub.transaction() as tx:
        sent = await tx.messages.send(room.id, ada.id, "mine")
        pages = await asyncio.gather(*(tx.messages.page(room.id) for _ in range(3)))
        assert [page.items[-1] for page in pages] == [sent] * 3
        assert sent not in (await hub.messages.page(room.id)).items


async def test_page_by_the_text_of_a_room_id_is_compared_with_the_head_of_the_room(pool: Pool, room: Room) -> None:
    replicas = Replicas(pool, [pool], lambda _: 0)
    [replica] = replicas._replicas
    replica.measurements, replica.has_all_until = 2, now()
    messages, room_id = Messages(pool, replicas=replicas), str(room.id)
    await messages.page(room_id)  # type: ignore[arg-type]
    assert replicas._seqs == {room.id: 1}
    replicas._seqs.clear()
    await messages.page_json(room_id)  # type: ignore[arg-type]
    assert replicas._seqs == {room.id: 1}

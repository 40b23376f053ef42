"""The gateway on a real server. A client sends and receives, disconnects and reconnects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from hubbub import Hub, Room, User, new_id
from hubbub.positions import fingerprints, page_of
from hubbub.web import Gateway, sockets
from hubbub.web.sockets import MAX_FRAMES
from web.serving import Client, serving


@pytest.fixture
async def port(hub: Hub) -> AsyncIterator[int]:
    async with serving(Gateway(hub)) as port:
        yield port


@pytest.fixture
async def token(hub: Hub, ada: User) -> str:
    return await hub.sessions.create_session(ada.id)


async def test_client_gets_what_others_send_and_what_it_sends_itself(
    hub: Hub, port: int, token: str, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with Client(port, token) as client:
        ready = await client.hello()
        assert ready["user_id"] == str(ada.id)
        assert ready["resumed"] is False
        assert list(ready["positions"]) == [str(room.id)]
        sent = await client.command("send", room_id=room.id, content="hello", id=new_id())
        await hub.messages.send(room.id, bob.id, "welcome")
        assert await client.messages(2) == ["hello", "welcome"]
        assert sent["content"] == "hello"
        assert sent["user_id"] == str(ada.id)


async def test_client_that_comes_back_misses_nothing_and_gets_nothing_twice(
    hub: Hub, port: int, token: str, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    quiet = await hub.rooms.create("quiet", created_by=ada.id)
    async with Client(port, token) as client:
        await client.hello()
        await hub.messages.send(room.id, bob.id, "0")
        assert await client.messages(1) == ["0"]
        positions = client.positions
    for number in range(1, 301):
        await hub.messages.send(room.id, bob.id, str(number))
    await hub.messages.send(quiet.id, ada.id, "not so quiet")
    async with Client(port, token) as client:
        ready = await client.hello(positions)
        assert ready["resumed"] is True
        assert ready["positions"] == {}  # without positions that the client already has: 70 bytes per room
        seen = await client.messages(301)
        assert sorted(seen, key=lambda text: (not text.isdigit(), len(text), text)) == [
            *map(str, range(1, 301)),
            "not so quiet",
        ]
        assert [text for text in seen if text.isdigit()] == list(map(str, range(1, 301)))


async def test_room_joined_while_away_begins_with_the_joining(
    hub: Hub, port: int, token: str, ada: User, bob: User, room: Room
) -> None:
    await hub.room_users.add(room.id, bob.id)
    async with Client(port, token) as client:
        await client.hello()
        positions = client.positions
    other = await hub.rooms.create("other", created_by=bob.id)
    await hub.messages.send(other.id, bob.id, "before")
    await hub.room_users.add(other.id, ada.id)
    await hub.messages.send(other.id, bob.id, "after")
    async with Client(port, token) as client:
        # Newer than the join. A client may have this position before that of the other room.
        positions[str(room.id)] = (await hub.messages.send(room.id, bob.id, "newer")).cursor
        await client.hello(positions)
        assert (await client.next("member_joined"))["user_id"] == str(ada.id)
        assert await client.messages(1) == ["after"]


async def test_client_in_many_rooms_comes_back_with_fingerprints(
    hub: Hub, port: int, token: str, ada: User, bob: User
) -> None:
    rooms = [await hub.rooms.create(str(number), created_by=ada.id) for number in range(40)]
    left, deleted, *others = rooms
    async with Client(port, token) as client:
        await client.hello()
        positions = client.positions
    assert len(positions) == len(rooms)

    def pages(number: int) -> list[str]:
        return fingerprints({UUID(id): cursor for id, cursor in positions.items()}, number)

    async with Client(port, token) as client:
        await client.send({"type": "hello", "token": token, "pages": "".join(pages(8))})
        ready = await client.next("ready")  # without a question: nothing has changed
        assert ready["resumed"]
        assert ready["positions"] == {}
    await hub.room_users.add(left.id, bob.id)
    await hub.room_users.set_role(left.id, bob.id, "admin")
    await hub.room_users.remove(left.id, ada.id)
    await hub.rooms.delete(deleted.id)
    joined = await hub.rooms.create("joined", created_by=ada.id)
    sent = [await hub.messages.send(room.id, ada.id, "hello") for room in others[:3]]
    changed = {page_of(room.id, 8) for room in (left, deleted, joined, *others[:3])}
    async with Client(port, token) as client:
        await client.send({"type": "hello", "token": token, "pages": "".join(pages(8))})
        assert (await client.next("ask"))["pages"] == sorted(changed)
        asked = {id: cursor for id, cursor in positions.items() if page_of(UUID(id), 8) in changed}
        some, rest = dict(list(asked.items())[:5]), dict(list(asked.items())[5:])
        await client.send({"type": "positions", "positions": some, "more": True})
        await client.send({"type": "positions", "positions": rest})
        await client.next("ready")
        gone = {(await client.next("room_gone", "member_left"))["room_id"] for _ in range(2)}
        assert gone == {str(left.id), str(deleted.id)}
        assert (await client.next("member_joined"))["room_id"] == str(joined.id)
        messages = [(await client.next("message_sent"))["message"]["id"] for _ in sent]
        assert sorted(messages) == sorted(str(message.id) for message in sent)


@pytest.mark.parametrize(
    "pages", ["", "short", "A" * 12 * 3, "A" * 13, "é" * 12, "A" * 12 * 2_048, "A" * 11 + "="]
)
async def test_malformed_pages_are_refused(port: int, token: str, pages: str) -> None:
    async with Client(port, token) as client:
        await client.send({"type": "hello", "token": token, "pages": pages})
        assert await client.closed() == 4400


async def test_forged_pages_cost_one_question(port: int, token: str, room: Room) -> None:
    async with Client(port, token) as client:
        await client.send({"type": "hello", "token": token, "pages": "A" * 12 * 1_024})
        assert (await client.next("ask"))["pages"] == list(range(1_024))
        await client.send({"type": "positions", "positions": {}})
        assert (await client.next("ready"))["resumed"]
        assert (await client.next("member_joined"))["room_id"] == str(room.id)


async def test_positions_are_read_after_the_login(port: int) -> None:
    async with Client(port, "a" * 47) as client:
        await client.send({"type": "hello", "token": "a" * 47, "positions": {}, "more": True})
        assert await client.closed() == 4401


async def test_positions_without_an_end_are_refused(port: int, token: str) -> None:
    async with Client(port, token) as client:
        await client.send({"type": "hello", "token": token, "positions": {}, "more": True})
        for _ in range(MAX_FRAMES):
            await client.send({"type": "positions", "positions": {}, "more": True})
        assert await client.closed() == 4400


async def test_client_with_more_positions_than_are_taken_starts_fresh(
    port: int, token: str, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MAX_ROOMS", 3)
    async with Client(port, token) as client:
        ready = await client.hello()
        cursor = ready["positions"][str(room.id)]
    async with Client(port, token) as client:
        await client.send({"type": "hello", "token": token, "positions": {}, "more": True})
        await client.send({"type": "positions", "positions": {str(new_id()): cursor for _ in range(4)}})
        bye = await client.next("bye")
        assert (bye["code"], bye["reconnect"]) == (4503, True)

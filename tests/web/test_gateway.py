"""The gateway on a real server: a client sends and receives, goes and comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hubbub import Hub, Room, User, new_id
from hubbub.web import Gateway
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
        assert ready["positions"] == positions
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
        # Newer than the joining: a client may have this position and not yet that of the other room.
        positions[str(room.id)] = (await hub.messages.send(room.id, bob.id, "newer")).cursor
        await client.hello(positions)
        assert (await client.next("member_joined"))["user_id"] == str(ada.id)
        assert await client.messages(1) == ["after"]

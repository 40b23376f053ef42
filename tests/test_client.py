"""The Python client, on a real server, through a line that is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar
from uuid import UUID

import pytest

from hubbub import FeedEvent, Hub, MemberJoined, MessageSent, Resync, Room, User, client, new_id
from hubbub.web import Gateway
from hubbub.web import gateway as gateways
from waiting import until
from web.serving import serving

pytestmark = pytest.mark.slow


@pytest.fixture
async def port(hub: Hub) -> AsyncIterator[int]:
    async with serving(Gateway(hub)) as port:
        yield port


@pytest.fixture
async def token(hub: Hub, ada: User) -> str:
    return await hub.sessions.create_session(ada.id)


class Line:
    """A proxy between the two, whose connections can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@asynccontextmanager
async def line(port: int) -> AsyncIterator[Line]:
    line = Line(port)
    server = await asyncio.start_server(line.carry, "127.0.0.1", 0)
    line.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/chat"
    async with server:
        yield line
        line.cut()


E = TypeVar("E", bound=FeedEvent)


async def next_of(kind: type[E], chat: client.Client) -> E:
    """The next event of this type."""
    async for event in chat:
        if isinstance(event, kind):
            return event
    raise AssertionError("the iteration has ended")


async def test_events_and_commands_survive_a_line_that_is_cut(
    hub: Hub, port: int, token: str, ada: User, bob: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.05)
    await hub.room_users.add(room.id, bob.id)
    seen: list[str] = []
    async with line(port) as proxy, client.connect(proxy.url, token=token) as chat:
        assert chat.user_id == ada.id

        async def read() -> None:
            async for event in chat:
                if isinstance(event, MessageSent):
                    seen.append(event.message.content)
                    if len(seen) == 60:
                        return

        reading = asyncio.create_task(read())
        for number in range(30):
            if number % 10 == 5:
                proxy.cut()
            await hub.messages.send(room.id, bob.id, f"b{number}")
            sent = await chat.send(room.id, f"a{number}")
            assert sent.content == f"a{number}"
        await reading
        positions = chat.positions
    page = await hub.messages.page(room.id, limit=100)
    assert seen == [message.content for message in page.items]
    assert positions == {room.id: page.cursor}


async def test_client_with_a_source_of_tokens_outlives_the_first(
    hub: Hub, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "SWEEP_SECONDS", 0.05)
    gateway = Gateway(hub, secret=b"s" * 32)
    tokens = [gateway.token(ada.id, seconds=seconds) for seconds in (60, 1)]
    async with serving(gateway) as port:
        url = f"ws://127.0.0.1:{port}/chat"
        async with client.connect(url, token=tokens.pop) as chat:
            await until(lambda: not tokens)
            await hub.messages.send(room.id, ada.id, "hello")
            assert (await next_of(MessageSent, chat)).message.content == "hello"
        async with client.connect(url, token=gateway.token(ada.id, seconds=1)) as chat:
            with pytest.raises(client.Ended) as ended:
                await anext(chat)
            assert ended.value.code == 4401


async def test_later_client_goes_on_from_stored_positions(
    hub: Hub, port: int, token: str, ada: User, room: Room
) -> None:
    url = f"ws://127.0.0.1:{port}/chat"
    async with client.connect(url, token=token) as chat:
        positions = dict(chat.positions)
    rooms = await asyncio.gather(*[hub.rooms.create(str(number), created_by=ada.id) for number in range(600)])
    async with client.connect(url, token=lambda: token, positions=positions) as chat:
        joined = {(await next_of(MemberJoined, chat)).room_id for _ in rooms}
        assert joined == {room.id for room in rooms}
        positions = dict(chat.positions)
        assert len(positions) == 601  # more than one frame of positions
    for number in (0, 300, 599):
        await hub.messages.send(rooms[number].id, ada.id, str(number))
    async with client.connect(url, token=token, positions=positions) as chat:
        assert {(await next_of(MessageSent, chat)).message.content for _ in range(3)} == {"0", "300", "599"}


async def test_refusals_have_their_types(hub: Hub, port: int, token: str, room: Room) -> None:
    url = f"ws://127.0.0.1:{port}/chat"
    with pytest.raises(client.Ended, match="session") as refused:
        await client.connect(url, token="x" * 47).__aenter__()
    assert refused.value.code == 4401
    async with client.connect(url, token=token) as chat:
        with pytest.raises(client.CommandFailed) as failed:
            await chat.send(new_id(), "hello")
        assert failed.value.error == "not-a-member"
        with pytest.raises(client.CommandFailed) as failed:
            await chat.send(room.id, "")
        assert failed.value.field == "content"
        await hub.sessions.delete_session(token)
        with pytest.raises(client.Ended):
            await next_of(MessageSent, chat)
        with pytest.raises(client.Ended):
            await chat.command("me")


async def test_log_that_cannot_be_continued_gives_a_resync(hub: Hub, port: int, token: str, room: Room) -> None:
    url = f"ws://127.0.0.1:{port}/chat"
    async with client.connect(url, token=token) as chat:
        [(room_id, cursor)] = chat.positions.items()
    forged: dict[UUID, str] = {room_id: cursor[:-4] + "AAAA"}
    async with client.connect(url, token=token, positions=forged) as chat:
        event = await next_of(Resync, chat)
        assert chat.positions == {room_id: event.cursor}
    with pytest.raises(client.Ended, match="4503"):
        await client.connect(url, token=token, positions={new_id(): cursor}).__aenter__()

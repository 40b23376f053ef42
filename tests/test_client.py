"""The Python client on a real server, through a proxy whose connections are cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import pytest
from websockets.asyncio.client import connect as open_socket
from websockets.asyncio.server import ServerConnection, serve

from hubbub import (
    FeedEvent,
    Hub,
    Invalid,
    MemberJoined,
    MessageSent,
    Resync,
    Room,
    Unavailable,
    User,
    client,
    new_id,
)
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


class CuttingProxy:
    """A proxy between client and server. Its connections can be cut."""

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
async def proxied(port: int) -> AsyncIterator[CuttingProxy]:
    proxy = CuttingProxy(port)
    server = await asyncio.start_server(proxy.carry, "127.0.0.1", 0)
    proxy.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/chat"
    async with server:
        yield proxy
        proxy.cut()


E = TypeVar("E", bound=FeedEvent)


async def next_of(kind: type[E], chat: client.Client) -> E:
    """The next event of this type."""
    async for event in chat:
        if isinstance(event, kind):
            return event
    raise AssertionError("the iteration has ended")


async def test_events_and_commands_survive_cut_connections(
    hub: Hub, port: int, token: str, ada: User, bob: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.05)
    await hub.room_users.add(room.id, bob.id)
    seen: list[str] = []
    async with proxied(port) as proxy, client.connect(proxy.url, token=token) as chat:
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
    tokens = [gateway.token(ada.id, seconds=seconds) for seconds in (60, 4)]
    async with serving(gateway) as port:
        url = f"ws://127.0.0.1:{port}/chat"
        async with client.connect(url, token=tokens.pop) as chat:
            await until(lambda: not tokens)
            await hub.messages.send(room.id, ada.id, "hello")
            assert (await next_of(MessageSent, chat)).message.content == "hello"
        async with client.connect(url, token=gateway.token(ada.id, seconds=4)) as chat:
            with pytest.raises(client.Ended) as ended:
                await next_of(MemberJoined, chat)  # which does not come
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


Handler = Callable[[ServerConnection, int], Awaitable[None]]


@asynccontextmanager
async def scripted(handle: Handler, **ready: object) -> AsyncIterator[str]:
    """A gateway that answers `hello` with this `ready`, and then runs the test's function on each connection."""
    number = 0

    async def connected(socket: ServerConnection) -> None:
        nonlocal number
        number += 1
        await socket.recv()
        frame = {"user_id": new_id(), "positions": {}, "ping_seconds": 25, "expires_in_seconds": None, **ready}
        await socket.send(msgspec.json.encode({"type": "ready", "resumed": False, **frame}), text=True)
        await handle(socket, number)

    async with serve(connected, "127.0.0.1", 0) as server:
        [listener] = server.sockets
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/chat"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The bounds of the pauses of clients, which then do not wait."""
    bounds: list[tuple[float, float]] = []

    def choose(*given: float) -> float:
        bounds.append((given[0], given[1]))
        return 0.0

    monkeypatch.setattr(client, "random", SimpleNamespace(uniform=choose))
    return bounds


async def test_client_outlives_any_number_of_failed_attempts(
    port: int, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    def refuse(*arguments: Any, **options: Any) -> open_socket:  # noqa: ANN401
        nonlocal attempts
        attempts += 1
        if attempts <= 1_100:
            raise OSError("the network is down")
        return open_socket(*arguments, **options)

    monkeypatch.setattr(client, "MAX_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(client, "open_socket", refuse)
    async with client.connect(f"ws://127.0.0.1:{port}/chat", token=token) as chat:
        assert (await chat.command("me"))["username"] == "ada"
    assert attempts == 1_101


async def test_entering_that_is_cancelled_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), client.connect("ws://127.0.0.1:1/chat"):
            raise AssertionError
    assert asyncio.all_tasks() == before


async def test_url_that_is_not_one_of_a_websocket_is_refused() -> None:
    with pytest.raises(Invalid, match=r"url: .*isn't a valid URI"):
        async with client.connect("wss//example.org/chat"):
            raise AssertionError


async def test_frame_that_cannot_be_decoded_ends_the_client_with_its_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def answer(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send("not JSON")
        await socket.wait_closed()

    async with serve(answer, "127.0.0.1", 0, subprotocols=[client.SUBPROTOCOL]) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(msgspec.DecodeError):
            async with client.connect(f"ws://127.0.0.1:{port}/chat"):
                raise AssertionError
    assert "unforeseen error" in caplog.text


async def test_command_of_a_connection_that_is_lost_at_once_does_not_wait_for_an_answer() -> None:
    chat = client.Client("ws://127.0.0.1:1/chat")
    command = asyncio.create_task(chat._command("send", {}))
    await asyncio.sleep(0)
    chat._is_ready.set()
    chat._lose()
    with pytest.raises(Unavailable, match="the connection was lost"):
        await command


@pytest.mark.parametrize(("stable_seconds", "expected"), [(-1.0, [0.5, 0.5, 0.5]), (60.0, [0.5, 1.0, 2.0])])
async def test_pauses_grow_until_a_connection_has_lasted(
    pauses: list[tuple[float, float]],
    monkeypatch: pytest.MonkeyPatch,
    stable_seconds: float,
    expected: list[float],
) -> None:
    monkeypatch.setattr(client, "STABLE_SECONDS", stable_seconds)

    async def cut(socket: ServerConnection, number: int) -> None:
        if number <= 3:
            socket.transport.abort()
        await socket.wait_closed()

    async with scripted(cut) as url, client.connect(url):
        await until(lambda: len(pauses) == 3)
    assert pauses == [(0.0, longest) for longest in expected]


async def test_server_that_closes_without_a_bye_gets_its_clients_back_within_its_spread(
    pauses: list[tuple[float, float]],
) -> None:
    async def close(socket: ServerConnection, number: int) -> None:
        if number <= 2:
            await socket.close({1: 1012, 2: 1011}[number])
        await socket.wait_closed()

    async with scripted(close, spread_seconds=15) as url, client.connect(url):
        await until(lambda: len(pauses) == 2)
    assert pauses == [(0.0, 15), (0.0, 1.0)]


async def test_client_over_its_rate_waits_at_least_as_long_as_the_server_asks(
    pauses: list[tuple[float, float]],
) -> None:
    async def send_bye(socket: ServerConnection, number: int) -> None:
        if number == 1:
            bye = {"type": "bye", "code": 4429, "reconnect": True, "within_seconds": 15, "reason": "too many"}
            await socket.send(msgspec.json.encode(bye), text=True)
        await socket.wait_closed()

    async with scripted(send_bye) as url, client.connect(url):
        await until(lambda: len(pauses) == 1)
    assert pauses == [(15, 30)]


async def test_source_of_tokens_that_fails_or_is_slow_is_asked_again(
    hub: Hub, port: int, token: str, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_PAUSE_SECONDS", 0.0)
    reported: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    answers = ["no such host", token]

    async def ask() -> str:
        if len(answers) == 2:
            raise RuntimeError(answers.pop(0))
        # A gateway closes connections without a `hello` after a while, so no connection is open yet.
        assert opened == []
        return answers[0]

    opened: list[object] = []

    def open_and_note(*arguments: Any, **options: Any) -> open_socket:  # noqa: ANN401
        opened.append(arguments)
        return open_socket(*arguments, **options)

    monkeypatch.setattr(client, "open_socket", open_and_note)
    async with client.connect(f"ws://127.0.0.1:{port}/chat", token=ask) as chat:
        await chat.send(room.id, "hello")
    assert [str(error) for error in reported] == ["no such host"]


async def test_command_that_is_too_large_is_refused_before_it_ends_the_connection(
    hub: Hub, port: int, token: str, ada: User, room: Room
) -> None:
    message = await hub.messages.send(room.id, ada.id, "short")
    async with client.connect(f"ws://127.0.0.1:{port}/chat", token=token) as chat:
        with pytest.raises(client.CommandFailed) as failed:
            await chat.command("edit", message_id=message.id, content="😀" * 17_000)
        assert failed.value.error == "too-large"
        assert not failed.value.outcome_unknown
        edited = await chat.command("edit", message_id=message.id, content="😀" * 10_000)
        assert len(edited["content"]) == 10_000


async def test_error_reports_whether_the_change_may_have_been_made() -> None:
    async def answer(socket: ServerConnection, _: int) -> None:
        ref = msgspec.json.decode(await socket.recv())["ref"]
        error = {"error": "temporarily-unavailable", "detail": "", "retry": False, "outcome_unknown": True}
        await socket.send(msgspec.json.encode({"type": "error", "ref": ref, **error}), text=True)
        await socket.wait_closed()

    async with scripted(answer) as url, client.connect(url) as chat:
        with pytest.raises(client.CommandFailed) as failed:
            await chat.command("vote")
        assert failed.value.outcome_unknown

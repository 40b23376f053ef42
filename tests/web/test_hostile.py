"""Any frame of a client gets a typed answer or closes the connection with a code. Nothing raises."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from math import inf
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from hubbub import Hub, Invalid, NewMessage, Room, User, new_id
from hubbub.web import Gateway, Limits, frames
from hubbub.web import gateway as gateways
from hubbub.web import serving as servers
from hubbub.web.commands import COMMANDS
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers
from web.serving import Client, serving

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = sorted({name for command in COMMANDS.values() for name in command.frame.__struct_fields__})
UUIDS = st.sampled_from([str(new_id()), "01970000-0000-7000-8000-000000000001"])
VALUES = ANY_JSON | UUIDS | st.integers(-(2**70), 2**70) | st.lists(UUIDS, max_size=3)


@st.composite
def hostile_frames(draw: st.DrawFn) -> str:
    """A text that is a frame, is nearly a frame, or is not a frame."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text() | st.just("[" * 50_000) | st.just('{"type": "me", "ref": 1' + "0" * 5_000 + "}"))
    frame: dict[str, Any] = draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
    frame["type"] = draw(st.sampled_from(sorted({*COMMANDS, "hello", "positions", "x"})) | ANY_JSON)
    if draw(st.booleans()):
        frame["ref"] = draw(st.integers(0, 9) | ANY_JSON)
    text = json.dumps(frame, ensure_ascii=draw(st.booleans()))
    return text if draw(st.integers(0, 9)) else text[: draw(st.integers(0, len(text)))]


@given(text=hostile_frames())
@settings(max_examples=300, deadline=None)
def test_decoder_returns_a_frame_or_names_a_field(text: str) -> None:
    try:
        kind, ref = frames.envelope(text)
    except frames.NotAFrame:
        return
    assert isinstance(kind, str)
    assert ref is None or 0 <= ref <= frames.MAX_REF
    if kind in COMMANDS:
        assert _decoded(kind, text) in {COMMANDS[kind].frame, *FIELDS, "frame", "type"}


def _decoded(kind: str, text: str) -> object:
    """The type of the frame, or its wrong field."""
    try:
        return type(COMMANDS[kind].decode(text))
    except Invalid as error:
        return error.field


@pytest.fixture
def gateway(hub: Hub) -> Gateway:
    return Gateway(hub, limits=Limits(frames_per_second=1e6, burst=10**9, connections=100))


@pytest.fixture
async def port(gateway: Gateway) -> AsyncIterator[int]:
    async with serving(gateway) as port:
        yield port


@given(texts=st.lists(hostile_frames(), max_size=20))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_connection_answers_or_closes_for_any_frame(
    hub: Hub, gateway: Gateway, port: int, caplog: pytest.LogCaptureFixture, ada: User, texts: list[str]
) -> None:
    caplog.set_level(logging.ERROR)
    async with Client(port, await hub.sessions.create_session(ada.id)) as client:
        await client.hello()
        code = await _exchange(client, texts)
    assert code in {None, 1007, 4400, 4401}
    assert not [record for record in caplog.records if "UTF-8" not in record.message]
    await until(lambda: not gateway._connections)


async def _exchange(client: Client, texts: list[str]) -> int | None:
    """Send all texts, and read an answer to each that is a frame. Returns the code if the server closes."""
    answered = 0
    try:
        for text in texts:
            await client.send(text.encode("utf-8", "replace").decode())
        await client.send({"type": "me", "ref": 2**53 - 1})
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            while answered <= len(texts):
                frame = await client.next("ack", "error", "bye")
                assert frame["type"] != "bye" or frame["code"] in frames.REASONS
                answered += frame["type"] != "bye"
    except ConnectionClosed:
        return client.socket.close_code
    return None


@given(text=hostile_frames())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_first_frame_may_be_anything(port: int, text: str) -> None:
    async with Client(port) as client:
        await client.send(text.encode("utf-8", "replace").decode())
        assert await client.closed() in {4400, 4401}


async def test_bytes_and_text_that_is_not_utf8_close(
    hub: Hub, port: int, ada: User, caplog: pytest.LogCaptureFixture
) -> None:
    token = await hub.sessions.create_session(ada.id)
    async with Client(port, token) as client:
        await client.hello()
        await client.socket.send(b'{"type": "me", "ref": 1}')
        assert await client.closed() == 4400
    async with Client(port, token) as client:
        await client.hello()
        await client.socket.send(b"\xff", text=True)
        assert await client.closed() == 1007
    assert not [record for record in caplog.records if record.exc_info]


async def test_command_for_another_users_things_is_refused(
    hub: Hub, port: int, ada: User, bob: User, room: Room
) -> None:
    theirs = await hub.messages.send(room.id, ada.id, "private")
    await hub.rooms.update(room.id, is_private=True)
    async with Client(port, await hub.sessions.create_session(bob.id)) as client:
        ready = await client.hello()
        assert ready["positions"] == {}
        commands: dict[str, dict[str, object]] = {
            "send": {"room_id": room.id, "content": "x"},
            "edit": {"message_id": theirs.id, "content": "x"},
            "delete": {"message_id": theirs.id},
            "read": {"room_id": room.id, "up_to": 1},
            "typing": {"room_id": room.id, "is_typing": True},
            "page": {"room_id": room.id},
            "room": {"room_id": room.id},
            "members": {"room_id": room.id},
            "join": {"room_id": room.id},
            "invite": {"room_id": room.id, "user_id": bob.id},
            "watch": {"room_ids": [str(room.id)]},
            "create": {"name": "engine-room", "id": room.id},
        }
        for name, fields in commands.items():
            refused = await client.refused(name, **fields)
            assert refused["error"] in {"not-a-member", "not-found", "already-in-use"}, refused
            assert "private" not in json.dumps(refused)
        positions = {str(room.id): theirs.cursor}
    async with Client(port, await hub.sessions.create_session(bob.id)) as client:
        await client.hello(positions)
        assert (await client.next("room_gone"))["room_id"] == str(room.id)
    assert (await hub.messages.get(theirs.id)).content == "private"


async def test_forged_cursor_gives_a_resync_of_its_room(hub: Hub, port: int, ada: User, room: Room) -> None:
    sent = [await hub.messages.send(room.id, ada.id, str(number)) for number in range(3)]
    async with Client(port, await hub.sessions.create_session(ada.id)) as client:
        await client.hello({str(room.id): sent[0].cursor[:-4] + "AAAA"})
        resync = await client.next("resync")
        assert (resync["reason"], resync["cursor"]) == ("rewound", sent[-1].cursor)
        await hub.messages.send(room.id, ada.id, "after")
        assert await client.messages(1) == ["after"]


async def test_clients_that_vanish_leave_nothing_behind(hub: Hub, gateway: Gateway, port: int, ada: User) -> None:
    token = await hub.sessions.create_session(ada.id)
    for say_hello in (True, False):
        clients = [await Client(port, token).__aenter__() for _ in range(10)]
        for client in clients:
            if say_hello:
                await client.hello()
                await client.send({"type": "rooms", "ref": 1})
            client.socket.transport.abort()
    await until(lambda: not gateway._connections)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "hubbub: deliver to a client"]


class RawClient:
    """A WebSocket that sends the frames of the test, and reads only when the test calls `read`."""

    CONTINUATION, TEXT, PING, PONG, FINAL_TEXT = 0, 1, 9, 10, 0x81

    def __init__(self, port: int) -> None:
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket()
        self._received = bytearray()

    async def __aenter__(self) -> Self:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self._socket.setblocking(False)
        await self._loop.sock_connect(self._socket, ("127.0.0.1", self._port))
        lines = ("GET /chat/socket HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade")
        key = ("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13")
        await self._loop.sock_sendall(self._socket, "\r\n".join([*lines, *key, "", ""]).encode())
        while b"\r\n\r\n" not in self._received:
            self._received += await self._loop.sock_recv(self._socket, 1)
        self._received.clear()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def send(self, *frames: tuple[int, bytes]) -> None:
        """Send frames of at most 125 bytes, masked with zeros. A text is the first fragment of a message."""
        heads = ((code if code <= self.TEXT else 0x80 | code, payload) for code, payload in frames)
        data = b"".join(bytes([code, 0x80 | len(payload), 0, 0, 0, 0]) + payload for code, payload in heads)
        await self._loop.sock_sendall(self._socket, data)

    async def read(self, code: int) -> bytes:
        """The payload of the next frame with this code. Raises: ConnectionError, EOFError."""
        while True:
            while len(self._received) < 2 or len(self._received) < 2 + self._received[1]:
                data = await self._loop.sock_recv(self._socket, 65_536)
                if not data:
                    raise EOFError
                self._received += data
            first, length = self._received[:2]
            payload = bytes(self._received[2 : 2 + length])
            del self._received[: 2 + length]
            if first == 0x80 | code:
                return payload

    async def fails_to_fill(self) -> bool:
        """Send pings until the server reads no more, or has cut the connection. Returns whether it was cut."""
        try:
            async with asyncio.timeout(0.1):
                while True:
                    await self.send(*[(self.PING, b"x" * 125)] * 1_000)
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    async def is_cut(self) -> bool:
        """Whether the server has cut the connection, without reading from it."""
        try:
            await self.send((self.PING, b""))
        except ConnectionError:
            return True
        return False


async def test_pings_of_a_client_that_does_not_read_fill_no_memory(hub: Hub) -> None:
    pings = [(RawClient.PING, f"{number}".rjust(125).encode()) for number in range(200_000)]
    async with serving(Gateway(hub)) as port, RawClient(port) as client:
        for start in range(0, len(pings), 1_000):
            await client.send(*pings[start : start + 1_000])
        async with asyncio.timeout(HANGS_AFTER_SECONDS):
            answered = 1
            while await client.read(RawClient.PONG) != pings[-1][1]:
                answered += 1
        assert answered < len(pings) / 2


async def test_message_of_endless_fragments_is_cut(hub: Hub) -> None:
    async with serving(Gateway(hub)) as port, RawClient(port) as client:
        await client.send((RawClient.TEXT, b"{"), *[(RawClient.CONTINUATION, b"")] * servers.MAX_FRAGMENTS)
        await until_it_answers(client.is_cut)


async def test_client_that_pings_and_answers_none_is_cut_though_it_does_not_read(hub: Hub) -> None:
    pings = {"ws_ping_interval": 1.0, "ws_ping_timeout": 0.1}
    async with serving(Gateway(hub), **pings) as port, RawClient(port) as client:
        await until_it_answers(client.fails_to_fill)


async def test_client_that_does_not_read_is_cut_though_something_is_left_for_it(
    hub: Hub, gateway: Gateway, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(gateways, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(gateways, "BLOCKED_SECONDS", 0.3)
    hello = json.dumps({"type": "hello", "token": await hub.sessions.create_session(ada.id)})
    async with serving(gateway) as port, RawClient(port) as client:
        await client.send((RawClient.FINAL_TEXT, hello.encode()))
        await until(lambda: any(one.sent_at < inf for one in gateway._connections.get(ada.id, ())))  # it is ready
        for _ in range(4):
            await hub.messages.send_many(room.id, ada.id, [NewMessage("x" * 20_000)] * 250)
        await until(lambda: not gateway._connections)
        await until_it_answers(client.is_cut)

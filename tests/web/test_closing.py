"""The reasons for which the gateway closes connections, and its instruction whether to reconnect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from math import inf
from typing import Any
from uuid import UUID

import msgspec
import pytest
from httpx import AsyncClient
from starlette.types import Receive, Scope, Send
from websockets.exceptions import InvalidStatus

from hubbub import Hub, Invalid, NewMessage, Room, Session, Settings, User
from hubbub.web import Gateway, Limits, sockets
from hubbub.web import gateway as gateways
from hubbub.web.logins import Identity
from waiting import HANGS_AFTER_SECONDS, until, until_it_answers
from web.serving import Client, running, serving

SECRET = b"s" * 32


@pytest.fixture
def gateway(hub: Hub) -> Gateway:
    return Gateway(hub, secret=SECRET, origins={"https://app.example.org"}, limits=Limits(connections=2))


@pytest.fixture
async def port(gateway: Gateway) -> AsyncIterator[int]:
    async with serving(gateway) as port:
        yield port


@pytest.fixture
async def token(hub: Hub, ada: User) -> str:
    return await hub.sessions.create_session(ada.id)


async def bye(client: Client) -> int:
    """The code of the `bye`, which is also that of the close."""
    frame = await client.next("bye")
    assert await client.closed() == frame["code"]
    assert frame["reconnect"] == (frame["code"] < 4000 or frame["code"] in {4408, 4429} or frame["code"] >= 4500)
    return int(frame["code"])


async def test_revoked_session_closes_its_connection_in_every_process(
    hub: Hub, settings: Settings, port: int, token: str, ada: User
) -> None:
    other = await hub.sessions.create_session(ada.id)
    async with Client(port, token) as client, Client(port, other) as stays, Hub(settings) as elsewhere:
        await client.hello()
        await stays.hello()
        await elsewhere.sessions.delete_session(token)
        assert await bye(client) == 4401
        await stays.send({"type": "nothing", "ref": 1})
        assert (await stays.next("error"))["error"] == "unknown-frame"


async def test_deleted_user_is_disconnected_with_its_own_code_in_every_process(
    hub: Hub, settings: Settings, port: int, gateway: Gateway, token: str, ada: User
) -> None:
    async with (
        Client(port, token) as client,
        Client(port, gateway.token(ada.id)) as signed,
        Hub(settings) as other,
    ):
        await client.hello()
        await signed.hello()
        await other.delete_account(ada.id)
        assert await bye(signed) == 4410
        assert await bye(client) in {4401, 4410}  # its session ends a moment before the user
    await until(lambda: not gateway._connections)  # they count until their leases are released
    async with Client(port, gateway.token(ada.id)) as client:
        await client.send({"type": "hello", "token": client.token})
        assert await bye(client) == 4410


async def test_banned_user_is_disconnected_in_every_process(
    hub: Hub, settings: Settings, port: int, gateway: Gateway, ada: User
) -> None:
    async with Client(port, gateway.token(ada.id)) as client, Hub(settings) as elsewhere:
        await client.hello()
        elsewhere.disconnect(ada.id)
        assert await bye(client) == 4403


async def test_client_that_is_disconnected_while_it_enters_gets_no_ready(
    hub: Hub, port: int, token: str, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    memberships = hub._feed._followers.memberships
    rooms_of = memberships.rooms_of

    async def disconnect_meanwhile(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on
        found = await rooms_of(*args, **options)
        hub.disconnect(ada.id)
        return found

    monkeypatch.setattr(memberships, "rooms_of", disconnect_meanwhile)
    async with Client(port, token) as client:
        await client.send({"type": "hello", "token": token})
        assert (await client.next("ready", "bye"))["type"] == "bye"


async def test_hub_that_closes_sends_its_clients_elsewhere(settings: Settings, hub: Hub, token: str) -> None:
    async with Hub(settings) as closing, serving(Gateway(closing)) as port, Client(port, token) as client:
        ready = await client.hello()
        await closing.close()
        frame = await client.next("bye")
        assert frame["code"] == 1012
        assert frame["within_seconds"] == ready["spread_seconds"]


async def test_server_that_ends_spreads_the_return_of_its_clients(hub: Hub, token: str) -> None:
    async with serving(Gateway(hub)) as port:
        client, silent = Client(port, token), Client(port, token)
        await client.__aenter__()
        await silent.__aenter__()
        ready = await client.hello()
    for one in (client, silent):  # the second has not sent its `hello` yet
        frame = await one.next("bye")
        assert (frame["code"], frame["within_seconds"]) == (1012, ready["spread_seconds"])
        assert await one.closed() == 1012


async def test_server_that_ends_sends_no_frame_to_clients_of_another_application() -> None:
    async def echo(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async with running(echo) as port:
        client = Client(port)
        await client.__aenter__()
    assert await client.closed() == 1012
    assert not client.frames


async def test_second_connection_of_a_device_replaces_the_first(port: int, token: str) -> None:
    async with Client(port, token) as first, Client(port, token) as second, Client(port, token) as third:
        await first.hello(device="phone")
        await second.hello(device="laptop")
        await third.hello(device="phone")
        assert await bye(first) == 4409


async def test_late_hello_of_an_earlier_connection_leaves_the_one_of_the_same_device_open(
    port: int, token: str
) -> None:
    async with Client(port, token) as given_up, Client(port, token) as live:
        await live.hello(device="phone")
        await given_up.send({"type": "hello", "token": token, "device": "phone"})
        assert await bye(given_up) == 4409
        await live.send({"type": "me", "ref": 1})
        assert (await live.next("ack", "bye"))["type"] == "ack"


async def test_second_connection_of_a_device_cuts_a_first_that_does_not_read(
    hub: Hub, port: int, gateway: Gateway, token: str, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "BLOCKED_SECONDS", inf)
    async with Client(port, token) as first:
        await first.hello(device="phone")
        [connection] = gateway._connections[ada.id]
        first.socket.transport.pause_reading()
        for _ in range(4):
            await hub.messages.send_many(room.id, ada.id, [_long(number) for number in range(250)])
        await until(lambda: connection.is_blocked)
        async with Client(port, token) as second:
            await second.hello(device="phone")
            await until(lambda: len(gateway._connections[ada.id]) == 1)
            assert await second.command("me")
        first.socket.transport.abort()


async def test_connection_is_blocked_as_long_as_one_of_its_writes_waits(
    gateway: Gateway, port: int, token: str, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_taken = {"event": asyncio.Event(), "answer": asyncio.Event()}

    async def send(text: str) -> None:
        await is_taken[text].wait()

    async with Client(port, token) as client:
        await client.hello()
        [connection] = gateway._connections[ada.id]
        with monkeypatch.context() as patched:
            patched.setattr(connection, "_send", send)
            event, answer = (asyncio.create_task(connection.write(text)) for text in is_taken)
            await asyncio.sleep(0)
            began = connection.blocked_since
            is_taken["answer"].set()
            await answer
            assert connection.is_blocked
            assert connection.blocked_since >= began
            is_taken["event"].set()
            await event
            assert not connection.is_blocked


async def test_user_has_a_limited_number_of_connections(port: int, token: str) -> None:
    async with Client(port, token) as first, Client(port, token) as second, Client(port, token) as third:
        await first.hello()
        await second.hello()
        await third.send({"type": "hello", "token": token})
        assert await bye(third) == 4429


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "[]",
        "{}",
        '{"type": 1}',
        '{"type": "hello", "positions": 1}',
        "[" * 10_000,
        '{"type": "send"}',
    ],
)
async def test_client_without_a_hello_is_refused(port: int, text: str) -> None:
    async with Client(port) as client:
        await client.send(text)
        assert await bye(client) == 4400


async def test_client_without_a_session_is_refused(hub: Hub, port: int, gateway: Gateway, ada: User) -> None:
    signed = gateway.token(ada.id)
    forged = Gateway(hub, secret=b"x" * 32).token(ada.id)
    expired = gateway.token(ada.id, seconds=1e-9)
    for token in (None, "", "x" * 47, "é.é", ".", forged, expired, signed[:-1], "A" + signed):
        async with Client(port, token) as client:
            await client.send(json.dumps({"type": "hello", "token": token}))
            assert await bye(client) == 4401


async def test_client_that_sends_nothing_is_closed(port: int, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HELLO_SECONDS", 0.1)
    async with Client(port) as client:
        assert await bye(client) == 4408


async def test_signed_token_that_expires_closes_unless_it_is_renewed(
    hub: Hub, port: int, gateway: Gateway, ada: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "SWEEP_SECONDS", 0.05)
    token = gateway.token(ada.id, seconds=300)
    async with Client(port, token) as client, Client(port, token) as renewing:
        for one in (client, renewing):
            assert 0 < (await one.hello())["expires_in_seconds"] <= 300
        refused = await renewing.refused("auth", token=gateway.token(bob.id))
        assert refused["error"] == "invalid-value"
        assert (await renewing.command("auth", token=gateway.token(ada.id)))["expires_in_seconds"] > 300
        _pass_seconds(gateway, ada, 300)
        assert await bye(client) == 4401
        assert (await renewing.refused("nothing"))["error"] == "unknown-frame"


def _pass_seconds(gateway: Gateway, user: User, seconds: float) -> None:
    """Let the tokens of the user's connections expire this much earlier."""
    for connection in gateway._connections[user.id]:
        expires_at = connection.identity.expires_at
        assert expires_at is not None
        connection.identity = msgspec.structs.replace(connection.identity, expires_at=expires_at - seconds)


async def test_connection_ends_with_the_session_of_its_newest_token(
    hub: Hub, settings: Settings, port: int, gateway: Gateway, ada: User
) -> None:
    old, new = [await hub.sessions.create_session(ada.id) for _ in range(2)]
    async with Client(port, old) as client, Hub(settings) as elsewhere:
        await client.hello()
        await client.command("auth", token=new)
        async with Client(port, old) as stays_old:
            await stays_old.hello()
            await elsewhere.sessions.delete_session(old)
            assert await bye(stays_old) == 4401
        await until(lambda: len(gateway._connections[ada.id]) == 1)  # it counts until its lease is released
        assert (await client.refused("nothing"))["error"] == "unknown-frame"
        async with Client(port, gateway.token(ada.id)) as signed:
            await signed.hello()
            await signed.command("auth", token=new)
            await elsewhere.sessions.delete_session(new)
            assert await bye(signed) == 4401
        assert await bye(client) == 4401


async def test_command_after_the_end_of_the_session_is_not_done(
    hub: Hub, port: int, token: str, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_ended, may_be_told = asyncio.Event(), asyncio.Event()
    get_session = hub.sessions.get_session

    async def get_late(token: str) -> Session | None:
        has_ended.set()
        await may_be_told.wait()
        return await get_session(token)

    async with Client(port, token) as client:
        await client.hello()
        monkeypatch.setattr(hub.sessions, "get_session", get_late)
        await hub.sessions.delete_session(token)
        await has_ended.wait()
        await client.send({"type": "send", "ref": 1, "room_id": str(room.id), "content": "too late"})
        await (await client.socket.ping())  # answered once the server has read the earlier frames
        may_be_told.set()
        assert await bye(client) == 4401
    assert (await hub.messages.page(room.id)).items == []


async def test_token_whose_session_ends_while_it_is_taken_closes(
    hub: Hub, port: int, token: str, ada: User, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = await hub.sessions.create_session(ada.id)
    identify_by = gateway.identify_by

    async def identify_late(hub: Hub, token: str) -> Identity | None:
        identity = await identify_by(hub, token)
        await hub.sessions.delete_session(token)
        return identity

    async with Client(port, token) as client:
        await client.hello()
        monkeypatch.setattr(gateway, "identify_by", identify_late)
        await client.send({"type": "auth", "ref": 1, "token": new})
        assert await bye(client) == 4401


async def test_cookie_counts_only_with_an_own_origin(port: int, token: str) -> None:
    own = f"http://127.0.0.1:{port}"
    for origin in (own, "https://app.example.org"):
        async with Client(port, cookie=token, origin=origin) as client:
            await client.hello()
    async with Client(port, cookie=token) as client:
        await client.send({"type": "hello"})
        assert await bye(client) == 4401
    for origin in ("https://evil.example.org", "null", own + "0"):
        for given in (token, None):
            with pytest.raises(InvalidStatus) as refused:
                await Client(port, given, cookie=token, origin=origin).__aenter__()
            assert refused.value.response.status_code == 403


async def test_client_of_another_version_is_refused_with_its_own_code(port: int, token: str) -> None:
    async with Client(port, token, subprotocols=["hubbub.9", "chat"]) as client:
        assert await bye(client) == 4426


async def test_cursor_of_another_room_makes_the_client_start_fresh(
    hub: Hub, port: int, token: str, ada: User, room: Room
) -> None:
    other = await hub.rooms.create("other", created_by=ada.id)
    async with Client(port, token) as client:
        ready = await client.hello()
    positions = {str(room.id): ready["positions"][str(other.id)]}
    for forged in (positions, {str(room.id): "x" * 28}, {str(room.id): ""}):
        async with Client(port, token) as client:
            await client.send({"type": "hello", "token": token, "positions": forged})
            assert await bye(client) == 4503


async def test_error_of_the_server_is_reported_and_the_client_comes_back(
    hub: Hub,
    port: int,
    gateway: Gateway,
    token: str,
    ada: User,
    room: Room,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: object) -> str:
        raise ZeroDivisionError

    async with Client(port, token) as client:
        await client.hello()
        with monkeypatch.context() as patched:
            patched.setattr(gateway.encoder, "encode", fail)
            await hub.messages.send(room.id, ada.id, "hello")
            assert await bye(client) == 4500
        assert "ZeroDivisionError" in caplog.text
        positions = client.positions
    async with Client(port, token) as client:
        await client.hello(positions)
        assert await client.messages(1) == ["hello"]


async def test_client_that_does_not_read_is_cut_and_misses_nothing(
    hub: Hub, port: int, gateway: Gateway, token: str, ada: User, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(gateways, "SWEEP_SECONDS", 0.05)
        patched.setattr(gateways, "BLOCKED_SECONDS", 0.3)
        async with Client(port, token) as client:
            await client.hello()
            positions = dict(client.positions)
            client.socket.transport.pause_reading()
            for _ in range(4):  # while the queue of the client's library fills, and the buffers of the two sockets
                await hub.messages.send_many(room.id, ada.id, [_long(number) for number in range(250)])
            await until(lambda: not gateway._connections)
            client.socket.transport.abort()
    async with Client(port, token) as client:
        await client.hello(positions)
        assert len(await client.messages(1_000)) == 1_000


def _long(number: int) -> NewMessage:
    return NewMessage(f"{number}".ljust(20_000, "x"))


async def test_silent_connection_gets_pings(
    hub: Hub, token: str, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "SWEEP_SECONDS", 0.05)
    async with serving(Gateway(hub, ping_seconds=0.1)) as port, Client(port, token) as client:
        assert (await client.hello())["ping_seconds"] == 0.1
        for _ in range(3):
            await client.next("ping")


async def test_ready_comes_before_the_first_ping(
    hub: Hub, token: str, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "SWEEP_SECONDS", 0.01)
    gateway, go_on = Gateway(hub, ping_seconds=0.02), asyncio.Event()
    read_user = hub.cache.user

    async def read_slowly(user_id: UUID) -> User:
        await go_on.wait()
        return await read_user(user_id)

    monkeypatch.setattr(hub.cache, "user", read_slowly)
    async with serving(gateway) as port, Client(port, token) as client:
        await client.send({"type": "hello", "token": token})
        await until(lambda: gateway._swept_at > 0 and bool(gateway._connections))
        entered_at = gateway._swept_at
        await until(lambda: gateway._swept_at > entered_at + 0.1)
        go_on.set()
        assert (await client.next("ready", "ping"))["type"] == "ready"
        await client.next("ping")


@pytest.mark.parametrize("device", [" ", "a\0b", "\t\n"])
async def test_device_without_a_name_is_not_a_frame(port: int, token: str, device: str) -> None:
    async with Client(port, token) as client:
        await client.send({"type": "hello", "token": token, "device": device})
        assert await bye(client) == 4400


@pytest.mark.parametrize(
    "options",
    [
        {"ping_seconds": 5},
        {"ping_seconds": inf},
        {"spread_seconds": -1},
        {"spread_seconds": "x"},
        {"limits": Limits(watched_rooms=101)},
    ],
)
def test_options_that_break_a_promise_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        Gateway(**options)


async def test_connection_is_presence(hub: Hub, port: int, token: str, ada: User) -> None:
    async def online() -> bool | None:
        return (await hub.presence.is_online([ada.id]))[ada.id]

    async with Client(port, token) as client:
        await client.hello(device="phone")
        assert await online()
        assert [device.name for device in await hub.presence.devices(ada.id)] == ["phone"]
    await until_it_answers(lambda: no_devices(hub, ada))


async def no_devices(hub: Hub, user: User) -> bool:
    return not await hub.presence.devices(user.id)


@pytest.mark.parametrize("found", [77, "77", object()])
async def test_result_of_authenticate_that_is_not_an_id_is_reported_and_is_an_error_of_the_server(
    hub: Hub, found: object
) -> None:
    reported: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(str(context.get("exception"))))
    gateway = Gateway(hub, authenticate=lambda _: found)  # type: ignore[arg-type, return-value]
    async with serving(gateway) as port, Client(port) as client:
        await client.send({"type": "hello"})
        assert await bye(client) == 4500
    assert [text for text in reported if "must return the id of a user of hubbub, a UUID" in text]


async def test_client_reconnects_later_after_an_error_of_authenticate(hub: Hub) -> None:
    def authenticate(_: object) -> None:
        raise RuntimeError("the table of logins is locked")

    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(str(context["exception"])))
    async with serving(Gateway(hub, authenticate=authenticate)) as port, Client(port) as client:
        await client.send({"type": "hello"})
        assert await bye(client) == 4500
    assert reported == ["the table of logins is locked"]


class Bans:
    """A table of the application, with the number of its reads."""

    def __init__(self) -> None:
        self.user_ids: set[UUID] = set()
        self.reads = 0

    async def __call__(self, user_ids: Collection[UUID]) -> set[UUID]:
        self.reads += 1
        return self.user_ids.intersection(user_ids)


async def test_ban_without_an_announcement_ends_the_connections_and_keeps_the_user_out(
    hub: Hub, ada: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(gateways, "USERS_PER_CALL", 1)
    bans = Bans()
    tokens = [await hub.sessions.create_session(user.id) for user in (ada, bob)]
    async with serving(Gateway(hub, banned=bans)) as port, Client(port, tokens[1]) as stays:
        async with Client(port, tokens[0]) as first:
            await stays.hello()
            await first.hello()
            bans.user_ids.add(ada.id)
            assert await bye(first) == 4403
        async with Client(port, tokens[0]) as again:
            await again.send({"type": "hello", "token": tokens[0]})
            assert await bye(again) == 4403
        headers = {"Authorization": f"Bearer {tokens[0]}"}
        address = f"http://127.0.0.1:{port}/chat"
        async with AsyncClient(base_url=address, headers=headers, timeout=HANGS_AFTER_SECONDS) as http:
            for answer in (await http.get("/me"), await http.post("/events", json={})):
                assert (answer.status_code, answer.json()["detail"]) == (403, "The user is banned.")
            bans.user_ids.clear()
            assert (await http.get("/me")).json()["id"] == str(ada.id)
        await stays.send({"type": "me", "ref": 1})
        assert (await stays.next("ack"))["result"]["id"] == str(bob.id)


async def test_failing_lookup_of_bans_keeps_connections_and_refuses_new_ones(
    hub: Hub, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "SWEEP_SECONDS", 0.05)
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(str(context["exception"])))
    fails = False

    def banned(_: Collection[UUID]) -> tuple[()]:
        if fails:
            raise RuntimeError("the table of bans is locked")
        return ()

    async with serving(Gateway(hub, banned=banned)) as port, Client(port, token) as client:
        await client.hello()
        fails = True
        await until(lambda: len(reported) > 1)
        async with Client(port) as other:
            await other.send({"type": "hello", "token": token})
            assert await bye(other) == 4500
        await client.send({"type": "nothing", "ref": 1})
        assert (await client.next("error"))["error"] == "unknown-frame"
    assert set(reported) == {"the table of bans is locked"}

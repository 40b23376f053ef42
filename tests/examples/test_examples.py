"""The examples as their users run them: a server in a process of its own, and a client over the network."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from hubbub import Hub, Settings, new_id
from waiting import HANGS_AFTER_SECONDS, until_it_answers

EXAMPLES = Path(__file__).parents[2] / "examples"
PASSWORD = "example phrase eleven"


@asynccontextmanager
async def running(
    settings: Settings, *command: str | Path, folder: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=folder,
        env={**settings.to_env(), "PATH": "", "PYTHONDEVMODE": "1", **(environment or {})},
        stderr=asyncio.subprocess.PIPE,
    )
    ended = asyncio.create_task(process.communicate())
    try:
        yield
        assert process.returncode is None
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(HANGS_AFTER_SECONDS):
                _, errors = await asyncio.shield(ended)
        except TimeoutError:
            process.kill()
            _, errors = await ended
        assert b"Traceback" not in errors, errors.decode()


class Client:
    """A browser that keeps the cookie and sends its origin."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.cookie = ""
        self.http = httpx.AsyncClient(base_url=self.origin, timeout=HANGS_AFTER_SECONDS)

    async def call(self, method: str, path: str, body: object = None, *, status: int = 200) -> Any:  # noqa: ANN401
        headers = {"Origin": self.origin, "Cookie": self.cookie}
        response = await self.http.request(method, path, json=body, headers=headers)
        assert response.status_code == status, response.text
        if "set-cookie" in response.headers:
            self.cookie = response.headers["set-cookie"].partition(";")[0]
        return response.json() if response.content else None

    def feed(self, *, origin: str | None = None) -> connect:
        url = self.origin.replace("http", "ws") + "/feed"
        headers = {"Cookie": self.cookie}
        return connect(
            url,
            origin=origin or self.origin,  # type: ignore[arg-type]
            additional_headers=headers,
            open_timeout=HANGS_AFTER_SECONDS,
        )


@pytest.fixture(params=["fastapi_app", "litestar_app"])
async def port(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port: int = reserved.getsockname()[1]
    arguments = ("-m", "uvicorn", "--app-dir", EXAMPLES, "--port", str(port), "--log-level", "warning")
    async with running(settings, *arguments, f"{request.param}:app", folder=tmp_path):
        async with httpx.AsyncClient() as http:

            async def answers() -> bool:
                try:
                    return (await http.get(f"http://127.0.0.1:{port}/me")).status_code == 401
                except httpx.TransportError:
                    return False

            await until_it_answers(answers)
        yield port


@pytest.fixture
async def clients(port: int) -> AsyncIterator[tuple[Client, Client]]:
    ada, bob = Client(port), Client(port)
    async with ada.http, bob.http:
        yield ada, bob


async def next_event(feed: ClientConnection, kind: str) -> Any:  # noqa: ANN401
    async with asyncio.timeout(HANGS_AFTER_SECONDS):
        while (event := json.loads(await feed.recv()))["type"] != kind:
            pass
    return event


async def test_web_application(clients: tuple[Client, Client], hub: Hub) -> None:
    ada, bob = clients
    people = {
        name: await client.call(
            "POST", "/users", {"email": f"{name}@example.org", "username": name, "password": PASSWORD}, status=201
        )
        for name, client in (("ada", ada), ("bob", bob))
    }
    await bob.call("POST", "/logout", status=204)
    await bob.call("GET", "/me", status=401)
    await bob.call("POST", "/login", {"login": "bob", "password": "wrong"}, status=401)
    await bob.call("POST", "/login", {"login": "bob", "password": PASSWORD})
    assert (await bob.call("GET", "/me")) == people["bob"]

    room = await ada.call("POST", "/rooms", {"name": "engine-room"}, status=201)
    path = f"/rooms/{room['id']}"
    draft = {"id": str(new_id()), "content": "hello"}
    sent = await ada.call("POST", f"{path}/messages", draft, status=201)
    assert await ada.call("POST", f"{path}/messages", draft, status=201) == sent
    refused = await bob.call("GET", f"{path}/messages", status=403)
    assert refused["type"] == "urn:hubbub:not-a-member"
    await bob.call("POST", f"{path}/members", {"username": "bob"}, status=403)
    await ada.call("POST", f"{path}/members", {"username": "carol"}, status=404)
    await ada.call("POST", f"{path}/members", {"username": "bob"}, status=201)
    assert (await bob.call("GET", f"{path}/messages"))["items"] == [sent]
    assert (await bob.call("GET", "/rooms"))["items"][0]["room"]["name"] == "engine-room"
    invalid = await ada.call("POST", f"{path}/messages", {**draft, "id": str(uuid4()), "content": ""}, status=422)
    assert invalid["field"] == "content"

    with pytest.raises(InvalidStatus):
        async with bob.feed(origin="https://evil.example"):
            pass
    async with ada.feed() as hers, bob.feed() as his:
        for feed in (hers, his):
            await feed.send("{}")
            assert room["id"] in json.loads(await feed.recv())
        later = await ada.call("POST", f"{path}/messages", {"id": str(new_id()), "content": "live"}, status=201)
        event = await next_event(his, "message_sent")
        assert event["message"] == later
        await hers.send(json.dumps({"room_id": room["id"], "is_typing": True}))
        assert (await next_event(his, "typing_changed"))["is_typing"]

    # Both are offline a grace time after their clients disconnected, although nothing was sent to them.
    ids = [user.id for name in people if (user := await hub.users.find_by_username(name))]

    async def are_offline() -> bool:
        return not any((await hub.presence.is_online(ids)).values())

    await until_it_answers(are_offline)

    # A client that reconnects gets the events that it missed, and a feed ends with the session.
    missed = await ada.call("POST", f"{path}/messages", {"id": str(new_id()), "content": "missed"}, status=201)
    async with bob.feed() as his:
        await his.send(json.dumps({room["id"]: event["cursor"]}))
        await his.recv()
        assert (await next_event(his, "message_sent"))["message"] == missed
        await bob.call("POST", "/logout", status=204)
        with pytest.raises(ConnectionClosed):
            await next_event(his, "no such event")
    async with ada.feed() as hers:
        await hers.send("not JSON")
        with pytest.raises(ConnectionClosed):
            await hers.recv()


async def test_bot_answers_each_question_once_also_after_a_restart(
    settings: Settings, hub: Hub, tmp_path: Path
) -> None:
    ada = await hub.users.create("ada@example.org", "ada", "hash")
    room = await hub.rooms.create("engine-room", created_by=ada.id)

    async def answers() -> list[str]:
        page = await hub.messages.page(room.id)
        return [message.content for message in page.items if message.user_id != ada.id]

    async def has_joined() -> bool:
        bot = await hub.users.find_by_username("echo")
        return bot is not None and (await hub.presence.is_online([bot.id]))[bot.id] is True

    async with running(settings, EXAMPLES / "bot.py", tmp_path, folder=tmp_path):
        await until_it_answers(has_joined)
        bot = await hub.users.find_by_username("echo")
        assert bot is not None
        await hub.room_users.add(room.id, bot.id)
        await hub.messages.send(room.id, ada.id, "!echo one")
        await until_it_answers(lambda: said(answers, ["one"]))
    await hub.messages.send(room.id, ada.id, "!echo two")
    async with running(settings, EXAMPLES / "bot.py", tmp_path, folder=tmp_path):
        await until_it_answers(lambda: said(answers, ["one", "two"]))


async def said(answers: Any, expected: list[str]) -> bool:  # noqa: ANN401
    return bool(await answers() == expected)

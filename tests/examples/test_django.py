"""The example on Django: its migrations, its logins, a view through the blocking hub, and the gateway."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from examples.test_examples import EXAMPLES, next_event, running
from hubbub import Hub, Settings, new_id
from ports import free_port
from waiting import HANGS_AFTER_SECONDS, until_it_answers

SITE = EXAMPLES / "django"
PASSWORD = "example phrase django"
ENVIRONMENT = {
    "DJANGO_SECRET_KEY": "of the tests",
    "DJANGO_SETTINGS_MODULE": "settings",
    "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
    "PYTHONPATH": str(SITE),
}


class Browser:
    """A browser that keeps cookies and sends the token against forged requests."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.cookies: dict[str, str] = {}
        self.http = httpx.AsyncClient(base_url=self.origin, timeout=HANGS_AFTER_SECONDS)

    @property
    def cookie(self) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    async def call(self, method: str, path: str, body: object = None, *, status: int = 200) -> Any:  # noqa: ANN401
        headers = {"Origin": self.origin, "Cookie": self.cookie, "X-CSRFToken": self.cookies.get("csrftoken", "")}
        response = await self.http.request(method, path, json=body, headers=headers)
        assert response.status_code == status, response.text
        for line in response.headers.get_list("set-cookie"):
            self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return response.json() if response.content and "json" in response.headers["content-type"] else None

    async def log_in(self, username: str) -> None:
        await self.call("GET", "/login", status=204)
        await self.call("POST", "/login", {"username": username, "password": PASSWORD}, status=204)

    def socket(self) -> connect:
        url = self.origin.replace("http", "ws") + "/chat/socket"
        headers = {"Cookie": self.cookie}
        return connect(
            url,
            origin=self.origin,  # type: ignore[arg-type]
            additional_headers=headers,
            subprotocols=["hubbub.1"],  # type: ignore[list-item]
            open_timeout=HANGS_AFTER_SECONDS,
        )


@pytest.fixture
async def port(settings: Settings, tmp_path: Path) -> AsyncIterator[int]:
    for arguments in (
        ("migrate", "--verbosity=0"),
        *(("createsuperuser", "--noinput", "--username", name, "--email", "") for name in ("ada", "bob")),
    ):
        command = [sys.executable, "-m", "django", *arguments]
        process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env={"PATH": "", **ENVIRONMENT})
        assert await process.wait() == 0
    port = free_port()
    server = ("-m", "uvicorn", "--port", str(port), "--log-level", "warning", "asgi:application")
    async with running(settings, *server, folder=tmp_path, environment=ENVIRONMENT):
        async with httpx.AsyncClient() as http:

            async def answers() -> bool:
                try:
                    return (await http.get(f"http://127.0.0.1:{port}/login")).status_code == 204
                except httpx.TransportError:
                    return False

            await until_it_answers(answers)
        yield port


async def test_site_on_django(port: int, hub: Hub) -> None:
    ada, bob, stranger = Browser(port), Browser(port), Browser(port)
    async with ada.http, bob.http, stranger.http:
        await ada.log_in("ada")
        await bob.log_in("bob")
        anywhere = f"/rooms/{new_id()}/messages"
        assert (await ada.call("GET", anywhere, status=403))["type"] == "urn:hubbub:not-a-member"
        await bob.call("GET", anywhere, status=403)
        await stranger.call("GET", anywhere, status=401)

        [hers, his] = [await hub.users.find_by_external_id(number) for number in (1, 2)]
        assert hers is not None
        assert his is not None
        assert (hers.display_name, hers.email) == ("ada", None)
        room = await hub.rooms.create("engine-room", created_by=hers.id, is_private=True)
        path = f"/rooms/{room.id}/messages"
        draft = {"id": str(new_id()), "content": "hello"}
        await bob.call("POST", path, draft, status=403)
        sent = await ada.call("POST", path, draft, status=201)
        assert await ada.call("POST", path, draft, status=201) == sent
        blank = {"id": str(new_id()), "content": ""}
        assert (await ada.call("POST", path, blank, status=422))["field"] == "content"
        await ada.call("POST", path, {"content": 1}, status=400)
        await hub.room_users.add(room.id, his.id)
        assert (await bob.call("GET", path))["items"][0]["id"] == sent["id"]
        forged = Browser(port)
        async with forged.http:
            forged.cookies = {"sessionid": ada.cookies["sessionid"]}
            await forged.call("POST", path, {**draft, "id": str(new_id())}, status=403)

        async with bob.socket() as socket:
            await socket.send(json.dumps({"type": "hello"}))
            assert json.loads(await socket.recv())["user_id"] == str(his.id)
            later = await ada.call("POST", path, {"id": str(new_id()), "content": "live"}, status=201)
            assert (await next_event(socket, "message_sent"))["message"]["id"] == later["id"]
        async with stranger.socket() as socket:
            await socket.send(json.dumps({"type": "hello"}))
            with pytest.raises(ConnectionClosed) as closed:
                await next_event(socket, "no such event")
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4401

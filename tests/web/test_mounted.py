"""The gateway inside applications on the frameworks. They provide the hub and authenticate the client."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import litestar
import pytest
from fastapi import FastAPI
from litestar.datastructures import State
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Scope

from hubbub import Hub, Room, User
from hubbub.web import Gateway
from waiting import HANGS_AFTER_SECONDS
from web.serving import Client, running


def in_fastapi(gateway: Gateway, hub: Hub) -> Any:  # noqa: ANN401
    app = FastAPI()
    app.state.hub = hub
    app.mount("/chat", gateway)
    return app


def in_starlette(gateway: Gateway, hub: Hub) -> Any:  # noqa: ANN401
    app = Starlette(routes=[Mount("/chat", gateway)])
    app.state.hub = hub
    return app


def in_litestar(gateway: Gateway, hub: Hub) -> Any:  # noqa: ANN401
    return litestar.Litestar(
        [litestar.asgi("/chat", is_mount=True, copy_scope=True)(gateway.__call__)], state=State({"hub": hub})
    )


@pytest.mark.parametrize("app", [in_fastapi, in_starlette, in_litestar])
async def test_application_has_the_hub_and_the_cookie(app: Any, hub: Hub, ada: User, room: Room) -> None:  # noqa: ANN401
    token = await hub.sessions.create_session(ada.id)
    async with running(app(Gateway(), hub)) as port:
        origin = f"http://127.0.0.1:{port}"
        async with Client(port, cookie=token, origin=origin) as client:
            assert list((await client.hello())["positions"]) == [str(room.id)]
            assert (await client.command("send", room_id=room.id, content="hello"))["content"] == "hello"
        async with httpx.AsyncClient(base_url=origin, timeout=HANGS_AFTER_SECONDS) as http:
            page = await http.get(f"/chat/rooms/{room.id}/messages", headers={"Authorization": f"Bearer {token}"})
        assert [message["content"] for message in page.json()["items"]] == ["hello"]


async def test_application_authenticates_the_client(hub: Hub, ada: User, bob: User) -> None:
    people = {b"ada": ada.id, b"bob": bob.id}

    async def authenticate(scope: Scope) -> UUID | None:
        headers = dict(scope["headers"])
        return people.get(headers.get(b"x-user", headers.get(b"cookie", b"").removeprefix(b"__Host-session=")))

    async with running(in_starlette(Gateway(lambda: hub, authenticate=authenticate), hub)) as port:
        async with Client(port, cookie="bob") as client:
            assert (await client.hello())["user_id"] == str(bob.id)
            hub.disconnect(bob.id)
            assert (await client.next("bye"))["code"] == 4403
        async with Client(port, cookie="eve") as client:
            await client.send({"type": "hello"})
            assert (await client.next("bye"))["code"] == 4401
        address = f"http://127.0.0.1:{port}/chat"
        async with httpx.AsyncClient(base_url=address, timeout=HANGS_AFTER_SECONDS) as http:
            assert (await http.get("/me", headers={"X-User": "ada"})).json()["id"] == str(ada.id)
            assert (await http.get("/me", headers={"X-User": "eve"})).status_code == 401


async def test_former_names_of_authenticate_and_authorize_work_and_warn(hub: Hub, ada: User) -> None:
    with pytest.warns(DeprecationWarning, match="who= is now called authenticate="):
        gateway = Gateway(hub, who=lambda _: ada.id)
    async with running(in_starlette(gateway, hub)) as port, Client(port) as client:
        assert (await client.hello())["user_id"] == str(ada.id)
    with pytest.warns(DeprecationWarning, match="may= is now called authorize="):
        gateway = Gateway(hub, authenticate=lambda _: ada.id, may=lambda *_: False)
    async with running(in_starlette(gateway, hub)) as port, Client(port) as client:
        await client.hello()
        assert (await client.refused("me"))["error"] == "forbidden"

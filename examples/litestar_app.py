"""A chat on Litestar: accounts, a login by cookie, rooms, messages, and a WebSocket for new events.

    pip install '.[embedded,web]' litestar uvicorn websockets     # in a clone of hubbub
    hubbub up                                                     # or set DATABASE_URL and REDIS_URL
    uvicorn --app-dir examples litestar_app:app

http://127.0.0.1:8000/schema describes each call. Calls that change something need an `Origin`, as browsers send.
Litestar supports msgspec structs, so requests are structs as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import msgspec
from litestar import Litestar, Request, Response, WebSocket, get, post, websocket
from litestar.exceptions import NotAuthorizedException, WebSocketDisconnect

import hubbub
from hubbub import Hub, Message, MessagePage, Page, Room, RoomSummary, RoomUser, User, web


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    async with hubbub.open() as hub:
        app.state.hub = hub
        yield


def hub_of(request: Request[Any, Any, Any] | WebSocket[Any, Any, Any]) -> Hub:
    return cast(Hub, request.app.state.hub)


class SignUp(msgspec.Struct):
    email: str
    username: str
    password: str


class Login(msgspec.Struct):
    login: str
    password: str


class NewRoom(msgspec.Struct):
    name: str
    is_private: bool = False


class Invitation(msgspec.Struct):
    username: str


class Draft(msgspec.Struct):
    id: UUID
    """An id from the client, so that it can repeat the request without sending twice."""
    content: str


class Typing(msgspec.Struct):
    """The frame that a client sends over the WebSocket."""

    room_id: UUID
    is_typing: bool


async def logged_in(user: User, hub: Hub, status: int) -> Response[User]:
    cookie = web.session_cookie(await hub.sessions.create_session(user.id))
    return Response(user, status_code=status, headers={"Set-Cookie": cookie})


@post("/users")
async def sign_up(data: SignUp, request: Request[Any, Any, Any]) -> Response[User]:
    hub = hub_of(request)
    return await logged_in(await hub.register(data.email, data.username, data.password), hub, 201)


@post("/login")
async def log_in(data: Login, request: Request[Any, Any, Any]) -> Response[User]:
    hub = hub_of(request)
    address = request.client.host if request.client else None
    user = await hub.authenticate(data.login, data.password, address=address)
    if user is None:
        raise NotAuthorizedException("The login or the password is wrong.")
    return await logged_in(user, hub, 200)


@post("/logout", status_code=204)
async def log_out(request: Request[Any, Any, Any]) -> Response[None]:
    token = web.session_token(request)
    if token is not None:
        await hub_of(request).sessions.delete_session(token)
    return Response(None, headers={"Set-Cookie": web.session_cookie(None)})


@get("/me")
async def my_account(request: Request[Any, Any, Any]) -> User:
    me = await web.acting_user(request)
    return await me.users.me()


@get("/rooms")
async def rooms(request: Request[Any, Any, Any], after: str | None = None) -> Page[RoomSummary]:
    me = await web.acting_user(request)
    return await me.rooms.list(after=after)


@post("/rooms")
async def create_room(data: NewRoom, request: Request[Any, Any, Any]) -> Room:
    me = await web.acting_user(request)
    return await me.rooms.create(data.name, is_private=data.is_private)


@post("/rooms/{room_id:uuid}/members")
async def invite(room_id: UUID, data: Invitation, request: Request[Any, Any, Any]) -> RoomUser:
    me = await web.acting_user(request)
    await me.room_users.get(room_id)  # before the lookup: a stranger learns no names here
    invited = await hub_of(request).users.find_by_username(data.username)
    if invited is None:
        raise hubbub.NotFound("user", data.username)
    return await me.room_users.add(room_id, invited.id)


@get("/rooms/{room_id:uuid}/messages")
async def messages(room_id: UUID, request: Request[Any, Any, Any], before: int | None = None) -> MessagePage:
    me = await web.acting_user(request)
    return await me.messages.page(room_id, before=before)


@post("/rooms/{room_id:uuid}/messages")
async def send(room_id: UUID, data: Draft, request: Request[Any, Any, Any]) -> Message:
    me = await web.acting_user(request)
    return await me.messages.send(room_id, data.content, id=data.id)


@websocket("/feed")
async def feed(socket: WebSocket[Any, Any, Any]) -> None:
    """The client first sends its cursors, or `{}` without any. Then it receives events, and sends `Typing`."""
    me, token = await web.acting_user(socket), web.session_token(socket)
    await socket.accept()

    async def deliver(cursors: dict[UUID, str | None]) -> None:
        follower = me.follow(after=cursors, token=token, typing=True)
        async with me.presence.online(), follower as events:
            await socket.send_json({str(room_id): cursor for room_id, cursor in events.cursors.items()})
            async for event in events:
                await socket.send_text(msgspec.json.encode(event).decode())

    async def receive() -> None:
        while True:
            typing = msgspec.json.decode(await socket.receive_text(), type=Typing)
            change = me.typing.start if typing.is_typing else me.typing.stop
            await change(typing.room_id)

    try:
        cursors = msgspec.json.decode(await socket.receive_text(), type=dict[UUID, str | None])
        # A connection that only writes does not notice that its client has disconnected, so both run side by side.
        await until_one_ends(deliver(cursors), receive())
    except WebSocketDisconnect:
        return
    except msgspec.MsgspecError:
        await socket.close(1007, "not the JSON that was expected")
    else:
        await socket.close(1008, "the session has ended")


async def until_one_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Wait until one of them ends, and cancel the others. Raises the error of the one that ended."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


app = Litestar(
    [sign_up, log_in, log_out, my_account, rooms, create_room, invite, messages, send, feed],
    lifespan=[lifespan],
    exception_handlers=web.litestar_exception_handlers,
)

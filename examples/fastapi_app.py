"""A chat on FastAPI: accounts, a login by cookie, rooms, messages, and a WebSocket for new events.

    pip install '.[embedded]' fastapi uvicorn websockets     # in a clone of hubbub
    hubbub up                                                # or set DATABASE_URL and REDIS_URL
    uvicorn --app-dir examples fastapi_app:app

http://127.0.0.1:8000/docs describes each call. Calls that change something need an `Origin`, which browsers send.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast
from uuid import UUID

import msgspec
from fastapi import Depends, FastAPI, HTTPException, Request, Response, WebSocket, WebSocketException
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketState

import hubbub
from hubbub import ActingUser, Hub, Message, MessagePage, Page, Room, RoomSummary, RoomUser, User, web


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with hubbub.open() as hub:
        app.state.hub = hub
        yield


def find_hub(connection: HTTPConnection) -> Hub:
    return cast(Hub, connection.app.state.hub)


app = FastAPI(title="A chat on hubbub", lifespan=lifespan, exception_handlers=web.exception_handlers)
TheHub = Annotated[Hub, Depends(find_hub)]
Token = Annotated[str | None, Depends(web.session_token)]
Me = Annotated[ActingUser, Depends(web.acting_user)]
"""The operations of the logged-in user. Each checks the permissions of this user."""


class SignUp(BaseModel):
    email: str
    username: str
    password: str


class Login(BaseModel):
    login: str
    password: str


class NewRoom(BaseModel):
    name: str
    is_private: bool = False


class Invitation(BaseModel):
    username: str


class Draft(BaseModel):
    id: UUID
    """An id from the client, so that it can repeat the request without sending twice."""
    content: str


class Typing(msgspec.Struct):
    """The frame that a client sends over the WebSocket."""

    room_id: UUID
    is_typing: bool


async def log_in_as(user: User, hub: Hub, response: Response) -> User:
    response.headers["Set-Cookie"] = web.session_cookie(await hub.sessions.create_session(user.id))
    return user


@app.post("/users", status_code=201)
async def sign_up(new: SignUp, hub: TheHub, response: Response) -> User:
    return await log_in_as(await hub.register(new.email, new.username, new.password), hub, response)


@app.post("/login")
async def log_in(login: Login, hub: TheHub, request: Request, response: Response) -> User:
    address = request.client.host if request.client else None
    user = await hub.authenticate(login.login, login.password, address=address)
    if user is None:
        raise HTTPException(401, "The login or the password is wrong.")
    return await log_in_as(user, hub, response)


@app.post("/logout", status_code=204)
async def log_out(hub: TheHub, token: Token, response: Response) -> None:
    if token is not None:
        await hub.sessions.delete_session(token)
    response.headers["Set-Cookie"] = web.session_cookie(None)


@app.get("/me")
async def my_account(me: Me) -> User:
    return await me.users.me()


@app.get("/rooms")
async def rooms(me: Me, after: str | None = None) -> Page[RoomSummary]:
    return await me.rooms.list(after=after)


@app.post("/rooms", status_code=201)
async def create_room(new: NewRoom, me: Me) -> Room:
    return await me.rooms.create(new.name, is_private=new.is_private)


@app.post("/rooms/{room_id}/members", status_code=201)
async def invite(room_id: UUID, invitation: Invitation, me: Me, hub: TheHub) -> RoomUser:
    await me.room_users.get(room_id)  # before the lookup: a stranger learns no names here
    invited = await hub.users.find_by_username(invitation.username)
    if invited is None:
        raise hubbub.NotFound("user", invitation.username)
    return await me.room_users.add(room_id, invited.id)


@app.get("/rooms/{room_id}/messages")
async def messages(room_id: UUID, me: Me, before: int | None = None) -> MessagePage:
    return await me.messages.page(room_id, before=before)


@app.post("/rooms/{room_id}/messages", status_code=201)
async def send(room_id: UUID, draft: Draft, me: Me) -> Message:
    return await me.messages.send(room_id, draft.content, id=draft.id)


@app.websocket("/feed")
async def feed(websocket: WebSocket, me: Me, token: Token) -> None:
    """The client first sends its cursors, or `{}` without any. Then it receives events, and sends `Typing`."""
    await websocket.accept()

    async def deliver(cursors: dict[UUID, str | None]) -> None:
        follower = me.follow(after=cursors, token=token, typing=True)
        async with me.presence.online(), follower as events:
            await websocket.send_json({str(room_id): cursor for room_id, cursor in events.cursors.items()})
            async for event in events:
                await websocket.send_text(msgspec.json.encode(event).decode())

    async def receive() -> None:
        async for text in websocket.iter_text():
            typing = msgspec.json.decode(text, type=Typing)
            change = me.typing.start if typing.is_typing else me.typing.stop
            await change(typing.room_id)

    try:
        cursors = msgspec.json.decode(await websocket.receive_text(), type=dict[UUID, str | None])
        # A connection that only writes does not notice that its client has disconnected, so both run side by side.
        await until_one_ends(deliver(cursors), receive())
    except msgspec.MsgspecError as error:
        raise WebSocketException(1007, "not the JSON that was expected") from error
    if websocket.client_state is WebSocketState.CONNECTED:
        await websocket.close(1008, "the session has ended")


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

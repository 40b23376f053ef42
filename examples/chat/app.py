"""A chat in the browser: rooms, direct messages, history, typing, presence, on `hubbub.web.Gateway` and hubbub.js.

    make chat                                      # in a clone: on its own servers, with two users in two windows
    uvicorn --app-dir examples/chat app:app        # on DATABASE_URL and REDIS_URL, or the servers of `hubbub up`

A public server needs the options for WebSockets of docs/web.md.

This file has the accounts and the cookie. The gateway under /chat and the scripts in `page` do the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import hubbub
from hubbub import User, embedded, migrations, web

PAGE = Path(__file__).parent / "page"
CLIENT = Path(web.__file__).parent / "client" / "hubbub.js"

# Pictures of people come from any host. It sees the browser that loads them, but not the address of the page.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: https:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

BODY_BYTES = 16 * 1024

T = TypeVar("T")
invitations: dict[str, str] = {}
"""One-time login codes, with their usernames. Only `make chat` creates some."""


class SecurityHeaders:
    """Add the headers above to all answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        await self.app(scope, receive, send_with_headers)


class SignUp(msgspec.Struct):
    email: str
    username: str
    password: str


class Login(msgspec.Struct):
    login: str
    password: str


class NewPassword(msgspec.Struct):
    password: str


async def body(request: Request, kind: type[T]) -> T:
    """The JSON of the request. Forms on other sites cannot send this content type."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise hubbub.Invalid("content-type", "must be application/json")
    given = bytearray()
    async for part in request.stream():
        given += part
        if len(given) > BODY_BYTES:
            raise hubbub.Invalid("body", f"must have at most {BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(given, type=kind)
    except msgspec.MsgspecError as error:
        raise hubbub.Invalid("body", str(error)) from None


async def log_in_as(user: User, request: Request, response: Response) -> Response:
    hub: hubbub.Hub = request.app.state.hub
    device = {"device": request.headers.get("user-agent", "")[:200]}
    response.headers["Set-Cookie"] = web.session_cookie(
        await hub.sessions.create_session(user.id, device), max_age_seconds=30 * 24 * 3600
    )
    return response


def answer(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def sign_up(request: Request) -> Response:
    new = await body(request, SignUp)
    user = await request.app.state.hub.register(new.email, new.username, new.password)
    return await log_in_as(user, request, answer({"id": user.id}))


async def log_in(request: Request) -> Response:
    login = await body(request, Login)
    address = request.client.host if request.client else None
    user = await request.app.state.hub.authenticate(login.login, login.password, address=address)
    if user is None:
        raise web.Refused(401, "The name or the password is wrong.")
    return await log_in_as(user, request, answer({"id": user.id}))


async def log_out(request: Request) -> Response:
    if token := web.session_token(request):
        await request.app.state.hub.sessions.delete_session(token)
    return Response(status_code=204, headers={"Set-Cookie": web.session_cookie(None)})


async def me(request: Request) -> Response:
    return answer({"id": (await web.current_user(request)).id})


async def enter(request: Request) -> Response:
    username = invitations.pop(request.path_params["code"], None)
    user = username and await request.app.state.hub.users.find_by_username(username)
    response = RedirectResponse("/", 303)
    return await log_in_as(user, request, response) if user else response


async def index(_: Request) -> Response:
    return FileResponse(PAGE / "index.html")


async def client(_: Request) -> Response:
    return FileResponse(CLIENT, media_type="text/javascript")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with hubbub.open() as hub:
        app.state.hub = hub
        yield


app = Starlette(
    lifespan=lifespan,
    routes=[
        Mount("/chat", web.Gateway()),
        Route("/api/signup", sign_up, methods=["POST"]),
        Route("/api/login", log_in, methods=["POST"]),
        Route("/api/logout", log_out, methods=["POST"]),
        Route("/api/me", me),
        Route("/enter/{code}", enter),
        Route("/hubbub.js", client),
        Route("/", index),
        Mount("/", StaticFiles(directory=PAGE)),
    ],
    middleware=[Middleware(SecurityHeaders)],
    exception_handlers=web.exception_handlers,
)


Fill = Callable[[hubbub.Hub], Awaitable[Sequence[str]]]
Play = Callable[[hubbub.Hub], Coroutine[None, None, None]]


async def main(
    port: int, *, opens: bool, fill: Fill | None = None, play: Play | None = None, parent: Path | None = None
) -> None:
    """Start servers in a temporary folder, fill them, and serve until a signal.

    `fill` returns the usernames of two users for two windows. `play` runs while the chat is served. An error that
    `play` raises ends the server and is raised here.
    """
    import uvicorn  # noqa: PLC0415 - another server may serve this page
    from conversation import fill as fill_with_talk  # type: ignore[import-not-found]  # noqa: PLC0415 - beside this

    # SIGTERM ends it like Ctrl+C: the servers are stopped, and their files are deleted.
    loop, running = asyncio.get_running_loop(), asyncio.current_task()
    if running is not None:
        signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(running.cancel))
    with tempfile.TemporaryDirectory(prefix="hubbub-chat-", dir=parent) as folder:
        print("starting PostgreSQL and Valkey ...", flush=True)
        async with embedded.Servers(Path(folder)) as settings:
            await migrations.up(settings.postgres)
            async with hubbub.open(settings) as hub:
                usernames = await (fill or fill_with_talk)(hub)
            os.environ |= settings.to_env()
            # A browser has separate cookies for these two hosts, so two users can log in, in two windows.
            hosts = dict(zip(usernames, ("127.0.0.1", "localhost"), strict=True))
            links = {}
            for username, host in hosts.items():
                code = secrets.token_urlsafe(16)
                invitations[code] = username
                links[username] = f"http://{host}:{port}/enter/{code}"
            config = uvicorn.Config(
                app,
                port=port,
                ws="websockets-sansio",
                ws_max_size=64 * 1024,
                ws_per_message_deflate=False,
                log_level="warning",
                timeout_graceful_shutdown=3,
            )
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn does not notify
                await asyncio.sleep(0.05)
            for username, link in links.items():
                print(f"{username}: {link}", flush=True)
                if opens:
                    webbrowser.open(link)
            print(
                "Each address logs one browser in, once. Ctrl+C ends the servers and deletes their files.",
                flush=True,
            )
            playing = asyncio.create_task(play(app.state.hub)) if play and not serving.done() else None
            try:
                if playing is not None:
                    await asyncio.wait([serving, playing], return_when=asyncio.FIRST_COMPLETED)
                    if playing.done() and not server.should_exit:  # otherwise it failed because the hub was closed
                        server.should_exit = True
                        await serving
                        await playing
                await serving
            finally:
                if playing is not None:
                    playing.cancel()
                    await asyncio.gather(playing, return_exceptions=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--no-browser", action="store_true", help="print the addresses, and open no window")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(main(given.port, opens=not given.no_browser))

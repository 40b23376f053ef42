"""The gateway: the protocol of docs/protocol.md as an ASGI application."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Collection, Iterable
from itertools import count
from typing import Any, Final
from uuid import UUID

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.routing import Router
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from hubbub import inputs
from hubbub.background import ReportErrors, wait_at_most
from hubbub.errors import Forbidden, Invalid, NotFound
from hubbub.events import FeedEvent
from hubbub.hub import Hub
from hubbub.renamed import renamed_argument
from hubbub.web import commands, frames
from hubbub.web.commands import Call, Command, Handler
from hubbub.web.connections import GatewayConnection
from hubbub.web.frames import Limits
from hubbub.web.http import Http, preflight, readable_by
from hubbub.web.logins import Identity, Tokens, cookie_of, hub_from, is_from_own_page, value_of
from hubbub.web.problems import answer
from hubbub.web.sockets import Sockets

Authenticate = Callable[["Scope"], Awaitable[UUID | None] | UUID | None]

Banned = Callable[[Collection[UUID]], Awaitable[Collection[UUID]] | Collection[UUID]]
Authorize = Callable[[Call, str, Any], Awaitable[bool] | bool]
BeforeSend = Callable[[Call, commands.Send], Awaitable[commands.Send] | commands.Send]

ENDING_SECONDS: Final = 1.0
"""How often the gateway looks whether its server is about to end. Open streams keep it from ending until then."""
PING_FRAME_SECONDS: Final = 25
"""Proxies close connections that are silent for a minute, and some sooner. Each ping costs a client a wake-up."""
SPREAD_SECONDS: Final = 15
"""Spreads the logins of 2,000 clients, which take about two seconds of a processor (docs/performance.md)."""
SWEEP_SECONDS: Final = 5.0
"""How often connections are looked at, in one step of the event loop: 1 ms for 5,000."""
USERS_PER_CALL: Final = 1_000
"""The most users in one call of `banned`."""
BLOCKED_SECONDS: Final = 30.0
"""A connection whose client has read nothing for this long is closed. It also limits a call of `banned`."""
CLOSE_SECONDS: Final = 2.0
"""How long `close` waits for clients. A `bye` takes milliseconds, and a dead client must not delay the server."""
ENCODED_CHARACTERS: Final = 1024 * 1024
"""Bounds the cache of encoded events. Followers of a room get an event within milliseconds of each other."""


class Gateway:
    """An ASGI application for clients: `app.mount("/chat", Gateway())`.

    `hub` is a hub, or a callable that returns it. Without one it is `state.hub` of the application, or `hub` in
    the state of its lifespan. `authenticate(scope)` returns the id of the user of an ASGI scope, or None. Without
    it a client needs a session of hubbub. `banned` gets ids of users and returns the banned ones. It is called
    when a client connects, at each request, and every 5 seconds for all users who are connected to this process,
    1,000 at a time. `origins` are those of pages on other hosts, such as `https://app.example.org`. `secret` signs
    the tokens of `token`: at least 32 random bytes, the same in all processes.

    `authorize(call, command, frame)` returns whether the user may run the command with this name, in addition to
    the rules of hubbub. Each of `before_send(call, frame)` returns the frame to send: the same or a changed one.
    It refuses by raising an error of hubbub, such as `RateLimited` for a slow mode. All of these may be coroutine
    functions. `limits` bounds what one client may send and hold. A connection on which nothing was sent for
    `ping_seconds` gets a ping. When the server ends, clients reconnect after a random time of up to
    `spread_seconds`. `who` and `may` are the former names of `authenticate` and `authorize`.

    Raises: Invalid (a secret that is too short, `limits`, or seconds that are out of range).
    """

    def __init__(
        self,
        hub: Hub | Callable[[], Hub] | None = None,
        *,
        authenticate: Authenticate | None = None,
        banned: Banned | None = None,
        origins: Collection[str] = (),
        secret: bytes | None = None,
        authorize: Authorize | None = None,
        before_send: Iterable[BeforeSend] = (),
        limits: Limits = Limits(),  # noqa: B008 - a frozen value
        ping_seconds: float = PING_FRAME_SECONDS,
        spread_seconds: float = SPREAD_SECONDS,
        who: Authenticate | None = None,
        may: Authorize | None = None,
    ) -> None:
        self._hub = hub
        self._authenticate = renamed_argument(authenticate, who, "who=", "authenticate=")
        self._banned = banned
        self._origins = frozenset(origins)
        self._tokens = None if secret is None else Tokens(secret)
        self.limits = limits
        self.ping_seconds = inputs.positive("ping_seconds", ping_seconds)
        if ping_seconds <= SWEEP_SECONDS:  # a ping would come too late
            raise Invalid("ping_seconds", f"must be more than {SWEEP_SECONDS:g}")
        self.spread_seconds = inputs.positive("spread_seconds", spread_seconds)
        if limits.watched_rooms > frames.MAX_WATCHED_ROOMS:
            raise Invalid("limits", f"must have watched_rooms of at most {frames.MAX_WATCHED_ROOMS}")
        self.commands = dict(commands.COMMANDS)
        self.encoder = Encoder()
        self._connections: dict[UUID, dict[GatewayConnection, None]] = {}
        self._empty = asyncio.Event()
        """Whether there is no connection."""
        self._empty.set()
        self._is_closing = False
        self._timer: asyncio.TimerHandle | None = None
        self._swept_at = 0.0
        self._pings: set[asyncio.Task[None]] = set()
        self._numbers = count()
        self._looking_for_banned: asyncio.Task[None] | None = None
        self._authorize = renamed_argument(authorize, may, "may=", "authorize=")
        self._before_send = tuple(before_send)
        self._sockets = Sockets(self)
        self._router = Router(Http(self).routes(), default=_no_such_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path", "").endswith("/"):  # as Litestar has it below a mount
            scope = {**scope, "path": scope["path"].rstrip("/")}
        if scope["type"] == "http" and (origin := Headers(scope=scope).get("origin")) in self._origins:
            send = readable_by(origin, send)
            if (answer_to_browser := preflight(scope)) is not None:
                await answer_to_browser(scope, receive, send)
                return
        if scope["type"] == "websocket" and _path(scope) == "/socket":
            await self._sockets(scope, receive, send)  # without a router, whose frames would live as long
        else:
            await self._router(scope, receive, send)

    def hub_of(self, request: HTTPConnection) -> Hub:
        """The hub that serves this request."""
        return hub_from(self._hub, request)

    def accepts_origin(self, request: HTTPConnection) -> bool:
        """Whether the request is of no page, or of a page of the application's own."""
        return "origin" not in request.headers or is_from_own_page(request, self._origins)

    async def identify(
        self, request: HTTPConnection, token: str | None, *, needs_origin: bool = True
    ) -> Identity | None:
        """The identity of the client: by the token, or else by the request. Raises: Unavailable.

        With `needs_origin` a cookie counts only beside the `Origin` of a page of the application's own.
        """
        if token is None and self._authenticate is not None:
            user_id = await value_of(self._authenticate(request.scope))
            if user_id is not None and not isinstance(user_id, UUID):
                reason = f"must return the id of a user of hubbub, a UUID, not {user_id!r:.100}"
                raise TypeError(f"`authenticate` {reason}")
            return None if user_id is None else Identity(user_id)
        if token is None and ("origin" in request.headers or not needs_origin):
            token = cookie_of(request)
        return await self.identify_by(self.hub_of(request), token) if token else None

    async def identify_by(self, hub: Hub, token: str) -> Identity | None:
        """The identity of the token. Raises: Unavailable."""
        if "." in token:
            claims = None if self._tokens is None else self._tokens.check(token)
            if claims is None:
                return None
            user_id, seconds = claims
            return Identity(user_id, None, asyncio.get_running_loop().time() + seconds)
        session = await hub.sessions.get_session(token)
        return None if session is None else Identity(session.user_id, token)

    async def are_banned(self, user_ids: Collection[UUID]) -> Collection[UUID]:
        """The banned users among these. Raises: TypeError (`banned` does not return ids)."""
        found = () if self._banned is None else await value_of(self._banned(user_ids))
        if any(not isinstance(one, UUID) for one in found):
            raise TypeError("`banned` must return ids of hubbub's users, each a UUID")
        return found

    def token(self, user_id: UUID, *, seconds: float = 900) -> str:
        """A signed token of the user for `hello` and bearers, valid for `seconds`. It cannot be revoked.

        `hub.disconnect` ends the connections of a user. Raises: Invalid (the gateway has no secret).
        """
        if self._tokens is None:
            raise Invalid("secret", "is needed to sign tokens: Gateway(secret=...)")
        return self._tokens.sign(user_id, seconds)

    def command(self, name: str) -> Callable[[Handler], Handler]:
        """Add a command of the application's own. It is given by WebSocket and by HTTP as those of hubbub are.

            class Vote(msgspec.Struct):
                poll_id: UUID

            @gateway.command("vote")
            async def vote(call: Call, frame: Vote) -> object: ...

        The second parameter has the type of its frame. The result is what the client gets, as JSON.
        Raises: Invalid (there is a command with this name), TypeError.
        """

        def add(handler: Handler) -> Handler:
            if name in self.commands or name in {"hello", "positions"}:
                raise Invalid("name", "is the name of another frame")
            self.commands[name] = Command(handler, name)
            return handler

        return add

    async def do(self, command: Command, call: Call, frame: Any) -> object:  # noqa: ANN401 - of the command
        """The result of a command. Raises: what the command raises, Forbidden, Invalid (rooms to watch)."""
        if self._authorize is not None and not await value_of(self._authorize(call, command.name, frame)):
            raise Forbidden(command.name, "the application does not allow it")
        if isinstance(frame, commands.Watch) and len(frame.room_ids) > self.limits.watched_rooms:
            raise Invalid("room_ids", f"must have at most {self.limits.watched_rooms} rooms")
        if isinstance(frame, commands.Send):
            for hook in self._before_send:
                frame = await value_of(hook(call, frame))
        return await command.call(call, frame)

    def bye(self, code: int) -> str:
        """The last frame of a connection."""
        reconnects = code in frames.RECONNECTS
        within_seconds = self.spread_seconds if reconnects else 0
        return frames.encode(frames.Bye(code, reconnects, within_seconds, frames.REASONS[code])).decode()

    # The connections of this process.

    async def close(self) -> None:
        """Close all connections with 1012 and refuse new ones. Waits up to 2 s until the clients have gone.

        Call it before the server ends: it may wait for streams. Raises: nothing.
        """
        self._close_all()
        await wait_at_most(self._empty, CLOSE_SECONDS)

    def _close_all(self) -> None:
        self._is_closing = True
        for connection in [one for own in self._connections.values() for one in own]:
            connection.close(1012)

    def enter(self, connection: GatewayConnection) -> int | None:
        """Register an open connection. Returns the code with which it is refused, or None."""
        if self._is_closing:
            return 1012
        own = self._connections.setdefault(connection.user_id, {})
        replaced = [one for one in own if connection.device is not None and one.device == connection.device]
        if any(one.code is None and one.number > connection.number for one in replaced):
            return 4409  # the first frame of an attempt that the client gave up has come late
        # A connection that does not read stays for a while, and counts until it has gone.
        staying = len(own)
        for one in replaced:
            if one.code is None and not one.is_blocked:
                one.close(4409)
                staying -= 1
            else:
                one.abort(4409)
        if staying >= self.limits.connections:
            return 4429
        own[connection] = None
        self._empty.clear()
        if self._timer is None:
            self._swept_at = asyncio.get_running_loop().time()
            self._look_later()
        return None

    def next_number(self) -> int:
        """The number of a connection, from the moment when it is opened."""
        return next(self._numbers)

    def leave(self, connection: GatewayConnection) -> None:
        """Unregister a connection."""
        own = self._connections.get(connection.user_id, {})
        own.pop(connection, None)
        if not own:
            self._connections.pop(connection.user_id, None)
        if not self._connections:
            self._empty.set()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(min(ENDING_SECONDS, SWEEP_SECONDS), self._look)

    def _look(self) -> None:
        """One timer for all connections."""
        self._timer = None
        if not self._connections:
            return
        self._look_later()
        if _server_is_ending():
            self._close_all()
        now = asyncio.get_running_loop().time()
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Send pings, disconnect clients that do not read, and close connections whose tokens have expired."""
        if self._banned is not None and (self._looking_for_banned is None or self._looking_for_banned.done()):
            self._looking_for_banned = asyncio.create_task(
                self._end_banned(), name="hubbub: look for banned users"
            )
        for connection in [one for own in self._connections.values() for one in own]:
            expires_at = connection.identity.expires_at
            if now - connection.blocked_since >= BLOCKED_SECONDS:
                connection.abort(4501)
            elif expires_at is not None and expires_at <= now:
                connection.close(4401)
            elif now - connection.sent_at > min(self.ping_seconds, connection.silence_seconds) - SWEEP_SECONDS:
                task = asyncio.create_task(connection.ping(), name="hubbub: ping a client")
                self._pings.add(task)
                task.add_done_callback(self._pings.discard)

    async def _end_banned(self) -> None:
        """Close the connections of users who were banned. After an error the next sweep tries again."""
        user_ids = list(self._connections)
        for start in range(0, len(user_ids), USERS_PER_CALL):
            # A call that fails or hangs must not keep the other users connected.
            with ReportErrors("finding out which users are banned"):
                async with asyncio.timeout(BLOCKED_SECONDS):
                    found = await self.are_banned(user_ids[start : start + USERS_PER_CALL])
                for user_id in found:
                    for connection in tuple(self._connections.get(user_id, ())):
                        connection.close(4403)


async def _no_such_path(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await WebSocketClose()(scope, receive, send)
    else:
        await answer(NotFound("path", f"{scope['path']:.200}"))(scope, receive, send)


def _path(scope: Scope) -> str:
    """The path below the mount."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _server_is_ending() -> bool:
    """Whether uvicorn is about to end. It would wait for streams, which end when the hub is closed, after that."""
    handler = signal.getsignal(signal.SIGTERM)
    return getattr(getattr(handler, "__self__", None), "should_exit", False) is True


class Encoder:
    """Encodes an event once for all who get it."""

    def __init__(self) -> None:
        self._encoded: dict[int, tuple[FeedEvent, str]] = {}  # by the id of an event, which is held here
        self._characters = 0

    def encode(self, event: FeedEvent) -> str:
        """The frame of an event."""
        found = self._encoded.get(id(event))
        if found is not None:
            return found[1]
        text = frames.encode(event).decode()
        self._encoded[id(event)] = event, text
        self._characters += len(text)
        while self._characters > ENCODED_CHARACTERS:
            self._characters -= len(self._encoded.pop(next(iter(self._encoded)))[1])
        return text

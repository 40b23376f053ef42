"""The gateway: the protocol of docs/protocol.md as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from starlette.routing import Router, WebSocketRoute

from hubbub.errors import Invalid
from hubbub.hub import Hub
from hubbub.web import commands, frames
from hubbub.web.connections import Connection
from hubbub.web.frames import Limits
from hubbub.web.logins import Identity, cookie_of, hub_of, is_from_own_page
from hubbub.web.sockets import Sockets
from hubbub.web.tokens import Tokens

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import Receive, Scope, Send

    from hubbub.events import FeedEvent

Who = Callable[["Scope"], Awaitable[UUID | None] | UUID | None]

SWEEP_SECONDS: Final = 5.0
"""How often connections are looked at, in one step of the event loop: 1 ms for 5,000."""
BLOCKED_SECONDS: Final = 30.0
ENCODED_CHARACTERS: Final = 1024 * 1024
"""Events that are kept encoded. Many followers get an event within a moment."""


class Gateway:
    """An ASGI application for clients: `app.mount("/chat", Gateway())`.

    `hub` is a hub, or a callable that returns it. Without one it is `state.hub` of the application, or `hub` in
    the state of its lifespan. `who` returns the id of the user of an ASGI scope, or None. Without it a client has
    a session of hubbub's. `origins` are those of pages on other hosts, such as `https://app.example.org`.
    `secret` signs the tokens of `token`: at least 32 random bytes, the same in all processes.

    Raises: Invalid.
    """

    def __init__(
        self,
        hub: Hub | Callable[[], Hub] | None = None,
        *,
        who: Who | None = None,
        origins: Collection[str] = (),
        secret: bytes | None = None,
        limits: Limits = Limits(),  # noqa: B008 - a frozen value
        ping_seconds: float = 25,
        spread_seconds: float = 15,
    ) -> None:
        self._hub = hub
        self._who = who
        self._origins = frozenset(origins)
        self._tokens = None if secret is None else Tokens(secret)
        self.limits = limits
        self.ping_seconds = ping_seconds
        self.spread_seconds = spread_seconds
        self.commands = dict(commands.COMMANDS)
        self.encoder = Encoder()
        self._connections: dict[UUID, dict[Connection, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pings: set[asyncio.Task[None]] = set()
        self._router = Router([WebSocketRoute("/socket", Sockets(self))])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    def hub_of(self, request: HTTPConnection) -> Hub:
        """The hub that serves this request."""
        if self._hub is None:
            return hub_of(request)
        return self._hub if isinstance(self._hub, Hub) else self._hub()

    def accepts_origin(self, request: HTTPConnection) -> bool:
        """Whether the request is of no page, or of a page of the application's own."""
        return "origin" not in request.headers or is_from_own_page(request, self._origins)

    async def identify(self, request: HTTPConnection, token: str | None) -> Identity | None:
        """Who the client is, by a token or else by what the request carries. Raises: Unavailable."""
        if token is None and self._who is not None:
            found: Any = self._who(request.scope)
            user_id = await found if isawaitable(found) else found
            return None if user_id is None else Identity(user_id)
        if token is None and "origin" in request.headers:
            token = cookie_of(request)
        return await self.identify_by(self.hub_of(request), token) if token else None

    async def identify_by(self, hub: Hub, token: str) -> Identity | None:
        """Who has this token. Raises: Unavailable."""
        if "." in token:
            claims = None if self._tokens is None else self._tokens.check(token)
            if claims is None:
                return None
            user_id, seconds = claims
            return Identity(user_id, None, asyncio.get_running_loop().time() + seconds)
        session = await hub.sessions.get_session(token)
        return None if session is None else Identity(session.user_id, token)

    def token(self, user_id: UUID, *, seconds: float = 900) -> str:
        """A signed token for `hello` and bearers: who the user is, for so many seconds. It cannot be revoked.

        `hub.disconnect` ends the connections of a user. Raises: Invalid (the gateway has no secret).
        """
        if self._tokens is None:
            raise Invalid("secret", "is needed to sign tokens: Gateway(secret=...)")
        return self._tokens.sign(user_id, seconds)

    def bye(self, code: int) -> str:
        """The last frame of a connection."""
        reconnects = code in frames.RECONNECTS
        within_seconds = self.spread_seconds if reconnects else 0
        return frames.encode(frames.Bye(code, reconnects, within_seconds, frames.REASONS[code])).decode()

    # The connections of this process.

    def enter(self, connection: Connection) -> int | None:
        """Note an open connection. Returns the code with which it is refused, or None."""
        own = self._connections.setdefault(connection.user_id, {})
        replaced = [one for one in own if connection.device is not None and one.device == connection.device]
        for one in replaced:
            one.close(4409)
        if len(own) - len(replaced) >= self.limits.connections:
            return 4429
        own[connection] = None
        if self._timer is None:
            self._sweep_later()
        return None

    def leave(self, connection: Connection) -> None:
        """Forget it."""
        own = self._connections.get(connection.user_id, {})
        own.pop(connection, None)
        if not own:
            self._connections.pop(connection.user_id, None)

    def _sweep_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """One timer for all connections: pings, clients that do not read, and tokens that have expired."""
        self._timer = None
        if not self._connections:
            return
        self._sweep_later()
        now = asyncio.get_running_loop().time()
        for connection in [one for own in self._connections.values() for one in own]:
            expires_at = connection.identity.expires_at
            if now - connection.blocked_since >= BLOCKED_SECONDS:
                connection.abort(4501)
            elif expires_at is not None and expires_at <= now:
                connection.close(4401)
            elif now - connection.sent_at > self.ping_seconds - SWEEP_SECONDS:
                task = asyncio.create_task(connection.ping(), name="hubbub: ping a client")
                self._pings.add(task)
                task.add_done_callback(self._pings.discard)


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

"""Connections: one client each, with its feed and its commands, however it is connected.

    new --hello--> entered: presence, feed, `ready` --> open --close, session or hub ended--> bye --> ended
                                                          |
                                                          +--the client went, or does not read--> ended

A task reads from the client until it goes, and another one writes what the feed has. Each command has a task of
its own, of which a limited number runs at a time. A client that sends more waits in its socket.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Final
from uuid import UUID

from starlette.types import Receive, Send

from hubbub.background import ReportErrors
from hubbub.errors import Invalid, NotFound, Unavailable
from hubbub.events import FeedEvent
from hubbub.hub import Hub
from hubbub.services.feed import Follower
from hubbub.services.sessions import key_of
from hubbub.web import frames
from hubbub.web.logins import Identity

if TYPE_CHECKING:
    from hubbub.web.gateway import Gateway

logger = logging.getLogger("hubbub.web")

MAX_JOINED: Final = 64
"""Frames in one message: what waits for a client costs one write."""
JOINED_CHARACTERS: Final = 64 * 1024
"""No further frame joins a message of this length."""


class GatewayConnection(ABC):
    """A client that is known, from its `hello` until it has gone."""

    def __init__(  # noqa: PLR0917 - the last two as an ASGI application gets them
        self,
        gateway: Gateway,
        hub: Hub,
        identity: Identity,
        device: str | None,
        number: int,
        receive: Receive,
        send: Send,
    ) -> None:
        self.gateway = gateway
        self.hub = hub
        self.identity = identity
        self.device = device
        self.number = number
        """Later connections to this process have higher numbers, also where their first frames change places."""
        self.code: int | None = None
        """The close code, or None while it is open."""
        self.blocked_since = inf
        """When the client last took something, or the first write began that it has not taken, in the time of the
        event loop. `inf` while no write waits."""
        self.sent_at = inf
        """When something was sent last, in the time of the event loop. No ping comes before `ready`."""
        self.positions: Mapping[UUID, str] | None = None
        """The positions of the client, until it is entered. They are too large to be kept for its lifetime."""
        self.watched: Sequence[UUID] = ()
        """The rooms of whose members the presence is wanted from the beginning."""
        self.has_gone = False
        """Whether nothing can be sent any more."""
        self._asgi_receive = receive
        self._asgi_send = send
        self._resumes = False
        self._follower: Follower | None = None
        self._receiving: asyncio.Timeout | None = None
        self._writing = 0  # calls of `write` that wait
        self._loop = asyncio.get_running_loop()

    silence_seconds: float = inf
    """How long it may be silent, if that is less than what the gateway promises."""

    @property
    def user_id(self) -> UUID:
        return self.identity.user_id

    @property
    def is_blocked(self) -> bool:
        """Whether the client has not taken what was sent to it."""
        return self.blocked_since < inf

    @abstractmethod
    async def _send(self, text: str) -> None:
        """Send these frames. Waits while the client does not read. Raises: OSError (it has gone)."""

    @abstractmethod
    async def _receive(self) -> None:
        """Take what the client sends, until it goes."""

    @abstractmethod
    async def _finish(self, code: int) -> None:
        """Close the transport. Raises: OSError (the client has gone)."""

    async def run(self) -> None:
        """Serve the client until it goes or the connection is closed."""
        refused = self.gateway.enter(self)
        try:
            if refused is None:
                refused = await self._open()
            if refused is not None:
                with suppress(OSError):
                    await self._send_bye(refused)
        finally:
            self.has_gone = True
            self.gateway.leave(self)

    async def _open(self) -> int | None:
        """Returns the code with which to refuse the client, or None once it has gone."""
        try:
            await self.hub.cache.user(self.user_id)
            self._resumes = self.positions is not None
            follower = self.hub.follow(
                self.user_id,
                after=self.positions,
                complete=self._resumes,
                typing=True,
                presence=self.watched,
                read_marks=True,
                profiles=True,
                token=self.identity.token,
            )
            self.positions = None
            async with self.hub.presence.online(self.user_id, self.device), follower as self._follower:
                if self.code is not None:  # closed meanwhile
                    return self.code
                await self._serve(self._follower)
        except Invalid:  # a cursor of another room
            return 4503
        except NotFound:
            return 4410
        except Unavailable as error:
            logger.info("a client is sent away for a moment, after: %s", error)
            return 1013 if error.retryable else 1012
        return None

    async def _serve(self, follower: Follower) -> None:
        delivering = asyncio.create_task(self._deliver(follower), name="hubbub: deliver to a client")
        try:
            async with asyncio.timeout(None) as self._receiving:
                await self._receive()
        except TimeoutError:
            pass  # closed by this side
        finally:
            self._receiving = None
            delivering.cancel()
            await asyncio.wait([delivering])

    def _ready(self, follower: Follower) -> str:
        gateway = self.gateway
        known = follower.after.keys()  # each of them is where the client has it
        ready = frames.Ready(
            self.user_id,
            self._resumes,
            {room_id: cursor for room_id, cursor in follower.cursors.items() if room_id not in known},
            gateway.ping_seconds,
            gateway.spread_seconds,
            gateway.limits,
            self.identity.expires_in_seconds,
        )
        return frames.encode(ready).decode()

    async def _deliver(self, follower: Follower) -> None:
        """Write the events of the feed until it ends, then send the close code."""
        code: int | None = 4500
        try:
            with ReportErrors("a connection"):
                code = await self._code_of_end(follower)
            if code is not None:
                with suppress(OSError):
                    await self._send_bye(code)
        finally:
            if self._receiving is not None:
                self._receiving.reschedule(0)

    async def _code_of_end(self, follower: Follower) -> int | None:
        """Write the events of the feed until it ends. Returns its close code, or None if the client has gone."""
        try:
            if follower.has_entered:  # else it was closed before, and `positions` would lack rooms
                await self.write(self._ready(follower))
                self.sent_at = self._loop.time()
            async for event in follower:
                await self.write(self._events(follower, event))
        except OSError:
            return None
        return self.code or await self._close_code()

    def _events(self, follower: Follower, event: FeedEvent) -> str:
        """The event as a frame, with those that wait behind it."""
        encode = self.gateway.encoder.encode
        text = encode(event)
        rest = MAX_JOINED - 1
        while rest and len(text) < JOINED_CHARACTERS:
            if not (more := follower.waiting(min(rest, 8))):
                break
            rest -= len(more)
            text = "\n".join([text, *map(encode, more)])
        return text

    async def _close_code(self) -> int:
        """The close code after the end of the feed, by its session, its user or the hub."""
        if self._follower is not None and self._follower.was_disconnected:
            return await self._code_of_user(4403)
        token = self.identity.token
        try:
            if token is None or await self.hub.sessions.get_session(token) is not None:
                return 1012
        except Unavailable:
            return 1012
        return await self._code_of_user(4401)

    async def _code_of_user(self, code: int) -> int:
        """4410 if the user was deleted, else `code`."""
        try:
            await self.hub.users.get(self.user_id)
        except NotFound:
            return 4410
        except Unavailable:
            pass
        return code

    async def renew(self, identity: Identity) -> None:
        """Replace the identity by that of another token of the same user."""
        self.identity = identity
        if self._follower is not None:
            await self._follower._end_with(None if identity.token is None else key_of(identity.token).name)

    @property
    def is_ending(self) -> bool:
        """Whether further frames of the client are ignored, because its session has ended."""
        return self.code is not None or (self._follower is not None and self._follower.is_closed)

    async def write(self, text: str) -> None:
        """Send these frames. Raises: OSError (the client has gone)."""
        if self.has_gone:
            raise ConnectionResetError
        if not self._writing:
            self.blocked_since = self._loop.time()
        self._writing += 1
        try:
            await self._send(text)
        finally:
            self._writing -= 1
            now = self._loop.time()
            if self.sent_at < inf:
                self.sent_at = now
            self.blocked_since = now if self._writing else inf

    def watch(self, room_ids: Iterable[UUID]) -> None:
        """Deliver the presence of the members of these rooms, and of no others."""
        if self._follower is not None:
            self._follower.watch(room_ids)

    async def ping(self) -> None:
        """Send a frame, so that the client finds the connection alive."""
        with suppress(OSError):
            await self.write(frames.PING)

    async def _send_bye(self, code: int) -> None:
        self.code = code
        logger.info("a connection of user %s is closed: %d, %s", self.user_id, code, frames.REASONS[code])
        await self.write(self.gateway.bye(code))
        self.has_gone = True
        await self._finish(code)

    def close(self, code: int) -> None:
        """Close it with a `bye`. Does not wait."""
        if self.code is None:
            self.code = code
            if self._follower is not None:
                self._follower.close()
            elif self._receiving is not None:  # its positions
                self._receiving.reschedule(0)

    def abort(self, code: int) -> None:
        """Close it without a `bye`, because the client does not read."""
        logger.info("a connection of user %s is cut: %s", self.user_id, frames.REASONS[code])
        self.code = code
        self.has_gone = True
        if self._receiving is not None:
            self._receiving.reschedule(0)
